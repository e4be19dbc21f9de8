"""A small world for the tests of ``tools/upstream.py``: a git server (a bare repository), a package index (a folder of
source distributions) and a recipe whose pin table names both. Nothing in it is simulated: git and pip do the work."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

TOOL = Path(__file__).resolve().parents[2] / 'tools/upstream.py'

BODY = 'Why: it is needed.\n\nDrop when: upstream does so.\n'

CORE = ''.join(f'line_{number} = {number}\n' for number in range(40))

FILES = {
    'demo/__init__.py': '',
    'demo/core.py': CORE,
    'demo/other.py': 'def double(x):\n    return 2 * x\n',
    'configs/base.py': 'model = dict()\n',
    'tools/train.py': 'print("train")\n',
    'model-index.yml': 'Import: []\n',
    'setup.py': 'import torch_is_not_needed_to_bring_this\n',
}


class World:
    """A recipe with one upstream, ``demo``, in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / 'recipe'
        self.root.mkdir()
        self.index = folder / 'index'
        self.index.mkdir()
        self.home = folder / 'home'
        self.home.mkdir()
        self.server = folder / 'server'
        self.checkout = self.root / 'demo'
        self.patch = self.root / 'demo.patch'
        self._serve()
        self.pin = self.git(self.server, 'rev-parse', 'HEAD')
        self.sdist(FILES)
        self.write_table()

    def _serve(self) -> None:
        self.server.mkdir()
        self.git(self.server, 'init', '-q')
        for name, text in {**FILES, '.gitignore': '*.pyc\n', 'docs/only_in_git.md': 'text\n'}.items():
            write(self.server / name, text)
        (self.server / 'tools/train.py').chmod(0o755)
        self.git(self.server, 'add', '-A')
        self.git(self.server, 'commit', '-q', '-m', 'upstream')

    def sdist(self, files: Dict[str, str], extra: Optional[List[tarfile.TarInfo]] = None) -> Path:
        """Write demo-1.0.tar.gz as setuptools and upstream's setup.py do: configs and tools below demo/.mim."""
        path = self.index / 'demo-1.0.tar.gz'
        with tarfile.open(str(path), 'w:gz') as tar:
            members = {'PKG-INFO': 'Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n', 'demo.egg-info/SOURCES.txt': ''}
            for name, text in files.items():
                moved = name.startswith(('configs/', 'tools/')) or name == 'model-index.yml'
                members[f'demo/.mim/{name}' if moved else name] = text
            for name, text in members.items():
                info = tarfile.TarInfo(f'demo-1.0/{name}')
                info.size = len(text.encode())
                info.mode = 0o755 if name.endswith('train.py') else 0o644
                tar.addfile(info, io.BytesIO(text.encode()))
            for info in extra or []:
                tar.addfile(info, io.BytesIO(b''))
        return path

    def write_table(self, **changes: object) -> None:
        """Write upstream.json; ``changes`` replace entries of its one row."""
        archive = self.index / 'demo-1.0.tar.gz'
        row = {
            'url': str(self.server),
            'commit': self.pin,
            'patch': 'demo.patch',
            'package': 'demo',
            'sdist': {
                'name': 'demo',
                'version': '1.0',
                'sha256': hashlib.sha256(archive.read_bytes()).hexdigest(),
            },
            **changes,
        }
        (self.root / 'upstream.json').write_text(json.dumps({'demo': row}))

    def environment(self, **more: str) -> Dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(('PIP_', 'GIT_'))}
        env.update(HOME=str(self.home), PIP_NO_INDEX='1', PIP_FIND_LINKS=str(self.index), PIP_CONFIG_FILE=os.devnull)
        env.update(GIT_AUTHOR_NAME='Ada', GIT_AUTHOR_EMAIL='ada@example.org')
        env.update(GIT_COMMITTER_NAME='Ada', GIT_COMMITTER_EMAIL='ada@example.org')
        env.update(more)
        return env

    def run(self, *arguments: str, status: int = 0, **env: str) -> str:
        """Run upstream.py on this recipe, check its exit status and that it speaks in lines, give what it printed."""
        done = subprocess.run(
            [sys.executable, str(TOOL), *arguments, '--root', str(self.root)],
            env=self.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == status, done.stdout
        assert 'Traceback' not in done.stdout, done.stdout
        return done.stdout

    def refused(self, *arguments: str, **env: str) -> str:
        """Run upstream.py, which must refuse with one line and leave every file as it is."""
        before = snapshot(self.root)
        said = self.run(*arguments, status=1, **env)
        errors = [line for line in said.splitlines() if line.startswith('error: ')]
        assert len(errors) == 1, said
        assert snapshot(self.root) == before
        return errors[0]

    def git(self, folder: Path, *arguments: str) -> str:
        """Run git as a developer would."""
        done = subprocess.run(
            ['git', *arguments], cwd=str(folder), env=self.environment(), stdout=subprocess.PIPE, check=True, text=True
        )
        return done.stdout.strip()

    def state(self) -> Dict[str, object]:
        return json.loads(self.run('status', '--json'))['demo']

    def commit(self, changes: Dict[str, Optional[str]], subject: str = 'Change it', body: str = BODY) -> None:
        """Commit changed files (None deletes one) in the checkout, as a developer would."""
        for name, text in changes.items():
            if text is None:
                (self.checkout / name).unlink()
            else:
                write(self.checkout / name, text)
        self.git(self.checkout, 'add', '-A')
        self.git(self.checkout, 'commit', '-q', '-m', f'{subject}\n\n{body}')

    def back_to_base(self) -> None:
        self.git(self.checkout, 'reset', '-q', '--hard', 'refs/recipe/base')

    def make_patch(self) -> bytes:
        """A series of two commits: it edits, adds and deletes. The checkout is at its base afterwards."""
        self.commit({'demo/core.py': edited(8)}, 'Count from a hundred')
        self.commit(
            {'demo/new.py': 'x = 1\n', 'demo/other.py': None, 'demo/core.py': edited(8, 30)}, '[NPU] Add a file'
        )
        self.run('export')
        self.back_to_base()
        return self.patch.read_bytes()


def edited(*numbers: int) -> str:
    """``demo/core.py`` with some lines changed."""
    lines = CORE.splitlines(keepends=True)
    for number in numbers:
        lines[number] = f'line_{number} = {number + 100}\n'
    return ''.join(lines)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f'waited in vain for {what}'
        time.sleep(0.05)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def snapshot(folder: Path) -> Dict[str, object]:
    """Every file with its content, except what git only caches or logs."""
    found = {}
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.endswith(('.git/index', '.git/COMMIT_EDITMSG')) and '/.git/objects/' not in name:
            found[name] = (path.read_bytes(), path.stat().st_mode)
    return found

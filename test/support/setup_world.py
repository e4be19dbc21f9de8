"""A small recipe for the tests of ``tools/setup.sh``: three tiny upstreams, a package index in a folder, real venv, pip
and git. Only the packages are small; everything that sets them up is the real thing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Dict, List, Optional

from upstream_world import BODY, snapshot, write

TOOLS = Path(__file__).resolve().parents[2] / 'tools'

# Checkout, import package. Their build backend is their own, so that no setuptools has to be brought.
UPSTREAMS = {'mmcv': 'mmcv', 'mmdetection': 'mmdet', 'mmsegmentation': 'mmseg'}

_BACKEND = """
import os
import pathlib
import zipfile

NAME = {name!r}
INFO = f'{{NAME}}-1.0.dist-info'
METADATA = f'Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: 1.0\\n'


def get_requires_for_build_wheel(config_settings=None):
    return []


get_requires_for_build_editable = get_requires_for_build_wheel


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, INFO)
    folder.mkdir()
    (folder / 'METADATA').write_text(METADATA)
    return INFO


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    # As where torch is imported in a build and torch_npu is there, but CANN is not on the path.
    if os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD') != '0':
        raise ImportError('libhccl.so: cannot open shared object file')
    name = f'{{NAME}}-1.0-py3-none-any.whl'
    with zipfile.ZipFile(os.path.join(wheel_directory, name), 'w') as wheel:
        wheel.writestr(f'{{NAME}}.pth', os.getcwd() + '\\n')
        wheel.writestr('built.json', '{{"with_ops": "' + os.environ['MMCV_WITH_OPS'] + '"}}')
        wheel.writestr(f'{{INFO}}/METADATA', METADATA)
        wheel.writestr(f'{{INFO}}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        wheel.writestr(f'{{INFO}}/RECORD', '')
    return name
"""
_PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


class SetupWorld:
    """A recipe folder without ``.venv`` and without checkouts.

    Args:
        folder: Empty folder for it.
        template: Another one that nothing was set up in, to be copied: faster than making the upstreams again.
    """

    def __init__(self, folder: Path, template: Optional[SetupWorld] = None) -> None:
        self.folder = folder
        self.root = folder / 'recipe'
        self.index = folder / 'index'
        self.home = folder / 'home'
        self.bin = folder / 'bin'  # first on PATH
        self.python = self.root / '.venv/bin/python'
        self.home.mkdir()
        self.bin.mkdir()
        (self.bin / 'python3').symlink_to(sys.executable)
        if template is None:
            self._make()
        else:
            shutil.copytree(str(template.root), str(self.root), symlinks=True)
            shutil.copytree(str(template.index), str(self.index))

    def _make(self) -> None:
        (self.root / 'tools').mkdir(parents=True)
        for room in ('core', 'upstream', 'setup'):
            shutil.copytree(str(TOOLS.parent / 'recipe' / room), str(self.root / 'recipe' / room))
        for name in ('__init__.py', '__main__.py'):
            shutil.copy(str(TOOLS.parent / 'recipe' / name), str(self.root / 'recipe'))
        self.index.mkdir()
        for pattern in ('setup*', 'upstream*', 'find_python*', 'foreign_settings*'):
            for path in TOOLS.glob(pattern):
                shutil.copy(str(path), str(self.root / 'tools'))
        for name in ('torch', 'mmengine', 'extra'):
            self.wheel(name)
        for stack in ('cpu', 'npu-2.1'):
            write(self.root / f'requirements/{stack}.txt', '-r ../requirements.txt\ntorch==2.0\n')
        write(self.root / 'requirements/no-deps.txt', 'mmengine==2.0\n')
        write(self.root / 'requirements/test.txt', 'extra==2.0\n')
        write(self.root / 'requirements/export.txt', '')
        write(self.root / 'requirements.txt', '')
        write(self.root / 'pyproject.toml', _PROJECT)
        write(self.root / 'backend.py', _BACKEND.format(name='recipe'))
        self._upstreams()

    def wheel(self, name: str, text: str = "__version__ = '2.0'\n") -> None:
        """Put a package of one module into the index."""
        info = f'{name}-2.0.dist-info'
        files = {
            f'{name}/__init__.py': text,
            f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n',
            f'{info}/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        }
        rows = [f'{file},sha256={_hash(content)},{len(content)}\n' for file, content in files.items()]
        files[f'{info}/RECORD'] = ''.join([*rows, f'{info}/RECORD,,\n'])
        with zipfile.ZipFile(str(self.index / f'{name}-2.0-py3-none-any.whl'), 'w') as wheel:
            for file, content in files.items():
                wheel.writestr(file, content)

    def _upstreams(self) -> None:
        table = {}
        for name, package in UPSTREAMS.items():
            files = {
                'PKG-INFO': f'Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n',
                'pyproject.toml': _PROJECT,
                'backend.py': _BACKEND.format(name=package),
                'setup.py': '# the backend does the work\n',
                f'{package}/__init__.py': "__version__ = '1.0'\n",
                f'{package}/models.py': 'layers = 1\n',
            }
            archive = self.index / f'{package}-1.0.tar.gz'
            with tarfile.open(str(archive), 'w:gz') as tar:
                for file, text in files.items():
                    info = tarfile.TarInfo(f'{package}-1.0/{file}')
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
            table[name] = {
                'url': str(self.folder / 'no server here'),
                'commit': hashlib.sha1(name.encode()).hexdigest(),
                'patch': f'{name}.patch',
                'package': package,
                'sdist': {
                    'name': package,
                    'version': '1.0',
                    'sha256': hashlib.sha256(archive.read_bytes()).hexdigest(),
                },
            }
        write(self.root / 'upstream.json', json.dumps(table))
        self.upstream('fetch')
        for name, package in UPSTREAMS.items():
            self.commit(name, {f'{package}/models.py': 'layers = 2\n'})
        self.upstream('export')
        for name in UPSTREAMS:
            shutil.rmtree(str(self.root / name))

    def environment(self, **more: str) -> Dict[str, str]:
        dropped = ('PIP_', 'GIT_', 'ASCEND_', 'VIRTUAL_ENV', 'PYTHONPATH')
        env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        env.update(HOME=str(self.home), PATH=f'{self.bin}:/usr/bin:/bin', PIP_CONFIG_FILE=os.devnull)
        env.update(PIP_NO_INDEX='1', PIP_FIND_LINKS=str(self.index))
        env.update(GIT_AUTHOR_NAME='Ada', GIT_AUTHOR_EMAIL='ada@example.org')
        env.update(GIT_COMMITTER_NAME='Ada', GIT_COMMITTER_EMAIL='ada@example.org')
        env.update(more)
        return env

    def call(self, command: List[str], status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=str(self.folder),
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == status, done.stdout + done.stderr
        # What a log held is shown behind a bar; a traceback of the tool itself would not be.
        assert not done.stderr.startswith('Traceback') and '\nTraceback' not in done.stderr, done.stderr
        return done

    def setup(self, *arguments: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run tools/setup.sh; the stack is cpu unless the arguments name one."""
        return self.call(['/bin/bash', str(self.root / 'tools/setup.sh'), *arguments], status, **env)

    def refused(self, *arguments: str, status: int = 1, **env: str) -> str:
        """Run tools/setup.sh, which must refuse with one line and leave the recipe's files as they are."""
        before = self.files()
        said = self.setup(*arguments, status=status, **env).stderr
        assert self.files() == before
        errors = [line for line in said.splitlines() if 'error: ' in line]
        assert len(errors) == 1, said
        return errors[0]

    def files(self) -> Dict[str, object]:
        """The recipe's files, less the set-up's own notes."""
        return {
            name: what
            for name, what in snapshot(self.root).items()
            if not name.startswith('.setup/') and '__pycache__' not in name
        }

    def upstream(self, *arguments: str) -> str:
        tool = str(self.root / 'tools/upstream.py')
        return self.call([sys.executable, tool, *arguments, '--root', str(self.root)]).stdout

    def git(self, name: str, *arguments: str) -> str:
        return self.call(['git', '-C', str(self.root / name), *arguments]).stdout.strip()

    def commit(self, name: str, changes: Dict[str, str]) -> None:
        for file, text in changes.items():
            write(self.root / name / file, text)
        self.git(name, 'add', '-A')
        self.git(name, 'commit', '-q', '-m', f'Change {", ".join(changes)}\n\n{BODY}')

    def record(self) -> Dict:
        return json.loads((self.root / '.setup/recipe.json').read_text())

    def site(self) -> Path:
        """Where the environment keeps its packages."""
        return next(self.root.glob('.venv/lib/python*/site-packages'))

    def in_python(self, code: str) -> str:
        """Run code in the environment that was set up, from the recipe's folder."""
        return self.call([str(self.python), '-c', f'import os; os.chdir({str(self.root)!r}); {code}']).stdout.strip()


def _hash(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode().rstrip('=')


def steps(said: str) -> Dict[str, bool]:
    """From the printed steps: name, and whether it was run now."""
    found = {}
    for line in said.splitlines():
        if line.startswith('  ') and line[2] != ' ':
            name, _, rest = line.strip().partition(' ')
            found[name] = 'done before' not in rest
    return found

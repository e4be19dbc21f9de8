"""A copy of the recipe for tests of the launchers, so that they may edit it and leave the user's runs alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKOUTS = ('mmcv', 'mmdetection', 'mmsegmentation')
# A training of seconds: small pictures (Sandbox.make_data), no loader processes, every second loss logged.
TINY = ['--demo', '--max_iters=12', '--val_interval=6', '--num_workers=0']
TINY_OVERRIDES = [
    '--',
    'default_hooks.logger.interval=2',
    'model.data_preprocessor.size=(64,128)',
    'model.backbone.depths=[1,1,1,1]',
    'model.decode_head.train_cfg.num_points=128',
]


def require_set_up() -> None:
    """Skip the calling test where nothing is set up; test/run_tests.sh does so first."""
    missing = [name for name in CHECKOUTS if not (ROOT / name / '.git').exists()]
    missing += [name for name in ('torch', 'mmengine', 'mmseg') if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'not set up: {", ".join(missing)} missing; run: bash tools/setup.sh --with_tests')


class Sandbox:
    """The copy, with a home of its own.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        require_set_up()
        self.root = folder / 'recipe'
        self.home = folder / 'home'
        self.home.mkdir(parents=True)
        self.root.mkdir()
        for name in ('recipe', 'tools', 'configs', *CHECKOUTS):
            # With the compiled files, which stay valid as the times are copied too.
            shutil.copytree(ROOT / name, self.root / name, symlinks=True)
        (self.root / 'test').mkdir()
        for path in (*ROOT.glob('*.patch'), ROOT / 'upstream.json', *ROOT.glob('test/*.sh')):
            shutil.copy2(path, self.root / path.relative_to(ROOT))
        # The interpreter of the tests has everything installed, which set-up sees, and so has nothing to do.
        self.env = {
            **os.environ,
            'HOME': str(self.home),
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'PYTHONDONTWRITEBYTECODE': '1',
            # The environment has the original's checkouts installed; the doctor wants the copy's imported.
            'PYTHONPATH': ':'.join(map(str, [*(self.root / name for name in CHECKOUTS), self.root])),
        }
        for name in ('TORCH_HOME', 'XDG_CACHE_HOME'):
            self.env.pop(name, None)
        self.env['OMP_NUM_THREADS'] = '1'  # two launchers that run at once do not know of each other

    @property
    def output(self) -> Path:
        """Where runs go by default."""
        return self.root / 'test' / 'output'

    def command(self, script: str, argv: List[str]) -> List[str]:
        """A launcher's command line."""
        return ['bash', str(self.root / 'test' / f'train_{script}_8p.sh'), *argv]

    def run(self, script: str, *argv: str, prefix: Tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess:
        """Run a launcher to its end.

        Args:
            script: ``full`` or ``performance``.
            argv: Its options.
            prefix: Command that runs it.
            env: Additional environment variables.
        """
        return subprocess.run(
            [*prefix, *self.command(script, list(argv))],
            capture_output=True,
            text=True,
            env={**self.env, **env},
            cwd=str(self.home),
            timeout=1200,  # against hanging; the whole demo takes minutes
            check=False,
        )

    def start(self, script: str, *argv: str) -> subprocess.Popen:
        """Start a launcher as a terminal would: in a process group of its own."""
        return subprocess.Popen(
            self.command(script, list(argv)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            cwd=str(self.home),
            start_new_session=True,
        )

    def tool(self, name: str, *argv: str) -> None:
        """Run one of the tools, which has to succeed."""
        command = [sys.executable, str(self.root / 'tools' / name), *argv]
        subprocess.run(command, check=True, capture_output=True, env=self.env, timeout=1200)

    def make_data(self, name: str, train: int = 8, val: int = 4) -> Path:
        """Make a small prepared data set.

        Args:
            name: Of its folder in the home.
            train: Pictures to train on.
            val: Pictures to validate on.
        """
        data = self.home / name
        size = ('--width=128', '--height=64')
        self.tool('cityscapes.py', 'demo', f'--data_path={data}', f'--train={train}', f'--val={val}', *size)
        self.tool('cityscapes.py', 'prepare', f'--data_path={data}')
        return data

    def newest_run(self, script: str) -> Optional[Path]:
        """The newest run folder of the demo, None before there is one."""
        folders = sorted((self.output / f'train_{script}_8p_demo').glob('*'))
        return folders[-1] if folders else None


def in_namespace(script: str) -> tuple:
    """A command that runs another one with file systems mounted as a script says; skips where that is forbidden."""
    probe = subprocess.run(['unshare', '-rm', 'sh', '-c', 'mount -t tmpfs none /mnt'], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f'this machine forbids mounting in a namespace: {probe.stderr.decode().strip()}')
    return ('unshare', '-rm', 'sh', '-c', f'{script} && exec "$@"', 'sh')


def snapshot(*folders: Path) -> Dict[str, Tuple[int, int]]:
    """Size and time of change (ns) of every file and folder below some folders, by path."""
    found = {}
    pending = [str(folder) for folder in folders]
    for folder in pending:
        found[folder] = (0, os.lstat(folder).st_mtime_ns)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    found[entry.path] = (status.st_size, status.st_mtime_ns)
    return found


def wait_until(what: Callable[[], bool], running: subprocess.Popen, seconds: float = 1200) -> None:
    """Wait for something that a process does; fails where that ends before, with what it said."""
    deadline = time.monotonic() + seconds
    while not what():
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            pytest.fail(f'did not happen; status {running.returncode}: {running.communicate()}')
        time.sleep(0.2)

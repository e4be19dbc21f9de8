"""A small trained model for tests: the demo in a twelfth of its iterations, on an eighth of its scenes.

It is trained once and kept below .pytest_cache, under a hash of what it is made from, so the test of the demo and the
tests of what comes after a training share one training of about a minute.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import re
import shutil
import tempfile
from pathlib import Path

from launch_sandbox import ROOT, Sandbox

CACHE = ROOT / '.pytest_cache' / 'trained_demo'
SCENES = (32, 10)  # to train on, to validate on
# What a training runs; the rooms and files for what comes after it are left out.
_ROOMS = ('core', 'data', 'doctor', 'engine', 'launch', 'models', 'report')


def digest() -> str:
    """A hash of the sources and versions that the training depends on."""
    paths = [path for room in _ROOMS for path in sorted((ROOT / 'recipe' / room).rglob('*.py'))]
    paths = [path for path in paths if not path.name.startswith('evaluat')]
    paths += [*sorted(ROOT.glob('*.patch')), *sorted((ROOT / 'configs').glob('*.py')), ROOT / 'upstream.json']
    found = hashlib.sha256()
    for path in (*paths, Path(__file__)):
        found.update(f'{path.relative_to(ROOT)}\n'.encode() + path.read_bytes())
    for name in ('torch', 'numpy', 'mmengine'):
        found.update(f'{name} {importlib.metadata.version(name)}\n'.encode())
    return found.hexdigest()[:16]


def folder() -> Path:
    """The folder with the run (``run``) and its data set (``data``); trains if it is not there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / digest()
    with (CACHE / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may train
        if not made.is_dir():
            for old in CACHE.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            with tempfile.TemporaryDirectory() as place:
                _train(Path(place), made)
    return made


def _train(place: Path, made: Path) -> None:
    sandbox = Sandbox(place)
    module = sandbox.root / 'recipe' / 'data' / 'training_data.py'
    text, found = re.subn(r'(?m)^DEMO = \(240, 40, ', f'DEMO = ({SCENES[0]}, {SCENES[1]}, ', module.read_text())
    assert found == 1
    module.write_text(text)
    done = sandbox.run('full', '--demo', '--max_iters=40', '--val_interval=40')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = sandbox.newest_run('full')
    assert run is not None
    (data,) = (sandbox.output / 'demo_data').iterdir()
    half = made.with_suffix('.part')
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(data, half / 'data')
    (half / 'run').mkdir()
    best = next(run.glob('best_mIoU_iter_*.pth'))
    for path in (best, run / 'config.py', run / 'result.json', *run.glob('*.png')):
        shutil.copy2(path, half / 'run')
    half.rename(made)

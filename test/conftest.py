"""What holds for all tests: their random numbers are fixed, and the files that take longest come first."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

with contextlib.suppress(ImportError):  # what the NPU part needs is less
    from hypothesis import settings

    # The same examples in each run, and no limit on how long one takes: a failure is a fault, never a draw or a load.
    settings.register_profile('fixed', derandomize=True, deadline=None, database=None)
    settings.load_profile('fixed')

# The longest first, as `--durations=0` shows them. A file that is not here comes after those of its folder that are;
# a wrong order costs some seconds at the end of a run, nothing else.
LONG_FIRST = [
    'test_setup.py',
    'test_launch.py',
    'test_resume.py',
    'test_demo.py',
    'test_real_size.py',
    'test_faults.py',
    'test_bad_inputs.py',
    'test_nonfinite.py',
    'test_two_hosts.py',
    'test_two_ranks.py',
    'test_upstream.py',
    'test_restart.py',
    'test_triton_kernels.py',
    'test_launch_ranks.py',
    'test_training_step.py',
    'test_training.py',
    'test_loss.py',
]
FOLDERS = ['npu', 'e2e', 'parity', 'models', 'engine', 'bench']
SEED = 0


def place(path: Path) -> tuple:
    """Sort key of a test file."""
    known = LONG_FIRST.index(path.name) if path.name in LONG_FIRST else len(LONG_FIRST)
    folder = path.parent.name
    return known, FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)


def pytest_configure(config) -> None:
    """Have pytest-xdist keep this order; since 3.7 it would take the files with the most tests first."""
    capability = os.environ.get('ATEN_CPU_CAPABILITY')
    if capability:  # torch's compiler looks its code up without asking for which instructions it was compiled
        folder = Path(tempfile.gettempdir(), f'torchinductor_{capability}')
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(folder))
    if hasattr(config.option, 'loadscopereorder'):
        config.option.loadscopereorder = False


def pytest_report_header() -> str:
    """Every seed is fixed; a test that takes another one says so itself."""
    return f'seed of each test: {SEED}'


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what a test and its fixtures draw from, and choose operators anew, whichever tests ran before."""
    random.seed(SEED)
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed(SEED)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(SEED)
        sys.modules['torch'].use_deterministic_algorithms(False)  # a training on a CPU turns them on


@pytest.fixture(autouse=True, scope='module')
def global_instances() -> None:
    """Forget the logs, histories and scopes that mmengine keeps for the process: a file finds what it finds alone."""
    if 'mmengine' in sys.modules:
        from mmengine.utils import ManagerMixin

        for kind in ManagerMixin.__subclasses__():
            kind._instance_dict.clear()  # no public name forgets them


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Take back what a test, or code that it calls, sets in the environment of this process."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


def pytest_collection_modifyitems(items) -> None:
    """Sort by file; the tests of a file keep their order."""
    items.sort(key=lambda item: place(item.path))

"""Order of the test files: the two test processes take the long ones first, so that both end at about the same time."""

from __future__ import annotations

from pathlib import Path

# The longest first, as `--durations=0` shows them. A file that is not here comes after those of its folder that are;
# a wrong order costs some seconds at the end of a run, nothing else.
LONG_FIRST = []
FOLDERS = ['npu', 'e2e', 'parity', 'unit']


def place(path: Path) -> tuple:
    """Sort key of a test file."""
    known = LONG_FIRST.index(path.name) if path.name in LONG_FIRST else len(LONG_FIRST)
    folder = path.parent.name
    return known, FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)


def pytest_configure(config) -> None:
    """Have pytest-xdist keep this order; since 3.7 it would take the files with the most tests first."""
    if hasattr(config.option, 'loadscopereorder'):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items) -> None:
    """Sort by file; the tests of a file keep their order."""
    items.sort(key=lambda item: place(item.path))

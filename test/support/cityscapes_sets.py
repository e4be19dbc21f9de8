"""Small data sets for the tests of tools/cityscapes.py."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict

from recipe.data import demo, prepare

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'cityscapes.py'
WANTED = demo.DemoSet(train=4, val=2, width=128, height=64, seed=1)


def make_demo(root: Path, wanted: demo.DemoSet = WANTED) -> Path:
    """Make a demo set without labelTrainIds."""
    demo.demo(root, wanted, workers=1, progress=False)
    return root


def make_prepared(root: Path, wanted: demo.DemoSet = WANTED) -> Path:
    """Make a demo set that is ready for training."""
    make_demo(root, wanted)
    prepare.prepare(root, workers=1, progress=False)
    return root


def digests(root: Path) -> Dict[str, str]:
    """Map every file below a folder, hidden ones too, to the digest of its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def run_tool(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run tools/cityscapes.py to its end."""
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=600, **options
    )


def start_tool(*arguments: object, **options: object) -> subprocess.Popen:
    """Start tools/cityscapes.py."""
    return subprocess.Popen(
        [sys.executable, str(TOOL), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def wait_until(condition: object, what: str, timeout_s: float = 600.0) -> None:
    """Wait for a condition; fail where it never comes."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f'waited in vain for {what}'
        time.sleep(0.002)

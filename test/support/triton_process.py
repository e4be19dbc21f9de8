"""Triton without a GPU: a process of its own, because Triton decides on interpretation when it is first imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest


def _version() -> tuple:
    try:
        return tuple(int(part) for part in metadata.version('triton').split('.')[:2])
    except metadata.PackageNotFoundError:
        return ()


needs_triton = pytest.mark.skipif(
    _version() < (3, 2), reason=f'needs triton 3.2 or newer, found {_version() or "none"}'
)


CASES = (
    'add_norm_kernel_cases.py',
    'assignment_kernel_cases.py',
    'triton_kernel_cases.py',
    'window_attention_kernel_cases.py',
)
FILES = [str(Path(__file__).with_name(name)) for name in CASES]


def interpret(which: str) -> None:
    """Run the cases of a marker with all kernels in Triton's interpreter; fails if one fails or is skipped."""
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', which, *FILES]
    env = {**os.environ, 'TRITON_INTERPRET': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:]
    assert ' passed' in done.stdout and 'skipped' not in done.stdout

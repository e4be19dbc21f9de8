"""Triton without a GPU: a process of its own, because Triton decides on interpretation when it is first imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest


def _version() -> tuple:
    try:
        return tuple(int(part) for part in metadata.version('triton').split('.')[:2])
    except metadata.PackageNotFoundError:
        return ()


needs_triton = pytest.mark.skipif(
    _version() < (3, 2), reason=f'needs triton 3.2 or newer, found {_version() or "none"}'
)


def run(*arguments: str, **environment: str) -> Any:
    """Run Python; the kernels are not interpreted unless ``TRITON_INTERPRET`` is given."""
    kept = {name: text for name, text in os.environ.items() if name != 'TRITON_INTERPRET'}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**kept, **environment}, timeout=3600
    )


def interpret(cases: Path, *arguments: str) -> None:
    """Run a file of tests with all kernels in Triton's interpreter; fails if one fails or is skipped."""
    done = run('-m', 'pytest', '-q', '-p', 'no:cacheprovider', *arguments, str(cases), TRITON_INTERPRET='1')
    assert done.returncode == 0, done.stdout[-4000:]
    assert ' passed' in done.stdout and 'skipped' not in done.stdout

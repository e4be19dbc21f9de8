"""Where a run keeps everything: a new folder for each run, never one that holds somebody's work. Standard library only.

Default: ``test/output/<script>[_demo]/<YYYYmmdd_HHMMSS>/``. ``--work_dir=DIR`` is exactly DIR.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Optional

from recipe.core import console, inputs
from recipe.core.paths import OUTPUT

COMMAND, CONFIG, VERSIONS, LOGS = 'command.txt', 'config.py', 'versions.json', 'logs'
CHECKPOINTS = '*.pth'


def choose(script: str, demo: bool, work_dir: Optional[str], resume: bool, again: bool = False) -> Path:
    """The folder of a run. Nothing is written.

    Args:
        script: ``train_full_8p`` or ``train_performance_8p``.
        demo: Demo runs have folders of their own.
        work_dir: What ``--work_dir`` says.
        resume: The newest folder with a checkpoint, instead of a new one.
        again: A fresh run may begin where an earlier start ended before its first checkpoint.

    Returns:
        An absolute path. A fresh run's may not exist yet.

    Raises:
        console.UserError: A fresh run would mix with another one's files, a resumed one finds no checkpoint, or the
            folder cannot be written to.
    """
    runs = OUTPUT / (f'{script}_demo' if demo else script)
    if resume:
        folder = inputs.absolute(work_dir) if work_dir else _newest(runs)
        if not _holds(folder, CHECKPOINTS):
            raise console.UserError(
                f'--resume=1: there is no checkpoint in {folder}; '
                + ('give the --work_dir of a run that wrote one, or start afresh without --resume=1')
            )
    else:
        folder = inputs.absolute(work_dir) if work_dir else _unused(runs)
        for pattern in (CHECKPOINTS,) if again else (CHECKPOINTS, CONFIG, COMMAND):
            if _holds(folder, pattern):
                raise console.UserError(
                    f'--work_dir: {folder} already holds a run; continue it with --resume=1, give another --work_dir, '
                    'or move it away'
                )
    require_writable(folder)
    return folder


def has_checkpoint(work_dir: str) -> bool:
    """Whether there is something to resume in a folder.

    Args:
        work_dir: What ``--work_dir`` says.
    """
    return _holds(inputs.absolute(work_dir), CHECKPOINTS)


def _newest(runs: Path) -> Path:
    """The newest run that has a checkpoint, or the folder of all runs where none has."""
    folders = sorted(runs.iterdir(), reverse=True) if runs.is_dir() else []
    return next((folder for folder in folders if _holds(folder, CHECKPOINTS)), runs)


def _unused(runs: Path) -> Path:
    """A name for now that is not taken, also where two runs start in one second."""
    stamp = time.strftime('%Y%m%d_%H%M%S')
    names = [stamp] + [f'{stamp}_{count}' for count in range(2, 100)]
    return next(runs / name for name in names if not (runs / name).exists())


def _holds(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and any(folder.glob(pattern))


def require_writable(folder: Path) -> None:
    """Check that a folder, or the nearest one above it that exists, can be written to.

    Raises:
        console.UserError: Names the part of the path that stands in the way.
    """
    existing = existing_part(folder)
    if not existing.is_dir():
        raise console.UserError(f'cannot make {folder}: {existing} is not a folder; give another --work_dir')
    if not os.access(existing, os.W_OK | os.X_OK) or existing.parts[:2] in (('/', 'proc'), ('/', 'sys')):
        raise console.UserError(
            f'cannot write to {existing}, where {folder} is to be; give a --work_dir that can be written to'
        )


def existing_part(path: Path) -> Path:
    """The longest leading part of an absolute path that exists."""
    return next(part for part in (path, *path.parents) if os.path.lexists(part))


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Check that a folder's file system has room.

    Args:
        folder: Need not exist yet.
        needed_bytes: Free bytes wanted.
        what: What needs them, for the message.

    Raises:
        console.UserError: Says how much is free and how much is needed, in MiB.
    """
    existing = existing_part(folder)
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise console.UserError(
            f'no space: {existing} has {free >> 20} MiB free, and {what} need about {needed_bytes >> 20} MiB; '
            'free some or give a --work_dir elsewhere'
        )

"""The folder of a run: a new one for each run, never one that holds other files. Standard library only.

Default: ``test/output/<script>[_demo]/<YYYYmmdd_HHMMSS>/``. ``--work_dir=DIR`` is exactly DIR.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Optional, Sequence, Tuple

from recipe.core import console, inputs, run_lock
from recipe.core.paths import OUTPUT as OUTPUT

COMMAND, CONFIG, VERSIONS, LOGS = 'command.txt', 'config.py', 'versions.json', 'logs'
LAUNCHER_LOG = 'launcher.log'  # the launcher's output
CHECKPOINTS = '*.pth'
INITIAL_WEIGHTS = 'init_from.weights'  # no .pth, which a resumed run would take for a checkpoint
_NAME = re.compile(r'(\d{8}_\d{6})(?:_(\d+))?')


def choose(script: str, demo: bool, work_dir: Optional[str], resume: bool, again: bool = False) -> Path:
    """The folder of a run. Nothing is written.

    Args:
        script: ``train_full_8p`` or ``train_performance_8p``.
        demo: Whether it is a demo run; those have folders of their own.
        work_dir: Value of ``--work_dir``.
        resume: Take the newest folder with a checkpoint instead of a new one.
        again: Allow a fresh run in a folder in which an earlier start ended before its first checkpoint.

    Returns:
        An absolute path. The folder of a fresh run may not exist yet.

    Raises:
        console.UserError: A training runs there, a fresh run would mix with another one's files, a resumed run finds no
            checkpoint, or the folder cannot be written to.
    """
    runs = OUTPUT / (f'{script}_demo' if demo else script)
    if resume:
        folder = inputs.absolute(work_dir) if work_dir else _newest(runs)
        run_lock.require_free(folder)
        if not _holds(folder, CHECKPOINTS):
            raise console.UserError(
                f'--resume=1: there is no checkpoint in {folder}',
                'give the --work_dir of a run that wrote one, or start afresh without --resume=1',
            )
    else:
        folder = inputs.absolute(work_dir) if work_dir else _unused(runs)
        run_lock.require_free(folder)
        require_unused(folder, again)
    require_writable(folder)
    return folder


def require_unused(folder: Path, again: bool = False) -> None:
    """Check that a fresh run in a folder would not mix with another run's files.

    Args:
        folder: Need not exist.
        again: Ignore a start that ended before its first checkpoint.

    Raises:
        console.UserError: It would.
    """
    for pattern in (CHECKPOINTS,) if again else (CHECKPOINTS, CONFIG, COMMAND):
        if _holds(folder, pattern):
            raise console.UserError(
                f'--work_dir: {folder} already holds a run',
                'continue it with --resume=1, give another --work_dir, or move it away',
            )


def has_checkpoint(work_dir: str) -> bool:
    """Whether a folder holds a checkpoint to resume from.

    Args:
        work_dir: Value of ``--work_dir``.
    """
    return _holds(inputs.absolute(work_dir), CHECKPOINTS)


def make(folder: Path, named_by_user: bool) -> Path:
    """Make a run folder.

    Args:
        folder: From ``choose``, perhaps minutes ago.
        named_by_user: Whether it must be this one. Otherwise a new name is chosen if another start took this one first.

    Returns:
        The folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir(exist_ok=named_by_user)
        except FileExistsError:
            if named_by_user:
                raise
            folder = _unused(folder.parent)
        else:
            return folder


def next_name(existing: Sequence[str], stamp: str) -> str:
    """Name a run, or the log folder of a start; as ``recipe.engine.runner.next_name``.

    Args:
        existing: Names in the parent folder.
        stamp: Current date and time.

    Returns:
        A name that sorts after all earlier ones, even if the clock was set back.
    """
    newest, count = max(map(_order, existing), default=('', 0))
    return stamp if stamp > newest else f'{newest}_{count + 1:03d}'


def _order(name: str) -> Tuple[str, int]:
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2] or 1)) if match else ('', 0)


def _newest(runs: Path) -> Path:
    """The newest run that has a checkpoint, or the folder of all runs if none has."""
    folders = sorted(runs.iterdir(), key=lambda path: (_order(path.name), path.name)) if runs.is_dir() else []
    return next((folder for folder in reversed(folders) if _holds(folder, CHECKPOINTS)), runs)


def _unused(runs: Path) -> Path:
    existing = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    return runs / next_name(existing, time.strftime('%Y%m%d_%H%M%S'))


def _holds(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and any(folder.glob(pattern))


def legacy_folder(folder: Path) -> Path:
    """Folder for the files of the ModelZoo convention: ``test/output`` if writable, else the run folder.

    Args:
        folder: Run folder.
    """
    return OUTPUT if os.access(existing_part(OUTPUT), os.W_OK | os.X_OK) else folder


def require_writable(folder: Path) -> None:
    """Check that a folder, or its nearest parent that exists, can be written to.

    Raises:
        console.UserError: Names the part of the path that cannot be used.
    """
    existing = existing_part(folder)
    if not existing.is_dir():
        raise console.UserError(f'cannot make {folder}: {existing} is not a folder', 'give another --work_dir')
    if not os.access(existing, os.W_OK | os.X_OK) or existing.parts[:2] in (('/', 'proc'), ('/', 'sys')):
        raise console.UserError(
            f'cannot write to {existing}, where {folder} is to be', 'give a --work_dir that can be written to'
        )


def existing_part(path: Path) -> Path:
    """The longest leading part of an absolute path that exists."""
    return next(part for part in (path, *path.parents) if os.path.lexists(part))


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Check that a folder's file system has room.

    Args:
        folder: Need not exist yet.
        needed_bytes: Required free bytes.
        what: What needs them, for the message.

    Raises:
        console.UserError: Says how much is free and how much is needed, in MiB.
    """
    existing = existing_part(folder)
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise console.UserError(
            f'no space: {existing} has {free >> 20} MiB free, and {what} need about {needed_bytes >> 20} MiB',
            'free some or give a --work_dir elsewhere',
        )

"""The folder of a run: a new one for each run, never one that holds other files. Standard library only.

Default: ``test/output/<script>[_demo]/<YYYYmmdd_HHMMSS>/``. ``--work_dir=DIR`` is exactly DIR.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import FrozenSet, NamedTuple, Optional, Sequence, Tuple

from recipe.core import console, files, inputs, run_lock
from recipe.core.paths import OUTPUT as OUTPUT

COMMAND, CONFIG, VERSIONS, LOGS = 'command.txt', 'config.py', 'versions.json', 'logs'
NODES = 'nodes'  # holds a folder of files for each machine but the first
LAUNCHER_LOG = 'launcher.log'  # the launcher's output
CHECKPOINTS = '*.pth'
NEWEST = 'ckpt'  # in test/output: Ascend's scripts keep all checkpoints there; here it is a link to the newest run
INIT_FROM_TABLE = 'init_from.csv'
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
            old = OUTPUT / NEWEST
            raise console.UserError(
                f'--resume=1: there is no checkpoint in {folder}',
                f'continue those of {old} with --resume=1 --work_dir={old}, or start afresh without --resume=1'
                if not work_dir and not old.is_symlink() and _holds(old, CHECKPOINTS)
                else 'give the --work_dir of a run that wrote one, or start afresh without --resume=1',
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


class Before(NamedTuple):
    """What there was before a run folder was made, to take back a start that trained nothing.

    Attributes:
        existing: The longest part of the folder's path that was there.
        names: What the folder held.
    """

    existing: Path
    names: FrozenSet[str]

    def restore_content(self, folder: Path) -> None:
        """Remove what the run has put into its folder, except for the lock."""
        for path in folder.iterdir():
            if path.name not in {*self.names, run_lock.NAME}:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def restore_folders(self, folder: Path) -> None:
        """Remove the folder and its parents, as far as they are new and empty."""
        for path in (folder, *folder.parents):
            if path == self.existing:
                return
            with contextlib.suppress(OSError):
                path.rmdir()


def make(folder: Path, named_by_user: bool) -> Tuple[Path, Before]:
    """Make a run folder.

    Args:
        folder: From ``choose``, perhaps minutes ago.
        named_by_user: Whether it must be this one. Otherwise a new name is chosen if another start took this one first.

    Returns:
        The folder, and what there was before.
    """
    before = Before(
        existing_part(folder), frozenset(path.name for path in (folder.iterdir() if folder.is_dir() else ()))
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir(exist_ok=named_by_user)
        except FileExistsError:
            if named_by_user:
                raise
            folder = _unused(folder.parent)
            before = Before(folder.parent, frozenset())
        else:
            return folder, before


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


def is_shown(folder: Path) -> bool:
    """Whether ``test/output`` can show a run: it can be written, and is not itself the run's folder."""
    return os.access(existing_part(OUTPUT), os.W_OK | os.X_OK) and folder.resolve() != OUTPUT.resolve()


def publish(file: Path) -> Path:
    """Show a file of a run in ``test/output``: as a link, or as a copy on storage without links.

    A file of that name that is no link may be all that another program has written, so it is kept under another name.

    Args:
        file: The file, in a run folder.

    Returns:
        The link or copy.

    Raises:
        OSError: ``test/output`` cannot be written.
    """
    place = OUTPUT / file.name
    file = file.resolve()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(place) and not place.is_symlink():
        console.say(f'kept     {place} of an earlier run as {files.move_aside(place).name}')
    if not files.link(place, file):
        with files.whole(place) as partial:
            shutil.copyfile(file, partial)
    return place


def foreign_checkpoints(folder: Path) -> Optional[str]:
    """What to do about a ``test/output/ckpt`` that is no link, as Ascend's scripts make it; None if there is none.

    Args:
        folder: Run folder; if it is that folder, there is nothing to do.
    """
    place = OUTPUT / NEWEST
    if place.is_symlink() or not os.path.lexists(place) or place.resolve() == folder.resolve():
        return None
    has_some = _holds(place, CHECKPOINTS)
    return (f'continue its checkpoints with --resume=1 --work_dir={place}; ' if has_some else '') + (
        'rename it to have a link to the newest run there'
    )


def link_newest(folder: Path) -> None:
    """Let ``test/output/ckpt`` lead to a run, if it is a link or missing."""
    place = OUTPUT / NEWEST
    if place.is_symlink() or not os.path.lexists(place):
        files.link(place, folder.resolve())


def repair_links() -> None:
    """Let links in ``test/output`` to a run that was removed lead to the newest other run, or remove them."""
    for link in OUTPUT.glob('*'):
        if link.is_symlink() and not link.exists():
            others = OUTPUT.glob('train_full_8p*/*' if link.name == NEWEST else f'train_*/*/{link.name}')
            newest = max(others, key=lambda path: path.stat().st_mtime_ns, default=None)
            link.unlink()
            if newest is not None:
                files.link(link, newest.resolve())


def require_writable(folder: Path, option: str = '--work_dir') -> None:
    """Check that a folder, or its nearest parent that exists, can be written to.

    Args:
        folder: Need not exist.
        option: The option that names it, for the message.

    Raises:
        console.UserError: Names the part of the path that cannot be used.
    """
    existing = existing_part(folder)
    if not existing.is_dir():
        raise console.UserError(f'cannot make {folder}: {existing} is not a folder', f'give another {option}')
    if not os.access(existing, os.W_OK | os.X_OK) or existing.parts[:2] in (('/', 'proc'), ('/', 'sys')):
        raise console.UserError(
            f'cannot write to {existing}, where {folder} is to be', f'give a {option} that can be written to'
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

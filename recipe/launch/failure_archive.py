"""Packs the files that explain a failure into one archive to send: logs, config, versions and CANN's plog."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import time
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple

from recipe.core import files, run_folder
from recipe.launch.ranks import Failure, tail

MOST_BYTES = 16 << 20  # per file; its end is kept
OTHER_LINES = 200  # of each log of the ranks that did not fail first


def write(folder: Path, log_dir: Path, failure: Failure) -> Path:
    """Write ``failure_<time>.tar.gz``.

    Args:
        folder: Folder of the archive; holds the run's config, command and versions.
        log_dir: torchrun's folder, with the logs of all ranks.
        failure: What happened.

    Returns:
        The archive.

    Raises:
        OSError: It cannot be written; nothing is left then.
    """
    name = f'failure_{time.strftime("%Y%m%d_%H%M%S")}'
    path = _unused(folder, name)
    with files.whole(path) as partial, tarfile.open(partial, 'w:gz') as archive:
        _add(archive, f'{name}/failure.txt', '\n'.join([failure.what, '', *failure.last_lines, '']).encode())
        for member, content in _contents(folder, log_dir, failure):
            _add(archive, f'{name}/{member}', content)
    return path


def _unused(folder: Path, name: str) -> Path:
    names = [name] + [f'{name}_{count}' for count in range(2, 1000)]
    return next(folder / f'{one}.tar.gz' for one in names if not (folder / f'{one}.tar.gz').exists())


def _contents(folder: Path, log_dir: Path, failure: Failure) -> Iterator[Tuple[str, bytes]]:
    for name in (run_folder.CONFIG, run_folder.COMMAND, run_folder.VERSIONS, run_folder.LAUNCHER_LOG):
        with contextlib.suppress(OSError):
            yield name, _end(folder / name)
    for log in sorted(log_dir.rglob('*.log')):
        member = f'logs/{log.relative_to(log_dir)}'
        with contextlib.suppress(OSError):
            if log.parent in (failure.log.parent, log_dir):  # logs of the failed rank and of torchrun
                yield member, _end(log)
            elif log.stat().st_size:
                yield member, '\n'.join([*tail(log, OTHER_LINES), '']).encode()
    for log in plogs(failure.pids):
        with contextlib.suppress(OSError):
            yield f'plog/{log.parent.name}/{log.name}', _end(log)


def plogs(pids: Sequence[int]) -> List[Path]:
    """CANN's own log files of some processes.

    Args:
        pids: Process ids; the file names hold them: ``plog-4711_20260101120000000.log``.
    """
    root = Path(os.environ.get('ASCEND_PROCESS_LOG_PATH') or Path.home() / 'ascend' / 'log')
    return sorted(path for pid in pids for path in root.rglob(f'*-{pid}_*') if path.is_file())


def _end(path: Path) -> bytes:
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - MOST_BYTES))
        return file.read()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), int(time.time())
    archive.addfile(info, io.BytesIO(content))

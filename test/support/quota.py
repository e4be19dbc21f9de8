"""Folders whose files may take so many bytes, and no more: what a write beyond that gets is EDQUOT."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, Optional

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from resume_faults import BeforeIter
from resume_job import Outcome, Sabotage, plain_text

SOURCE = Path(__file__).with_name('quota.c')
_RANK = 'import pickle, sys, resume_job; resume_job.train_rank(*pickle.load(open(sys.argv[1], "rb")))'


class Quota:
    """A folder with a quota.

    Args:
        folder: The folder.
        env: What processes need in their environment to have the quota.
    """

    def __init__(self, folder: Path, env: Dict[str, str]) -> None:
        self.folder = folder
        self.env = {**os.environ, **env}

    def train(self, cfg: Config, sabotage: Optional[Sabotage] = None) -> Outcome:
        """Train in a new process; what it prints is kept out of the folder."""
        folder = self.folder.parent
        config, job, log = folder / 'config.py', folder / 'job', folder / 'said.txt'
        config.write_text(plain_text(cfg))
        job.write_bytes(pickle.dumps((config, 0, 1, 0, False, sabotage, log)))
        env = {**self.env, 'PYTHONPATH': os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, '-c', _RANK, str(job)], env=env, check=False)
        return Outcome([done.returncode], log.read_text())


@contextlib.contextmanager
def preloaded(place: Path, size: int, late: bool = False) -> Iterator[Quota]:
    """A quota that the C library's calls are made to respect.

    Args:
        place: A folder.
        size: Bytes.
        late: Whether only fsync and close say that it was exceeded.
    """
    if not shutil.which('gcc'):
        pytest.skip('no gcc, which builds the library that keeps the quota')
    library, folder = place / 'quota.so', place / 'quota'
    folder.mkdir()
    subprocess.run(['gcc', '-shared', '-fPIC', '-o', str(library), str(SOURCE), '-ldl'], check=True)
    env = {'LD_PRELOAD': str(library), 'QUOTA_FOLDER': str(folder), 'QUOTA_BYTES': str(size)}
    yield Quota(folder, {**env, **({'QUOTA_LATE': '1'} if late else {})})


@contextlib.contextmanager
def btrfs(place: Path, size: int) -> Iterator[Quota]:
    """A quota that the system keeps, where it can mount a btrfs."""
    image, disk = place / 'disk.img', place / 'disk'
    disk.mkdir()
    folder = disk / 'quota'
    image.write_bytes(b'')
    os.truncate(image, 512 << 20)
    try:
        for command in (
            ['mkfs.btrfs', '-q', image],
            ['mount', '-o', 'loop', image, disk],
            ['btrfs', 'quota', 'enable', disk],
            ['btrfs', 'subvolume', 'create', folder],
            ['btrfs', 'qgroup', 'limit', str(size), folder],
        ):
            if not shutil.which(command[0]):
                pytest.skip(f'no {command[0]}; the quota of the preloaded library is tested all the same')
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f'no btrfs with a quota here: {done.stderr.strip()}')
        yield Quota(folder, {})
    finally:
        subprocess.run(['umount', '-l', str(disk)], capture_output=True, check=False)


def use_up(folder: Path, first: int, last: int, runner: Runner) -> None:
    """From one iteration until another begins, not a byte is left."""
    filler = folder / 'filler'

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open('wb', buffering=0) as file:
            for size in (1 << 20, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    runner.register_hook(BeforeIter(first, fill))
    runner.register_hook(BeforeIter(last, filler.unlink))

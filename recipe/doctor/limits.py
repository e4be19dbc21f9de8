"""Limits of this machine that may end a training hours after its start: cores, shared memory, open files, processes."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from recipe.core import hardware
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding
from recipe.doctor.subject import Subject
from recipe.engine import size

# Open at any time in a rank: sockets, logs, libraries and device nodes. A generous estimate.
FILES_PER_RANK = 256
# Threads of a rank besides its loader processes: torch's, the collective library's, the device's.
THREADS_PER_RANK = 64
# A loader process and the threads that feed and empty it.
THREADS_PER_WORKER = 4


@dataclass(frozen=True)
class Limits:
    """Limits of this machine; None for no limit.

    Attributes:
        cores: Cores that this process may use.
        shm_bytes: Free bytes of /dev/shm; None if there is none.
        files: Open files that a process may have.
        threads: Processes and threads that may still be started.
    """

    cores: int
    shm_bytes: Optional[int]
    files: Optional[int]
    threads: Optional[int]


def examine(subject: Subject) -> List[Finding]:
    """Compare the limits with the needs of the training."""
    return judge(subject, measure(subject.root))


def measure(root: Path = Path('/')) -> Limits:
    """Read the limits of this process.

    Args:
        root: Root of the file system to look at.
    """
    shm = root / 'dev' / 'shm'
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Limits(
        cores=hardware.cores(root),
        shm_bytes=shutil.disk_usage(str(shm)).free if shm.is_dir() else None,
        files=None if files == resource.RLIM_INFINITY else files,
        threads=_threads_left(root),
    )


def _threads_left(root: Path) -> Optional[int]:
    """Further processes and threads that the container and the user's limit allow; root has no user's limit."""
    left = []
    # The second folder is the older version of cgroups.
    for folder in (root / 'sys/fs/cgroup', root / 'sys/fs/cgroup/pids'):
        try:
            most, used = ((folder / name).read_text().strip() for name in ('pids.max', 'pids.current'))
        except OSError:
            continue
        if most.isdigit() and used.isdigit():
            left.append(int(most) - int(used))
    own = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if own != resource.RLIM_INFINITY and os.geteuid() != 0:
        left.append(own)
    return min(left) if left else None


def judge(subject: Subject, limits: Limits) -> List[Finding]:
    """Findings on one machine and one training.

    Args:
        subject: The training.
        limits: Limits of the machine.
    """
    parts = (_cores, _loader, _shm, _files, _threads)
    return [finding for part in parts for finding in part(subject, limits)]


def _cores(subject: Subject, limits: Limits) -> List[Finding]:
    workers = subject.loader()['num_workers']
    wanted = subject.nproc * (1 + workers)
    shown = f'{limits.cores} cores for {subject.nproc} ranks with {workers} loader processes each'
    fewer = max(0, limits.cores // subject.nproc - 1)
    # On a CPU there is no card that could wait for data.
    if limits.cores >= wanted or subject.device == 'cpu' or fewer == workers:
        return [Finding('cores', OK, shown)]
    fix = f'where the cards wait for data, give --num_workers={fewer}, or this container more cores'
    return [Finding('cores', WARNING, shown, fix)]


def _loader(subject: Subject, limits: Limits) -> List[Finding]:
    """Compare the speed that the user wants with what the loader processes and the cores can load."""
    cached, workers = bool(subject.asked.decoded_cache), subject.loader()['num_workers']
    image_s = size.CACHE_S if cached else size.PNG_S
    source = 'the decoded cache' if cached else 'PNG'
    rate = max(1, workers) * size.BUSY / image_s
    shown = f'{workers} processes for each card load about {rate:.0f} images/s from {source}'
    speed = subject.images_per_s
    if speed is None or subject.device == 'cpu':
        return [Finding('loader', OK, shown)]
    needed = size.loader_processes(speed, image_s)
    cores = subject.nproc * (1 + needed)
    shown += f'; {speed:g} images/s need {needed}, with the ranks {cores} of {limits.cores} cores'
    if workers >= needed and limits.cores >= cores:
        return [Finding('loader', OK, shown)]
    if limits.cores >= cores:
        fix = f'give --num_workers={needed}'
    elif cached or not _cache_helps(subject, limits, speed):
        fix = f'give this container {cores} cores'
    else:
        fix = 'give --decoded_cache=FOLDER, after: python tools/cityscapes.py cache --data_path ROOT'
    return [Finding('loader', WARNING, shown, fix)]


def _cache_helps(subject: Subject, limits: Limits, speed: float) -> bool:
    """Whether the cores suffice with the decoded cache."""
    return subject.nproc * (1 + size.loader_processes(speed, size.CACHE_S)) <= limits.cores


def _mib(count: int) -> str:
    return f'{count / (1 << 20):.0f} MiB'


def _shm(subject: Subject, limits: Limits) -> List[Finding]:
    needed = subject.nproc * size.shared_memory_bytes(subject.config, **subject.loader())
    if not needed:
        return [Finding('/dev/shm', OK, 'not needed without loader processes')]
    fix = 'start the container with --ipc=host or --shm-size=8g, or give --num_workers=0'
    if limits.shm_bytes is None:
        return [Finding('/dev/shm', FAILURE, 'there is none, and loader processes hand batches over in it', fix)]
    found = f'{_mib(limits.shm_bytes)} free, batches in flight take up to {_mib(needed)}'
    # Validation has loaders too, besides those of the training.
    level = FAILURE if limits.shm_bytes < needed else WARNING if limits.shm_bytes < 2 * needed else OK
    return [Finding('/dev/shm', level, found, fix if level != OK else '')]


def _level(given: Optional[int], needed: int) -> str:
    if given is None or given >= 2 * needed:
        return OK
    return WARNING if given >= needed else FAILURE


def _files(subject: Subject, limits: Limits) -> List[Finding]:
    loader = subject.loader()
    # Each tensor sent by a loader process is an open file: picture and label of each image.
    tensors = 2 * loader['batch_size'] * loader['num_workers'] * loader['prefetch_factor']
    level = _level(limits.files, FILES_PER_RANK + tensors)
    found = f'{_count(limits.files)} in a process, needed up to {FILES_PER_RANK + tensors}'
    fix = f'ulimit -n {4 * (FILES_PER_RANK + tensors)}' if level != OK else ''
    return [Finding('open files', level, found, fix)]


def _threads(subject: Subject, limits: Limits) -> List[Finding]:
    workers = subject.loader()['num_workers']
    # Loader processes of the training and of the validation exist at the same time.
    needed = subject.nproc * (THREADS_PER_RANK + 2 * workers * THREADS_PER_WORKER)
    level = _level(limits.threads, needed)
    found = f'{_count(limits.threads)} more may be started, needed up to {needed}'
    fix = f'ulimit -u, or the pids limit of the container: {4 * needed} or more' if level != OK else ''
    return [Finding('processes', level, found, fix)]


def _count(given: Optional[int]) -> str:
    return 'any number' if given is None else str(given)

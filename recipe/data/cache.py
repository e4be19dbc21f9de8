"""Keeps the pictures and training labels of a data root decoded, so that training maps files and decodes nothing.

The format, and the test for a stale entry, are in mmseg (``mmseg/datasets/transforms/decoded_cache.py`` of the patched
checkout). This module builds the cache, checks its disk space, and checks it before a training.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
from pathlib import Path
from typing import List, Optional

from recipe.core import console, files
from recipe.data import layout, parallel

SPOT_CHECKS = 8  # entries that are compared with their files pixel by pixel at the end


@dataclasses.dataclass(frozen=True)
class Built:
    """Result of a build.

    Attributes:
        pictures: Entries in the cache now.
        made: How many of them were made by this build.
    """

    pictures: int
    made: int


@dataclasses.dataclass(frozen=True)
class _Job:
    root: str
    folder: str
    source: str
    is_label: bool


def build(root: Path, folder: Path, workers: Optional[int] = None, progress: bool = True) -> Built:
    """Decode the files that are not in the cache or have changed since.

    May be killed at any time and started again: complete entries are kept, half-written ones are removed.

    Args:
        root: Data root with labelTrainIds.
        folder: Folder of the decoded pictures.
        workers: Processes; by default one per core.
        progress: Whether to show progress on stdout.

    Raises:
        console.UserError: Nothing to decode, too little room, files that cannot be decoded, or an entry that does not
            hold its picture's pixels.
    """
    root, folder = Path(root).absolute(), Path(folder).absolute()
    jobs = _jobs(root, folder)
    if not any(job.is_label for job in jobs) or all(job.is_label for job in jobs):
        raise console.UserError(
            f'{root} holds no pictures with labelTrainIds to decode', f'run cityscapes.py prepare --data_path {root}'
        )
    if folder.is_file():
        raise console.UserError(f'{folder} is a file', 'give --to the name of a folder')
    files.sweep(folder)
    passed_over = layout.passed_over(root)
    if passed_over:
        console.say(passed_over)
    faults = [_cache(job).fault(job.source) for job in jobs]
    waiting = [job for job, fault in zip(jobs, faults) if fault]
    if not waiting:
        _spot_check(jobs)
        return Built(len(jobs), 0)
    _state_size(folder, jobs, waiting)
    results = parallel.run(_decode, waiting, 'decoded pictures', workers, progress)
    failed = [f'{job.source}: {fault}' for job, fault in zip(waiting, results) if fault]
    if failed:
        more = f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''
        raise console.UserError(f'{failed[0]}{more}', f'run cityscapes.py verify --data_path {root}')
    _spot_check(jobs)
    return Built(len(jobs), len(waiting))


def require_fresh(root: Path, folder: Path) -> None:
    """Check before a training that a cache is complete and current; reads no pixels.

    Args:
        root: Data root.
        folder: Its decoded cache.

    Raises:
        console.UserError: It is not.
    """
    root, folder = Path(root).absolute(), Path(folder).absolute()
    remake = f'run python tools/cityscapes.py cache --data_path {root} --to {folder}'
    if not folder.is_dir():
        raise console.UserError(f'--decoded_cache: there is no folder {folder}', remake)
    stale = []
    jobs = _jobs(root, folder)
    if not jobs:  # the demo set before it is drawn: a later check would come too late
        raise console.UserError(
            f'--decoded_cache: {root} holds no pictures yet', f'train without it first, then {remake}'
        )
    for job in jobs:
        fault = _cache(job).fault(job.source)
        if fault == 'is not there':
            fault = f'{job.source} is not in it'
        if fault:
            stale.append(fault)
    if stale:
        raise console.UserError(
            f'--decoded_cache: {folder} is stale, {len(stale)} of {len(jobs)} pictures ({stale[0]})', remake
        )
    console.say(f'decoded  {folder}: {len(jobs)} pictures, none changed since')


def _jobs(root: Path, folder: Path) -> List[_Job]:
    jobs: List[_Job] = []
    for part, suffix in ((layout.IMAGES, layout.IMAGE_SUFFIX), (layout.LABELS, layout.TRAIN_IDS_SUFFIX)):
        for split in layout.SPLITS:
            place = root / part / split
            if place.is_dir():
                found = layout.stems(place, suffix)
                jobs += [_Job(str(root), str(folder), path, part == layout.LABELS) for path in found.values()]
    return jobs


def _cache(job: _Job):
    return _cache_of(job.folder, job.root)


@functools.lru_cache(maxsize=None)
def _cache_of(folder: str, root: str):
    from recipe.data.transforms.decoded_cache import DecodedCache

    return DecodedCache(folder, root)


def _state_size(folder: Path, jobs: List[_Job], waiting: List[_Job]) -> None:
    """Print the disk space that the build needs, and stop if there is less."""
    needed = sum(map(_entry_bytes, waiting))
    place = folder
    while not place.exists():
        place = place.parent
    # A stale entry is replaced only after the new one is written, so its space does not count as free.
    free = shutil.disk_usage(str(place)).free
    console.say(
        f'{folder}: {len(waiting)} of {len(jobs)} pictures to decode, '
        f'{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free'
    )
    if needed > free:
        raise console.UserError(
            f'the decoded pictures need {needed / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free',
            'make room or give another --to',
        )


def _entry_bytes(job: _Job) -> int:
    from PIL import Image

    from recipe.data.transforms import decoded_cache

    try:
        with Image.open(job.source) as picture:
            width, height = picture.size
    except OSError:
        return 0  # decoding it will say what is wrong
    return decoded_cache.PAGE + width * height * (1 if job.is_label else 3)


def _decode(job: _Job) -> Optional[str]:
    """Make one entry; returns what is wrong with its source, if anything."""
    from recipe.data.transforms import decoded_cache, picture_file

    path = Path(_cache(job).entry_path(job.source))
    try:
        state = decoded_cache.source_state(job.source)
        pixels = picture_file.PictureFile(job.source, job.is_label).window()
    except ValueError as error:
        return str(error)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as partial:
        decoded_cache.write_entry(str(partial), pixels, state)
    return None


def _spot_check(jobs: List[_Job]) -> None:
    """Compare some entries with the decoding of OpenCV and Pillow, which upstream's loading uses."""
    import mmcv
    import numpy as np

    for job in random.sample(jobs, min(SPOT_CHECKS, len(jobs))):
        flag, backend = ('unchanged', 'pillow') if job.is_label else ('color', 'cv2')
        pixels = mmcv.imfrombytes(Path(job.source).read_bytes(), flag=flag, backend=backend)
        if not np.array_equal(_cache(job).get(job.source), pixels):
            raise console.UserError(
                f'{_cache(job).entry_path(job.source)} does not hold the pixels of its picture',
                'delete it and run again: python tools/cityscapes.py cache --data_path ROOT --to FOLDER',
            )

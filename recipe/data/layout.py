"""File names and folders of a Cityscapes data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from recipe.core import files

SPLITS = ('train', 'val')
IMAGES, LABELS, COARSE = 'leftImg8bit', 'gtFine', 'gtCoarse'
IMAGE_SUFFIX = '_leftImg8bit.png'
POLYGON_SUFFIX = '_gtFine_polygons.json'
LABEL_IDS_SUFFIX = '_gtFine_labelIds.png'
TRAIN_IDS_SUFFIX = '_gtFine_labelTrainIds.png'
INSTANCE_IDS_SUFFIX = '_gtFine_instanceIds.png'
ZIPS = {IMAGES: 'leftImg8bit_trainvaltest.zip', LABELS: 'gtFine_trainvaltest.zip'}
OFFICIAL_COUNTS = {'train': 2975, 'val': 500}
OFFICIAL_SIZE = (2048, 1024)  # width, height in pixels
DEMO_FILE = 'demo.json'  # description of a demo set
DECODED = 'decoded'  # default folder of the decoded cache, below the root

# Prefix of files that are being written; readers skip them, the next run removes them.


def walk(folder: Path) -> Iterator[Tuple[str, os.DirEntry]]:
    """Yield every file below a folder as (path relative to it with '/', entry), in sorted order.

    Symbolic links are followed, as the trainer does; a broken one is yielded as a file. The recipe's half-written files
    are
    left out.
    """
    pending: List[Tuple[str, str]] = [('', str(folder))]
    while pending:
        prefix, path = pending.pop()
        with os.scandir(path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.is_dir():
                pending.append((f'{prefix}{entry.name}/', entry.path))
            elif not entry.name.startswith(files.PARTIAL_PREFIX):
                yield prefix + entry.name, entry


def stems(folder: Path, suffix: str) -> Dict[str, str]:
    """Map 'city/city_000000_000019' to the path of each file below a folder that ends with a suffix."""
    return {name[: -len(suffix)]: entry.path for name, entry in walk(folder) if name.endswith(suffix)}

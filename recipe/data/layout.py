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
OFFICIAL_CITIES = {
    *('aachen', 'bochum', 'bremen', 'cologne', 'darmstadt', 'dusseldorf', 'erfurt', 'hamburg', 'hanover', 'jena'),
    *('krefeld', 'monchengladbach', 'strasbourg', 'stuttgart', 'tubingen', 'ulm', 'weimar', 'zurich'),
    *('frankfurt', 'lindau', 'munster'),
}
PREPARE = 'prepare: python tools/cityscapes.py prepare --data_path ROOT'
REMAKE = 'prepare --force: python tools/cityscapes.py prepare --data_path ROOT --force'
DEMO_FILE = 'demo.json'  # description of a demo set
DECODED = 'decoded'  # default folder of the decoded cache, below the root


def walk(folder: Path, hidden: bool = False) -> Iterator[Tuple[str, os.DirEntry]]:
    """Yield every file below a folder as (path relative to it with '/', entry), in sorted order.

    Symbolic links are followed, as the trainer does; a broken one is yielded as a file. Files whose names begin with a
    dot are left out, as mmengine does: macOS's companions of other files (``._NAME``), the recipe's half-written files.

    Args:
        folder: Where to begin.
        hidden: Yield only what is otherwise left out.
    """
    pending: List[Tuple[str, str]] = [('', str(folder))]
    while pending:
        prefix, path = pending.pop()
        with os.scandir(path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.is_dir():
                pending.append((f'{prefix}{entry.name}/', entry.path))
            elif is_hidden(entry.name) == hidden:
                yield prefix + entry.name, entry


def stems(folder: Path, suffix: str) -> Dict[str, str]:
    """Map 'city/city_000000_000019' to the path of each file below a folder that ends with a suffix."""
    return {name[: -len(suffix)]: entry.path for name, entry in walk(folder) if name.endswith(suffix)}


def is_hidden(name: str) -> bool:
    """Whether readers pass over a file of this name."""
    return name.startswith('.')


def passed_over(root: Path) -> str:
    """Say how many files of a data set are passed over because of their names; empty if none is."""
    suffixes = (IMAGE_SUFFIX, POLYGON_SUFFIX, LABEL_IDS_SUFFIX, TRAIN_IDS_SUFFIX)
    found = [
        entry.path
        for part in (IMAGES, LABELS)
        if (root / part).is_dir()
        for name, entry in walk(root / part, hidden=True)
        if name.endswith(suffixes) and not entry.name.startswith(files.PARTIAL_PREFIX)
    ]
    if not found:
        return ''
    return f'passed over {len(found)} file{"s" * (len(found) > 1)} whose names begin with a dot, such as {found[0]}'

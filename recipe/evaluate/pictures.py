"""The pictures of a split and the files that belong to each."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Dict, Iterator, List, Tuple

from recipe.core import console
from recipe.data import facts, layout, parallel
from recipe.data.sets import pairs
from recipe.data.sets.file import DataSet

SPLITS = ('val', 'test')
COUNTS = {'val': layout.OFFICIAL_COUNTS['val'], 'test': 1525}


@dataclass(frozen=True)
class Picture:
    """A picture and its labels. Only the picture is there in any case.

    Attributes:
        name: File name of its prediction: its own, which the test server takes; of another set, made from its path.
        path: The picture.
        labels: Train ids; of another set, as it codes them.
        label_ids: Label ids; empty for another set than Cityscapes.
        instances: Instance ids; likewise.
    """

    name: str
    path: str
    labels: str
    label_ids: str
    instances: str


def find(root: Path, split: str) -> List[Picture]:
    """List the pictures of a split, sorted by city and name.

    Args:
        root: Cityscapes root.
        split: One of ``SPLITS``.

    Raises:
        console.UserError: There are none, two have one name, or the real data set does not have as many as it should.
    """
    folder = root / layout.IMAGES / split
    stems: Dict[str, str] = layout.stems(folder, layout.IMAGE_SUFFIX) if folder.is_dir() else {}
    expected = len(stems) if (root / layout.DEMO_FILE).is_file() else COUNTS[split]
    if not stems or len(stems) != expected:
        raise console.UserError(
            f'{folder} holds {len(stems) or "no"} pictures (*{layout.IMAGE_SUFFIX})'
            + (f', the {split} split has {expected}' if expected else ''),
            f'unpack {layout.ZIPS[layout.IMAGES]} again',
        )
    found: Dict[str, Picture] = {}
    for stem, path in stems.items():
        name = f'{PurePosixPath(stem).name}{layout.IMAGE_SUFFIX}'
        if name in found:
            raise console.UserError(f'{found[name].path} and {path} have one name', 'remove one of them')
        labels = f'{root / layout.LABELS / split / stem}'
        found[name] = Picture(
            name,
            path,
            labels + layout.TRAIN_IDS_SUFFIX,
            labels + layout.LABEL_IDS_SUFFIX,
            labels + layout.INSTANCE_IDS_SUFFIX,
        )
    return [*found.values()]


def of_set(data: DataSet, split: str) -> List[Picture]:
    """List the pictures of a split of another set than Cityscapes, sorted by path.

    Raises:
        console.UserError: There are none.
    """
    if split not in data.splits:
        raise console.UserError(
            f'--split={split}: {data.path} has no such split', f'give one of {", ".join(data.splits)}, or name it there'
        )
    found: Dict[str, Picture] = {}
    for pair in pairs.find(data.root, data.splits[split], data.image_suffixes, data.label_suffix).pairs:
        stem = pair.name.replace('/', '__')
        name = next(one for one in _file_names(stem) if one not in found)
        found[name] = Picture(name, pair.image, pair.label, '', '')
    if not found:
        raise console.UserError(f'{data.path}: split {split} has no pairs', 'see python tools/dataset.py verify FILE')
    return [*found.values()]


def _file_names(stem: str) -> Iterator[str]:
    yield f'{stem}.png'
    for number in itertools.count(2):
        yield f'{stem}__{number}.png'


def size(picture: Picture) -> Tuple[int, int]:
    """(width, height) of a picture.

    Raises:
        console.UserError: It cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(picture.path) as opened:
            width, height = opened.size
            return width, height
    except (OSError, SyntaxError, ValueError) as error:
        raise console.UserError(f'cannot read {picture.path}: {error}') from None


def digest(pictures: List[Picture]) -> str:
    """A hash of names, sizes and times of change of picture files."""
    state = [(picture.name, Path(picture.path).stat()) for picture in pictures]
    lines = [f'{name} {status.st_size} {status.st_mtime_ns}\n' for name, status in state]
    return hashlib.sha256(''.join(lines).encode()).hexdigest()


def require_whole(pictures: List[Picture], progress: bool = True) -> str:
    """Read each picture whole; for a split that ``verify`` does not know.

    Returns:
        A summary, one line.

    Raises:
        console.UserError: Names the first damaged one and how many there are.
    """
    jobs = [facts.Job(picture.path, is_label=False, classes=facts.Classes(0)) for picture in pictures]
    faults = [
        f'{job.path}: {finding.fault}'
        for job, finding in zip(jobs, parallel.run(facts.read, jobs, 'checking files', progress=progress))
        if finding.fault
    ]
    if faults:
        raise console.UserError(faults[0] + (f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''))
    return f'{len(pictures)} pictures, all whole'


def missing(pictures: List[Picture], kind: str) -> List[str]:
    """Files of one kind that are not there.

    Args:
        pictures: The pictures.
        kind: Attribute of ``Picture``.
    """
    return [path for path in (getattr(picture, kind) for picture in pictures) if not Path(path).is_file()]

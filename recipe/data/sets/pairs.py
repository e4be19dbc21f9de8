"""Finds the pairs of picture and label of a split. Standard library only, Python 3.8 on."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

from recipe.core import console
from recipe.data import layout
from recipe.data.sets.file import SHEET, Split


class Pair(NamedTuple):
    """A picture and its label; either may be missing on the disk.

    Attributes:
        name: Path of the picture below the folder of the pictures, with '/', without its suffix.
        image: The picture.
        label: The label.
    """

    name: str
    image: str
    label: str


class Found(NamedTuple):
    """What belongs to a split.

    Attributes:
        pairs: Sorted by the path of the picture.
        lone_images: Pictures whose label is not there; they are no pairs.
        lone_labels: Labels whose picture is not there.
    """

    pairs: List[Pair]
    lone_images: List[Pair]
    lone_labels: List[str]


def find(root: Path, split: Split, image_suffixes: Sequence[str], label_suffix: str) -> Found:
    """Find the pairs of a split.

    Args:
        root: Root of the set.
        split: Which.
        image_suffixes: Ends of the names of pictures.
        label_suffix: End of the names of labels.

    Raises:
        console.UserError: A folder or a list file is missing or cannot be read.
    """
    if split.list is not None:
        return _listed(root, split, image_suffixes, label_suffix)
    pairs: List[Pair] = []
    lone: List[Pair] = []
    others: List[str] = []
    same = split.images == split.labels
    for prefix, images, labels in _folders(root, split):
        taken = {
            name: path for name, path in _files(images, image_suffixes) if not (same and _ends(name, (label_suffix,)))
        }
        stems: Dict[str, str] = {}
        for name, path in taken.items():
            stems.setdefault(_without(name, image_suffixes), path)
        there = {_without(name, (label_suffix,)): path for name, path in _files(labels, (label_suffix,))}
        for stem, path in stems.items():
            if not is_chosen(prefix + stem, split):
                continue
            pair = Pair(prefix + stem, path, there.get(stem) or str(labels / f'{stem}{label_suffix}'))
            (pairs if stem in there else lone).append(pair)
        others += [path for stem, path in there.items() if stem not in stems and is_chosen(prefix + stem, split)]
    return Found(sorted(pairs, key=lambda pair: pair.image), lone, others)


def _folders(root: Path, split: Split) -> Iterator[Tuple[str, Path, Path]]:
    """What a ``*`` stands for with '/' behind it, folder of pictures, folder of labels."""
    if '*' not in split.images:
        images, labels = root / split.images, root / split.labels
        for folder in (images, labels):
            if not folder.is_dir():
                raise console.UserError(f'{folder}: no such folder', 'correct "splits" in dataset.json')
        yield '', images, labels
        return
    before, _, after = split.images.partition('*')
    pattern = re.compile(f'{re.escape(before)}(.*){re.escape(after)}')
    found = sorted(path for path in root.glob(split.images) if path.is_dir() and not path.name.startswith('.'))
    for images in found:
        match = pattern.fullmatch(images.relative_to(root).as_posix())
        if match and (root / split.labels.replace('*', match[1])).is_dir():
            yield f'{match[1]}/', images, root / split.labels.replace('*', match[1])
    if not found:
        raise console.UserError(f'{root / split.images}: no such folder', 'correct "splits" in dataset.json')


def _files(folder: Path, suffixes: Sequence[str]) -> List[Tuple[str, str]]:
    """Names below a folder with '/', and paths, of the files with one of some suffixes in any case."""
    return [(name, entry.path) for name, entry in layout.walk(folder) if _ends(name, suffixes) and name != SHEET]


def _ends(name: str, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(suffix.lower() for suffix in suffixes))


def _without(name: str, suffixes: Sequence[str]) -> str:
    """A name without the longest of the suffixes that it has."""
    fitting = [suffix for suffix in suffixes if suffix and name.lower().endswith(suffix.lower())]
    return name[: -len(max(fitting, key=len))] if fitting else name


def is_chosen(name: str, split: Split) -> bool:
    """Whether a pair of the split's folders belongs to it, by its name."""
    if split.only and not any(fnmatch.fnmatchcase(name, pattern) for pattern in split.only):
        return False
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in split.without):
        return False
    return (split.first is None or name >= split.first) and (split.before is None or name < split.before)


def _listed(root: Path, split: Split, image_suffixes: Sequence[str], label_suffix: str) -> Found:
    """Pairs of a list file: ``picture label`` below the root, or a name below the split's folders, in each line."""
    assert split.list is not None, 'the caller has looked'
    path = root / split.list
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except OSError as error:
        raise console.UserError(f'{path}: {console.reason(error)}', 'correct "splits" in dataset.json') from None
    except UnicodeDecodeError:
        raise console.UserError(f'{path} is not in UTF-8', 'save it as UTF-8') from None
    pairs: List[Pair] = []
    lone: List[Pair] = []
    for number, line in enumerate(lines, 1):
        words = re.split(r'[\t,;]|\s+', line.strip()) if line.strip() else []
        words = [word for word in words if word]
        if not words or line.lstrip().startswith('#'):
            continue
        if len(words) == 1:
            stem = _without(words[0], image_suffixes)
            images = root / split.images
            options = [images / f'{stem}{suffix}' for suffix in image_suffixes]
            image = next((one for one in options if one.is_file()), options[0])
            label = root / split.labels / f'{stem}{label_suffix}'
        else:
            stem, image, label = (
                _without(words[0], image_suffixes),
                root / words[0].lstrip('/'),
                root / words[1].lstrip('/'),
            )
        if '..' in Path(stem).parts:
            raise console.UserError(f'{path}, line {number}: {words[0]} leads out of the set', 'correct the line')
        if not is_chosen(stem, split):
            continue
        (pairs if label.is_file() else lone).append(Pair(stem, str(image), str(label)))
    return Found(sorted(pairs, key=lambda pair: pair.image), lone, [])

"""Reads and checks a picture file of the data set, and sums it up in a few numbers, its facts.

Facts of undamaged files are cached by name, size and time of change, so a check before each training costs only a
directory listing. Whether a fact is a fault is decided anew each time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from recipe.core import console, files, json_files
from recipe.data import exif_orientation, layout, picture_faults

CACHE_NAME = '.verify_cache.json'
_CACHE_FORMAT = 3
_MOST_CACHE_BYTES = 1 << 30
IGNORED = 255
NO_CLASS = -1  # highest class of a picture, and of a label with every pixel ignored
_LABEL_IDS = 34  # Cityscapes' raw labels are 0 to 33
_TRAIN_IDS = 19  # labels for training are 0 to 18
# Pillow's modes in words. It reads 2 and 4 bits of grey as 8 bits, and multiplies the values.
_MODES = {
    **{'1': 'is 1-bit', 'L;2': 'is 2-bit', 'L;4': 'is 4-bit', 'L': 'is grey', 'P': 'has a palette'},
    **{'I': 'is 16-bit', 'I;16': 'is 16-bit', 'I;16B': 'is 16-bit', 'F': 'is 32-bit', 'LA': 'has an alpha channel'},
    **{'PA': 'has an alpha channel', 'RGBA': 'has colours and an alpha channel', 'RGB': 'has colours'},
}

# (width, height, highest class) of an undamaged file.
Facts = Tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes that labels may hold: 0 to number - 1, and 255.

    Args:
        number: How many.
        keys: Settings of a training that say how many, for messages.
    """

    number: int
    keys: Sequence[str] = ('model.decode_head.num_classes',)

    def options(self, number: int) -> str:
        """What to give for another number of classes."""
        overrides = ' '.join(f'{key}={number}' for key in self.keys)
        return f'if the set has {number} classes, train with -- {overrides} (and verify with --num_classes {number})'

    def beyond(self, found: str, highest: int) -> str:
        """Say that a label holds other classes, and how to train with them.

        Args:
            found: Which.
            highest: The highest of them.
        """
        return (
            f'holds {found}; labels of {self.number} classes hold 0 to {self.number - 1} and {IGNORED}: '
            f'{self.options(highest + 1)}'
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """A file to read.

    Args:
        path: Its path.
        is_label: Whether it is a label rather than a picture.
        classes: What labels may hold.
    """

    path: str
    is_label: bool
    classes: Classes


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of reading a file: its facts, or what is wrong with it."""

    facts: Optional[Facts] = None
    fault: Optional[str] = None


def read(job: Job) -> Finding:
    """Read and decode one whole file.

    Args:
        job: The file.
    """
    # Imported here: a check that the cache answers needs neither.
    from PIL import Image

    try:
        data = picture_faults.content(job.path)
        with picture_faults.described(data, job.path):
            with Image.open(io.BytesIO(data)) as picture:
                kind = picture.format
                picture.verify()  # checksums of all chunks, up to the end mark
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                mode, size = _mode(picture.mode, data), picture.size
                counts = picture.histogram() if job.is_label and mode in ('L', 'P') else []
                turned = exif_orientation.turned(picture)
    except picture_faults.PictureError as error:
        return Finding(fault=str(error))
    if kind != 'PNG':
        return Finding(fault=f'holds {kind} data, not PNG; unpack the original')
    if turned:
        return Finding(
            fault=f'its EXIF data says to turn it (orientation {turned}): pictures would be turned, but not labels; '
            f'unpack the original, or, if the label fits the picture as it is stored, remove that data: '
            f'exiftool -all= {shlex.quote(job.path)}'
        )
    if not job.is_label:
        if mode != 'RGB':
            return Finding(
                fault=f'picture {_MODES.get(mode, f"has Pillow mode {mode}")}, not 8-bit RGB; '
                'unpack the original, or save it as 8-bit RGB'
            )
        return Finding(facts=(*size, NO_CLASS))
    if mode not in ('L', 'P'):
        found = f'label {_MODES.get(mode, f"has colours (Pillow mode {mode})")}'
        colours = ': a colour picture is no label' if 'colours' in found else ''
        return Finding(
            fault=f'{found}, not 8-bit with one channel{colours}; save each pixel as the number of its class'
            f'{or_remake(job.path)}'
        )
    return _judge_values(size, [value for value, count in enumerate(counts[:256]) if count], job)


def _mode(mode: str, data: bytes) -> str:
    """Pillow's mode of a picture; ``L;2`` or ``L;4`` for a PNG file in grey whose values Pillow has multiplied."""
    depth, colour_type = data[24:26] if len(data) > 26 else b'\0\0'
    return f'L;{depth}' if mode == 'L' and colour_type == 0 and depth in (2, 4) else mode


def _judge_values(size: Tuple[int, int], values: List[int], job: Job) -> Finding:
    """Distinguish labelTrainIds from other labels by their values."""
    classes = [value for value in values if value != IGNORED]
    stray = [value for value in classes if value >= job.classes.number]
    if not stray:
        return Finding(facts=(*size, max(classes, default=NO_CLASS)))
    if job.classes.number == _TRAIN_IDS and IGNORED not in values and max(classes) < _LABEL_IDS and or_remake(job.path):
        return Finding(fault=f'holds {_named(stray)}: labelIds, not labelTrainIds{or_remake(job.path)}')
    return Finding(fault=job.classes.beyond(_named(stray), max(stray)) + or_remake(job.path))


def or_remake(label: str) -> str:
    """How to make a label again from its polygons; empty if it has none."""
    if not Path(label[: -len(layout.TRAIN_IDS_SUFFIX)] + layout.POLYGON_SUFFIX).is_file():
        return ''
    return f', or make it again from its polygons, run {layout.REMAKE}'


def _named(values: List[int]) -> str:
    shown = ', '.join(str(value) for value in values[:8])
    return shown if len(values) <= 8 else f'{shown} and {len(values) - 8} more'


class Cache:
    """Facts of undamaged files from earlier checks.

    A cache that is damaged, edited or of another format is ignored. An entry counts only while its file has the same
    size
    and time of change.

    Args:
        path: The cache's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: Dict[str, List[int]] = {}
        self.expected: Dict[str, int] = {}
        with contextlib.suppress(OSError, json_files.JsonError, KeyError, AttributeError):
            stored = json_files.read(path, dict, _MOST_CACHE_BYTES)
            entries, expected = stored['files'], stored['expected']
            if stored['format'] == _CACHE_FORMAT and stored['sha256'] == _digest(entries, expected):
                numbers = [*entries.values(), list(expected.values())]
                if all(isinstance(row, list) and {type(value) for value in row} <= {int} for row in numbers):
                    self.entries, self.expected = entries, expected

    def get(self, name: str, status: os.stat_result) -> Optional[Facts]:
        """Return a file's facts if they are known and the file has not changed since."""
        entry = self.entries.get(name)
        if entry is None or len(entry) != 5 or entry[:2] != [status.st_size, status.st_mtime_ns]:
            return None
        return entry[2], entry[3], entry[4]

    def replace(
        self, known: Dict[str, Tuple[os.stat_result, Facts]], expected: Dict[str, int], splits: Sequence[str]
    ) -> None:
        """Store the facts of all undamaged files; a cache that cannot be written is only a warning.

        Args:
            known: By name.
            expected: Pairs of each split that the user has said are meant.
            splits: The splits that were checked; what is known of others stays.
        """
        entries = {name: entry for name, entry in self.entries.items() if name.split('/')[1] not in splits}
        for name, (status, facts) in known.items():
            entries[name] = [status.st_size, status.st_mtime_ns, *facts]
        if (entries, expected) == (self.entries, self.expected):
            return
        text = json.dumps(
            {'format': _CACHE_FORMAT, 'sha256': _digest(entries, expected), 'files': entries, 'expected': expected}
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with files.whole(self.path) as partial:
                partial.write_text(text, encoding='utf-8')
        except OSError as error:
            console.warn(
                f'the result of the check cannot be kept in {self.path} ({console.reason(error)}); give --cache PATH'
            )


def _digest(entries: Any, expected: Any) -> str:
    return hashlib.sha256(json.dumps([entries, expected], sort_keys=True).encode()).hexdigest()


def cache_path(root: Path, given: Optional[Path] = None, name: str = CACHE_NAME) -> Path:
    """Return the file for what a check found out: as given, under its root, or under the user's cache folder.

    The user's folder is used if the root is read-only.
    """
    if given is not None:
        return given
    if os.access(str(root), os.W_OK):
        return root / name
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    folder = 'cityscapes_verify' if name == CACHE_NAME else 'dataset_verify'
    return base / folder / (hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16] + '.json')

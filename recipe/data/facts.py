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
from typing import Dict, List, Optional, Sequence, Tuple

from recipe.core import console, files
from recipe.data import exif_orientation

CACHE_NAME = '.verify_cache.json'
_CACHE_FORMAT = 2
IGNORED = 255
NO_CLASS = -1  # highest class of a picture, and of a label with every pixel ignored
_LABEL_IDS = 34  # Cityscapes' raw labels are 0 to 33
_TRAIN_IDS = 19  # labels for training are 0 to 18

# (width, height, highest class) of an undamaged file.
Facts = Tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Job:
    """A file to read.

    Args:
        path: Its path.
        is_label: Whether it is a label rather than a picture.
        num_classes: Labels may hold 0 to num_classes - 1, and 255.
    """

    path: str
    is_label: bool
    num_classes: int


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
        data = Path(job.path).read_bytes()
    except OSError as error:
        return Finding(fault=_unreadable(job.path, error))
    if not data:
        return Finding(fault='empty file (0 bytes); copy or unpack it again')
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind = picture.format
            picture.verify()  # checksums of all chunks, up to the end mark
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            mode, size = picture.mode, picture.size
            counts = picture.histogram() if job.is_label else []
            turned = exif_orientation.turned(picture)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        return Finding(fault=f'damaged or truncated picture ({error}); copy or unpack it again')
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
            return Finding(fault=f'picture of mode {mode}, not 8-bit RGB; unpack the original')
        return Finding(facts=(*size, NO_CLASS))
    if mode not in ('L', 'P'):
        return Finding(
            fault=f'label of mode {mode}, not 8-bit with one channel: a colour picture is no label; run prepare --force'
        )
    return _judge_values(size, [value for value, count in enumerate(counts[:256]) if count], job.num_classes)


def _judge_values(size: Tuple[int, int], values: List[int], num_classes: int) -> Finding:
    """Distinguish labelTrainIds from other labels by their values."""
    classes = [value for value in values if value != IGNORED]
    stray = [value for value in classes if value >= num_classes]
    if not stray:
        return Finding(facts=(*size, max(classes, default=NO_CLASS)))
    if IGNORED not in values and _TRAIN_IDS <= max(classes) < _LABEL_IDS:
        return Finding(fault=f'holds {_named(stray)}: labelIds, not labelTrainIds; run prepare --force')
    return Finding(
        fault=f'holds {_named(stray)}; '
        f'labels of {num_classes} classes hold 0 to {num_classes - 1} and 255: run prepare --force'
    )


def _named(values: List[int]) -> str:
    shown = ', '.join(str(value) for value in values[:8])
    return shown if len(values) <= 8 else f'{shown} and {len(values) - 8} more'


def _unreadable(path: str, error: OSError) -> str:
    if Path(path).is_symlink() and not Path(path).exists():
        return f'broken symbolic link to {os.readlink(path)}; mend the link or copy the file'
    return f'cannot be read ({error.strerror}); check its permissions and the disk'


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
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(path.read_text(encoding='utf-8'))
            body = stored['files']
            if stored['format'] == _CACHE_FORMAT and stored['sha256'] == _digest(body):
                self.entries = body

    def get(self, name: str, status: os.stat_result) -> Optional[Facts]:
        """Return a file's facts if they are known and the file has not changed since."""
        entry = self.entries.get(name)
        if entry is None or entry[:2] != [status.st_size, status.st_mtime_ns]:
            return None
        return entry[2], entry[3], entry[4]

    def replace(self, known: Dict[str, Tuple[os.stat_result, Facts]], splits: Sequence[str]) -> None:
        """Store the facts of all undamaged files; a cache that cannot be written is only a warning.

        Args:
            known: The facts, by name.
            splits: The splits that were checked; what is known of others stays.
        """
        entries = {name: entry for name, entry in self.entries.items() if name.split('/')[1] not in splits}
        for name, (status, facts) in known.items():
            entries[name] = [status.st_size, status.st_mtime_ns, *facts]
        if entries == self.entries:
            return
        text = json.dumps({'format': _CACHE_FORMAT, 'sha256': _digest(entries), 'files': entries})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with files.whole(self.path) as partial:
                partial.write_text(text, encoding='utf-8')
        except OSError as error:
            console.warn(f'the result of the check cannot be kept in {self.path} ({error.strerror}); give --cache PATH')


def _digest(entries: Dict[str, List[int]]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def cache_path(root: Path, given: Optional[Path] = None) -> Path:
    """Return the file for a data set's facts: as given, under its root, or under the user's cache folder.

    The user's folder is used if the root is read-only.
    """
    if given is not None:
        return given
    if os.access(str(root), os.W_OK):
        return root / CACHE_NAME
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return base / 'cityscapes_verify' / (hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16] + '.json')

"""Checks a set against its file: pairs, sizes, values, damage, duplicates, classes that never occur, orientation."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from recipe.core import console, files, json_files
from recipe.data import facts, parallel
from recipe.data.sets import coding, look, pairs
from recipe.data.sets.file import IGNORED, DataSet, value_text
from recipe.data.verify import Fault

CACHE_NAME = '.dataset_verify_cache.json'
_CACHE_FORMAT = 1
_MOST_CACHE_BYTES = 1 << 30
SPLITS = ('train', 'val')


@dataclasses.dataclass
class Report:
    """The result of a check.

    Attributes:
        faults: Everything that is wrong.
        n_pairs: Pairs of each split.
        accepted: Faults that "accept" in the file allows, by their name.
        pixels: Labels that hold each trained class, by name.
        from_cache: Files that had not changed since an earlier check.
        n_files: Files checked.
        seconds: How long it took.
    """

    faults: List[Fault] = dataclasses.field(default_factory=list)
    n_pairs: Dict[str, int] = dataclasses.field(default_factory=dict)
    accepted: Dict[str, int] = dataclasses.field(default_factory=dict)
    from_cache: int = 0
    n_files: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def summary(self) -> str:
        """A summary, one line."""
        found = ', '.join(f'{split} {count} pairs' for split, count in self.n_pairs.items()) or 'no pairs'
        verdict = 'no faults' if self.ok else f'{len(self.faults)} fault{"s" * (len(self.faults) > 1)}'
        accepted = ''.join(f'; accepted: {count} x {kind}' for kind, count in self.accepted.items())
        return (
            f'{found}; {verdict}{accepted}; {self.n_files} files, {self.from_cache} unchanged since the last check; '
            f'{self.seconds:.1f} s'
        )


def require(data: DataSet, progress: bool = True, splits: Sequence[str] = SPLITS) -> str:
    """Check a set before it is trained or evaluated.

    Returns:
        A summary, one line.

    Raises:
        console.UserError: The first fault, how many there are and how to see all.
    """
    report = verify(data, progress=progress, splits=splits)
    if not report.ok:
        more = len(report.faults) - 1
        raise console.UserError(
            f'{report.faults[0]}' + (f' (and {more} more faults)' if more else ''),
            f'all: python tools/dataset.py verify {shlex.quote(str(data.path))}',
        )
    return f'{data.path}: {report.summary()}'


def verify(
    data: DataSet,
    workers: Optional[int] = None,
    progress: bool = True,
    splits: Sequence[str] = SPLITS,
) -> Report:
    """Check a set.

    Args:
        data: The set.
        workers: Processes that read; by default one per core.
        progress: Whether to show progress on stdout.
        splits: Which splits of the file to check.

    Returns:
        The report; no fault raises.
    """
    start = time.monotonic()
    report = Report()
    found: Dict[str, List[pairs.Pair]] = {}
    for name in (name for name in splits if name in data.splits):
        try:
            one = pairs.find(data.root, data.splits[name], data.image_suffixes, data.label_suffix)
        except (console.UserError, OSError) as error:
            report.faults.append(_of_missing_split(data, name, error))
            continue
        found[name] = one.pairs
        report.n_pairs[name] = len(one.pairs)
        for pair in one.lone_images:
            fix = 'bring the label, or leave the picture out ("without")'
            _add(data, report, 'picture without a label', pair.image, f'its label {pair.label} is missing; {fix}')
        report.faults += [
            Fault(path, 'label without a picture: no picture has its name; bring it, or move the label away')
            for path in one.lone_labels
        ]
        if not one.pairs and not one.lone_images and not one.lone_labels:
            place = data.splits[name].list or data.splits[name].images
            report.faults.append(
                Fault(str(data.root / place), f'empty split {name}: it has no pairs; correct "splits" in {data.path}')
            )
    try:
        _check_files(data, found, report, workers, progress)
    except OSError as error:
        report.faults.append(Fault(str(error.filename or data.root), f'unreadable: {console.reason(error)}'))
    report.seconds = time.monotonic() - start
    return report


def _of_missing_split(data: DataSet, name: str, error: Exception) -> Fault:
    if isinstance(error, console.UserError):
        place, _, problem = error.problem.partition(': ')
        return Fault(place, f'missing split {name}: {problem or "cannot be read"}; {error.fix}')
    place = str(getattr(error, 'filename', None) or data.root)
    return Fault(place, f'missing split {name}: {console.reason(error)}; check its permissions and the disk')


def _add(data: DataSet, report: Report, kind: str, path: str, text: str) -> None:
    """Report a fault that the file may accept."""
    if kind in data.accept:
        report.accepted[kind] = report.accepted.get(kind, 0) + 1
    else:
        report.faults.append(Fault(path, f'{kind}: {text}, or add "{kind}" to "accept" in {data.path}'))


def _check_files(
    data: DataSet, found: Dict[str, List[pairs.Pair]], report: Report, workers: Optional[int], progress: bool
) -> None:
    cache = _Cache(data)
    everything = [pair for one in found.values() for pair in one]
    images = cache.known([pair.image for pair in everything], look.Image)
    labels = cache.known([pair.label for pair in everything], look.Label)
    report.from_cache = len(images) + len(labels)
    new_images = list(dict.fromkeys(pair.image for pair in everything if pair.image not in images))
    new_labels = list(dict.fromkeys(pair.label for pair in everything if pair.label not in labels))
    report.n_files = report.from_cache + len(new_images) + len(new_labels)
    jobs = [look.LabelJob(path, data.coding == 'rgb') for path in new_labels]
    images.update(zip(new_images, parallel.run(look.image, new_images, 'checking pictures', workers, progress)))
    labels.update(zip(new_labels, parallel.run(look.label, jobs, 'checking labels', workers, progress)))
    cache.store(images, labels)
    lookup = {pair[0]: pair[1] for pair in data.codes}
    occurs: Dict[str, Set[int]] = {name: set() for name in found}
    for name, one in found.items():
        for pair in one:
            occurs[name] |= _judge(data, pair, images[pair.image], labels[pair.label], lookup, report)
    _check_duplicates(data, found, images, report)
    for number, trained in enumerate(data.trained):
        if found.get('train') and number not in occurs['train']:
            fix = f'check its value, {trained.values[0]}, or map it to null ("map": {{"{trained.name}": null}})'
            _add(
                data,
                report,
                'class that never occurs',
                str(data.path),
                f'no label to train on holds {trained.name}; {fix}',
            )


def _judge(
    data: DataSet, pair: pairs.Pair, image: look.Image, label: look.Label, lookup: Dict[int, int], report: Report
) -> Set[int]:
    """Judge a pair, and return the train ids in its label."""
    if image.fault:
        report.faults.append(Fault(pair.image, image.fault))
    if label.fault:
        report.faults.append(Fault(pair.label, label.fault))
        return set()
    if not image.fault and image.size != label.size:
        both = f'it is {label.size[0]}x{label.size[1]} pixels, its picture {image.size[0]}x{image.size[1]}'
        report.faults.append(Fault(pair.label, f'different sizes: {both}; make both of one size'))
    codes = {int(code) for code in coding.class_values(np.array([*label.codes], int), data.instances)}
    unknown = sorted(codes - set(lookup))
    if unknown:
        shown = ', '.join(value_text(code, data.coding) for code in unknown[:5])
        more = f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''
        report.faults.append(
            Fault(
                pair.label,
                f'unknown value: it holds {shown}{more}; name it in "classes" or "ignore" of {data.path}, '
                'or read all labels: python tools/dataset.py inspect DIR --samples=0 --force',
            )
        )
    train_ids = {lookup[code] for code in codes if code in lookup} - {IGNORED}
    if not train_ids and not unknown:
        _add(data, report, 'all-ignored label', pair.label, 'every pixel is ignored; leave the pair out ("without")')
    return train_ids


def _check_duplicates(
    data: DataSet, found: Dict[str, List[pairs.Pair]], images: Dict[str, look.Image], report: Report
) -> None:
    """Report pictures of one split that another split has as well."""
    seen: Dict[str, Tuple[str, str]] = {}
    for name, one in found.items():
        for pair in one:
            digest = images[pair.image].digest
            if not digest:
                continue
            split, path = seen.setdefault(digest, (name, pair.image))
            if split != name:
                what = f'the same picture as {path}, of {split}' if path != pair.image else f'it is in {split} as well'
                _add(data, report, 'duplicate', pair.image, f'{what}, which spoils the validation; remove one of them')


class _Cache:
    """What is known of undamaged files from earlier checks; an entry counts while size and time of change are the same.

    A cache that is damaged or of another version is ignored, and one that cannot be written is no fault.
    """

    def __init__(self, data: DataSet) -> None:
        self._is_rgb = data.coding == 'rgb'
        self._path = facts.cache_path(data.root, name=CACHE_NAME)
        self._entries: Dict[str, List[Any]] = {}
        self._stamps: Dict[str, Tuple[int, int]] = {}
        with contextlib.suppress(OSError, json_files.JsonError, KeyError):
            stored = json_files.read(self._path, dict, _MOST_CACHE_BYTES)
            if stored['format'] == _CACHE_FORMAT and stored['sha256'] == _digest(stored['files']):
                self._entries = stored['files']

    def known(self, paths: Sequence[str], kind: Any) -> Dict[str, Any]:
        """What is known of files of a kind, ``look.Image`` or ``look.Label``, by path."""
        found = {}
        for path in paths:
            with contextlib.suppress(OSError, KeyError, TypeError, ValueError, IndexError):
                status = Path(path).stat()
                self._stamps[path] = (status.st_size, status.st_mtime_ns)
                size, time_ns, width, height, *rest = self._entries[self._key(path, kind)]
                if (size, time_ns) == self._stamps[path]:
                    found[path] = (
                        look.Image((width, height), rest[0])
                        if kind is look.Image
                        else look.Label((width, height), codes=dict.fromkeys(rest[0], 1))
                    )
        return found

    def _key(self, path: str, kind: Any) -> str:
        return f'{"image" if kind is look.Image else "rgb" if self._is_rgb else "label"} {path}'

    def store(self, images: Dict[str, look.Image], labels: Dict[str, look.Label]) -> None:
        """Keep what was found out about undamaged files."""
        entries = dict(self._entries)
        for path, image in images.items():
            if not image.fault and path in self._stamps:
                entries[self._key(path, look.Image)] = [*self._stamps[path], *image.size, image.digest]
        for path, label in labels.items():
            if not label.fault and path in self._stamps:
                entries[self._key(path, look.Label)] = [*self._stamps[path], *label.size, sorted(label.codes)]
        if entries == self._entries:
            return
        text = json.dumps({'format': _CACHE_FORMAT, 'sha256': _digest(entries), 'files': entries})
        with contextlib.suppress(OSError):
            files.write_text(self._path, text)


def _digest(entries: Any) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()

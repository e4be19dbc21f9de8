"""Checks a Cityscapes root before training: layout, pairs, counts, and every file read whole."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from recipe.core import console, json_files
from recipe.data import diagnosis, facts, layout, parallel

NUM_CLASSES = 19
# This many training labels without the two highest classes mean labels of fewer classes, not chance.
ENOUGH_TO_MISS_A_CLASS = 20


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        path: The file or folder.
        message: What is wrong and what to do, one line.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f'{self.path}: {self.message}'


@dataclasses.dataclass
class VerifyReport:
    """The result of a check.

    Args:
        n_pairs: Complete pairs of picture and label in each split.
        faults: Everything that is wrong, in the order found.
        seconds: How long the check took.
        from_cache: Files that had not changed since an earlier check and were not read again.
        n_files: Files checked.
        n_ignored: Labels with every pixel ignored, in each split.
        passed_over: What was passed over, one line; empty if nothing was.
    """

    n_pairs: Dict[str, int] = dataclasses.field(default_factory=dict)
    faults: List[Fault] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    from_cache: int = 0
    n_files: int = 0
    n_ignored: Dict[str, int] = dataclasses.field(default_factory=dict)
    passed_over: str = ''

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def summary(self) -> str:
        """Return a summary, one line."""
        pairs = ', '.join(f'{split} {count} pairs' for split, count in self.n_pairs.items()) or 'no pairs'
        verdict = 'no faults' if self.ok else f'{len(self.faults)} fault{"s" * (len(self.faults) > 1)}'
        ignored = sum(self.n_ignored.values())
        if ignored:
            verdict += f'; {ignored} label{"s" * (ignored > 1)} without any class'
        files = f'{self.n_files} files, {self.from_cache} unchanged since the last check'
        notes = f'; {self.passed_over}' if self.passed_over else ''
        return f'{pairs}; {verdict}; {files}; {self.seconds:.1f} s{notes}'


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A picture and its label; name is 'split/city/stem'."""

    split: str
    name: str
    image: str
    label: str


def verify(
    root: Path,
    expect: Optional[Dict[str, int]] = None,
    workers: Optional[int] = None,
    progress: bool = True,
    cache: Optional[Path] = None,
    num_classes: int = NUM_CLASSES,
    class_keys: Optional[Sequence[str]] = None,
    splits: Sequence[str] = layout.SPLITS,
) -> VerifyReport:
    """Check a data root.

    Args:
        root: Folder that holds leftImg8bit/ and gtFine/.
        expect: Pairs that each split must have; by default those of an earlier check, the counts in demo.json, or, if
            all cities are Cityscapes', its own. Any other set may have any number.
        workers: Processes that read files; by default one per core.
        progress: Whether to show progress on stdout.
        cache: File for the facts; by default see ``facts.cache_path``.
        num_classes: Number of classes; labels may hold 0 to num_classes - 1, and 255.
        class_keys: Settings of a training that say so, for messages; by default those of the recipe.
        splits: What to check.

    Returns:
        The report; it holds every fault, and no fault raises.
    """
    start = time.monotonic()
    root = Path(root).absolute()
    report = VerifyReport()
    classes = facts.Classes(num_classes, tuple(class_keys)) if class_keys else facts.Classes(num_classes)
    try:
        report.faults += [Fault(one.path, f'{one.problem}; {one.fix}') for one in diagnosis.diagnose(root, splits)]
        if not report.faults:
            report.passed_over = layout.passed_over(root)
            store = facts.Cache(facts.cache_path(root, cache))
            given = store.expected if expect is None else expect
            counts, size = _expected(root, splits, report)
            pairs = _pairs(root, splits, report)
            jobs = [
                facts.Job(path, is_label, classes)
                for pair in pairs
                for path, is_label in ((pair.image, False), (pair.label, True))
            ]
            known = _read_files(root, jobs, store, workers, progress, report)
            _check_counts(root, {**counts, **given}, expect or {}, report)
            kept = (
                given if all(report.n_pairs.get(split) == number for split, number in given.items()) else store.expected
            )
            store.replace(
                {path[len(str(root)) + 1 :]: entry for path, entry in known.items()}, kept, tuple(report.n_pairs)
            )
            highest = _judge_pairs(pairs, known, size, classes, splits, report)
            _check_ignored(root, highest, report)
            _check_classes(root, highest.get('train', {}), classes, report)
    except OSError as error:  # a folder that cannot be listed, a disk that fails
        message = f'cannot be read ({console.reason(error)}); check its permissions and the disk'
        report.faults.append(Fault(str(error.filename or root), message))
    report.seconds = time.monotonic() - start
    return report


def _expected(
    root: Path, splits: Sequence[str], report: VerifyReport
) -> Tuple[Dict[str, int], Optional[Tuple[int, int]]]:
    """Return the expected counts, and the picture size (width, height); empty and None if any would do."""
    path = root / layout.DEMO_FILE
    if not path.is_file():
        folders = [entry for split in splits for entry in (root / layout.IMAGES / split).iterdir()]
        is_official = all(entry.name in layout.OFFICIAL_CITIES for entry in folders if entry.is_dir())
        return (layout.OFFICIAL_COUNTS if is_official else {}), None
    try:
        demo = json_files.read(path, dict)
        counts = {split: json_files.whole_number(demo[split]) for split in layout.SPLITS}
        return counts, (json_files.whole_number(demo['width']), json_files.whole_number(demo['height']))
    except (OSError, ValueError, KeyError) as error:
        said = f'{error} is missing' if isinstance(error, KeyError) else console.reason(error)
        message = f'not readable as the description of a demo set ({said}); make the demo set anew in an empty folder'
        report.faults.append(Fault(str(path), message))
    return {}, None


def _pairs(root: Path, splits: Sequence[str], report: VerifyReport) -> List[_Pair]:
    """Match pictures with labels by name and report files without a partner."""
    pairs: List[_Pair] = []
    seen: Dict[str, str] = {}
    for split in splits:
        images_dir, labels_dir = (root / part / split for part in (layout.IMAGES, layout.LABELS))
        images = _split_files(images_dir, layout.IMAGE_SUFFIX, report)
        labels = _split_files(labels_dir, layout.TRAIN_IDS_SUFFIX, report)
        matched = [stem for stem in images if stem in labels]
        report.n_pairs[split] = len(matched)
        if images and not labels:
            report.faults.append(Fault(str(labels_dir), _no_labels(root, labels_dir)))
        elif labels and not images:
            message = f'no *{layout.IMAGE_SUFFIX}; unpack {layout.ZIPS[layout.IMAGES]} into {root}'
            report.faults.append(Fault(str(images_dir), message))
        else:
            _report_lonely(images, labels, images_dir, labels_dir, report)
        for stem in matched:
            if stem in seen:
                message = f'is in {seen[stem]} as well: one scene in two splits spoils the validation; remove one'
                report.faults.append(Fault(images[stem], message))
            seen[stem] = split
            pairs.append(_Pair(split, f'{split}/{stem}', images[stem], labels[stem]))
    return pairs


def _split_files(folder: Path, suffix: str, report: VerifyReport) -> Dict[str, str]:
    """Return 'city/stem' to path of the files with a suffix, and report misnamed and misplaced ones."""
    found: Dict[str, str] = {}
    for name, entry in layout.walk(folder):
        if name.endswith(suffix):
            stem = name[: -len(suffix)]
            if '/' not in stem:
                city = stem.split('_')[0]
                report.faults.append(Fault(entry.path, f'not in a folder of its city; move it to {folder / city}'))
            found[stem] = entry.path
        elif name.lower().endswith(suffix.lower()):
            message = f"must end with '{suffix}' in just these upper and lower cases; rename it"
            report.faults.append(Fault(entry.path, message))
    return found


def _no_labels(root: Path, folder: Path) -> str:
    """Say what to do if a split has pictures and no labelTrainIds at all."""
    prepare = f'run prepare: python tools/cityscapes.py prepare --data_path {shlex.quote(str(root))}'
    if layout.stems(folder, layout.POLYGON_SUFFIX):
        return f'no *{layout.TRAIN_IDS_SUFFIX}: they are not made yet; {prepare}'
    if layout.stems(folder, layout.LABEL_IDS_SUFFIX):
        return f'only labelIds, and no polygons to convert; unpack {layout.ZIPS[layout.LABELS]} and {prepare}'
    return f'no labels; unpack {layout.ZIPS[layout.LABELS]} into {root} and {prepare}'


def _report_lonely(
    images: Dict[str, str], labels: Dict[str, str], images_dir: Path, labels_dir: Path, report: VerifyReport
) -> None:
    places = {stem.split('/')[-1]: stem for stem in labels}
    for stem, path in images.items():
        if stem in labels:
            continue
        wanted = labels_dir / (stem + layout.TRAIN_IDS_SUFFIX)
        elsewhere = places.get(stem.split('/')[-1])
        if elsewhere:
            message = f'its label is in another folder, {labels_dir / elsewhere}; move it to {wanted.parent}'
        elif (labels_dir / (stem + layout.POLYGON_SUFFIX)).exists():
            message = f'its label {wanted} is missing; run {layout.PREPARE}'
        else:
            message = (
                f'its label {wanted} is missing; unpack {layout.ZIPS[layout.LABELS]} again and run {layout.PREPARE}'
            )
        report.faults.append(Fault(path, message))
    image_names = {stem.split('/')[-1] for stem in images}
    for stem, path in labels.items():
        if stem not in images and stem.split('/')[-1] not in image_names:
            wanted = images_dir / (stem + layout.IMAGE_SUFFIX)
            message = f'its picture {wanted} is missing; unpack {layout.ZIPS[layout.IMAGES]} again'
            report.faults.append(Fault(path, message))


def _read_files(
    root: Path,
    jobs: List[facts.Job],
    store: facts.Cache,
    workers: Optional[int],
    progress: bool,
    report: VerifyReport,
) -> Dict[str, Tuple[os.stat_result, facts.Facts]]:
    """Read the files that the cache lacks, and return what is known of the undamaged ones, by path."""
    known: Dict[str, Tuple[os.stat_result, facts.Facts]] = {}
    status: Dict[str, os.stat_result] = {}
    waiting: List[facts.Job] = []
    prefix = len(str(root)) + 1
    for job in jobs:
        with contextlib.suppress(OSError):  # if that fails, reading it will say why
            status[job.path] = Path(job.path).stat()
        found = store.get(job.path[prefix:], status[job.path]) if job.path in status else None
        if found:
            known[job.path] = (status[job.path], found)
        else:
            waiting.append(job)
    report.n_files, report.from_cache = len(jobs), len(known)
    for job, finding in zip(waiting, parallel.run(facts.read, waiting, 'checking files', workers, progress)):
        if finding.fault:
            report.faults.append(Fault(job.path, finding.fault))
        elif job.path in status and finding.facts is not None:
            known[job.path] = (status[job.path], finding.facts)
    return known


def _judge_pairs(
    pairs: List[_Pair],
    known: Dict[str, Tuple[os.stat_result, facts.Facts]],
    size: Optional[Tuple[int, int]],
    classes: facts.Classes,
    splits: Sequence[str],
    report: VerifyReport,
) -> Dict[str, Dict[str, int]]:
    """Judge what is known of all pairs, and return the highest class in each label of each split."""
    highest: Dict[str, Dict[str, int]] = {split: {} for split in splits}
    for pair in pairs:
        _judge_pair(pair, known, size, classes, report)
        if pair.label in known:
            highest[pair.split][pair.label] = known[pair.label][1][2]
    return highest


def _judge_pair(
    pair: _Pair,
    known: Dict[str, Tuple[os.stat_result, facts.Facts]],
    size: Optional[Tuple[int, int]],
    classes: facts.Classes,
    report: VerifyReport,
) -> None:
    image, label = (known[path][1] if path in known else None for path in (pair.image, pair.label))
    if image and size and image[:2] != size:
        message = f'is {image[0]}x{image[1]}, not {size[0]}x{size[1]}; unpack the original'
        report.faults.append(Fault(pair.image, message))
    wanted = image[:2] if image else size
    if label and wanted and label[:2] != wanted:
        message = f'is {label[0]}x{label[1]}, its picture {wanted[0]}x{wanted[1]}; make both of one size'
        report.faults.append(Fault(pair.label, message + facts.or_remake(pair.label)))
    if label and label[2] >= classes.number:
        report.faults.append(Fault(pair.label, classes.beyond(str(label[2]), label[2])))


def _check_counts(root: Path, expect: Dict[str, int], given: Dict[str, int], report: VerifyReport) -> None:
    """Report splits with an unexpected number of pairs, and empty ones unless the user expects them."""
    for split in report.n_pairs:
        found, wanted = report.n_pairs[split], expect.get(split, report.n_pairs[split])
        if found == 0 and report.faults:  # the reason has been reported already
            continue
        if found == wanted and (found or split in given):
            continue
        message = f'{found} complete pairs, {wanted or "some"} expected; unpack the data set again'
        if found and len(report.n_pairs) == len(layout.SPLITS):
            train, val = (report.n_pairs[name] for name in layout.SPLITS)
            message += (
                ', or say that this is meant: python tools/cityscapes.py verify '
                f'--data_path {shlex.quote(str(root))} --expect train={train},val={val}'
            )
        report.faults.append(Fault(str(root / layout.IMAGES / split), message))


def _check_ignored(root: Path, highest: Dict[str, Dict[str, int]], report: VerifyReport) -> None:
    """Report a split whose labels have no pixel with a class: nothing to learn from, or no mIoU."""
    for split, classes in highest.items():
        report.n_ignored[split] = sum(value == facts.NO_CLASS for value in classes.values())
        if classes and report.n_ignored[split] == len(classes):
            message = (
                f'none of its {len(classes)} labels holds a class, every pixel is {facts.IGNORED} (ignored); '
                f'unpack the labels again and run {layout.REMAKE}'
            )
            report.faults.append(Fault(str(root / layout.LABELS / split), message))


def _check_classes(root: Path, highest: Dict[str, int], classes: facts.Classes, report: VerifyReport) -> None:
    """Report labels of fewer classes than Cityscapes has: each is in range, but the highest classes never occur.

    If there is another number of classes, the user has chosen it.
    """
    found = max(highest.values(), default=-1) + 1
    few = 0 < found <= NUM_CLASSES - 2 and len(highest) >= ENOUGH_TO_MISS_A_CLASS
    if few and classes.number == NUM_CLASSES:
        message = (
            f'no label of {len(highest)} holds a class above {found - 1}: labels of {found} classes, '
            f'not of {NUM_CLASSES}; run {layout.REMAKE}, or, {classes.options(found)}'
        )
        report.faults.append(Fault(str(root / layout.LABELS / 'train'), message))

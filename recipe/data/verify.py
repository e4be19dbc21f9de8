"""Checks a Cityscapes root before training: layout, pairs, counts, and every file read whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

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
    """

    n_pairs: Dict[str, int] = dataclasses.field(default_factory=dict)
    faults: List[Fault] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    from_cache: int = 0
    n_files: int = 0
    n_ignored: Dict[str, int] = dataclasses.field(default_factory=dict)

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
        return f'{pairs}; {verdict}; {files}; {self.seconds:.1f} s'


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
    splits: Sequence[str] = layout.SPLITS,
) -> VerifyReport:
    """Check a data root.

    Args:
        root: Folder that holds leftImg8bit/ and gtFine/.
        expect: Pairs that each split must have; by default the counts in demo.json, or Cityscapes' own.
        workers: Processes that read files; by default one per core.
        progress: Whether to show progress on stdout.
        cache: File for the facts; by default see ``facts.cache_path``.
        num_classes: Number of classes; labels may hold 0 to num_classes - 1, and 255.
        splits: What to check.

    Returns:
        The report; it holds every fault, and no fault raises.
    """
    start = time.monotonic()
    root = Path(root).absolute()
    report = VerifyReport()
    try:
        report.faults += [Fault(one.path, f'{one.problem}; {one.fix}') for one in diagnosis.diagnose(root, splits)]
        if not report.faults:
            counts, size = _expected(root, expect, report)
            pairs = _pairs(root, splits, report)
            highest = _check_files(root, pairs, size, workers, progress, cache, num_classes, report)
            _check_counts(root, counts, expect or {}, report)
            _check_ignored(root, highest, report)
            _check_classes(root, highest.get('train', {}), num_classes, report)
    except OSError as error:  # a folder that cannot be listed, a disk that fails
        message = f'cannot be read ({error.strerror}); check its permissions and the disk'
        report.faults.append(Fault(str(error.filename or root), message))
    report.seconds = time.monotonic() - start
    return report


def _expected(
    root: Path, expect: Optional[Dict[str, int]], report: VerifyReport
) -> Tuple[Dict[str, int], Optional[Tuple[int, int]]]:
    """Return the expected counts, and the picture size (width, height) if it is known."""
    path = root / layout.DEMO_FILE
    counts: Dict[str, int] = layout.OFFICIAL_COUNTS
    size: Optional[Tuple[int, int]] = layout.OFFICIAL_SIZE
    if path.is_file():
        counts, size = {}, None
        try:
            demo = json.loads(path.read_text(encoding='utf-8'))
            counts = {split: int(demo[split]) for split in layout.SPLITS}
            size = int(demo['width']), int(demo['height'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = (
                f'not readable as the description of a demo set ({error}); make the demo set anew in an empty folder'
            )
            report.faults.append(Fault(str(path), message))
    return dict(counts, **(expect or {})), size


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
    prepare = f'run prepare --data_path {root}'
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
            message = f'its label {wanted} is missing; run prepare'
        else:
            message = f'its label {wanted} is missing; unpack {layout.ZIPS[layout.LABELS]} again and run prepare'
        report.faults.append(Fault(path, message))
    image_names = {stem.split('/')[-1] for stem in images}
    for stem, path in labels.items():
        if stem not in images and stem.split('/')[-1] not in image_names:
            wanted = images_dir / (stem + layout.IMAGE_SUFFIX)
            message = f'its picture {wanted} is missing; unpack {layout.ZIPS[layout.IMAGES]} again'
            report.faults.append(Fault(path, message))


def _check_files(
    root: Path,
    pairs: List[_Pair],
    size: Optional[Tuple[int, int]],
    workers: Optional[int],
    progress: bool,
    cache: Optional[Path],
    num_classes: int,
    report: VerifyReport,
) -> Dict[str, Dict[str, int]]:
    """Read the files that the cache lacks, judge all, and return the highest class in each label of each split."""
    store = facts.Cache(facts.cache_path(root, cache))
    known: Dict[str, Tuple[os.stat_result, facts.Facts]] = {}
    status: Dict[str, Optional[os.stat_result]] = {}
    jobs: List[facts.Job] = []
    prefix = len(str(root)) + 1
    for pair in pairs:
        for path, is_label in ((pair.image, False), (pair.label, True)):
            seen: Optional[os.stat_result] = None  # if that fails, reading it will say why
            with contextlib.suppress(OSError):
                seen = Path(path).stat()
            status[path] = seen
            found = store.get(path[prefix:], seen) if seen else None
            if seen and found:
                known[path] = (seen, found)
            else:
                jobs.append(facts.Job(path, is_label, num_classes))
    report.n_files, report.from_cache = 2 * len(pairs), len(known)
    for job, finding in zip(jobs, parallel.run(facts.read, jobs, 'checking files', workers, progress)):
        seen = status[job.path]
        if finding.fault:
            report.faults.append(Fault(job.path, finding.fault))
        elif seen is not None and finding.facts is not None:
            known[job.path] = (seen, finding.facts)
    store.replace({path[prefix:]: entry for path, entry in known.items()}, tuple(report.n_pairs))
    highest: Dict[str, Dict[str, int]] = {split: {} for split in report.n_pairs}
    for pair in pairs:
        _judge_pair(pair, known, size, num_classes, report)
        if pair.label in known:
            highest[pair.split][pair.label] = known[pair.label][1][2]
    return highest


def _judge_pair(
    pair: _Pair,
    known: Dict[str, Tuple[os.stat_result, facts.Facts]],
    size: Optional[Tuple[int, int]],
    num_classes: int,
    report: VerifyReport,
) -> None:
    image, label = (known[path][1] if path in known else None for path in (pair.image, pair.label))
    if image and size and image[:2] != size:
        message = f'is {image[0]}x{image[1]}, not {size[0]}x{size[1]}; unpack the original'
        report.faults.append(Fault(pair.image, message))
    wanted = image[:2] if image else size
    if label and wanted and label[:2] != wanted:
        message = f'is {label[0]}x{label[1]}, its picture {wanted[0]}x{wanted[1]}; run prepare --force'
        report.faults.append(Fault(pair.label, message))
    if label and label[2] >= num_classes:
        message = (
            f'holds class {label[2]}, but num_classes is {num_classes}: classes are 0 to {num_classes - 1}, and 255'
        )
        report.faults.append(Fault(pair.label, message))


def _check_counts(root: Path, expect: Dict[str, int], given: Dict[str, int], report: VerifyReport) -> None:
    """Report splits with an unexpected number of pairs, and empty ones unless the user expects them."""
    for split in report.n_pairs:
        found, wanted = report.n_pairs[split], expect.get(split, report.n_pairs[split])
        if found == 0 and report.faults:  # the reason has been reported already
            continue
        if found == wanted and (found or split in given):
            continue
        message = f'{found} complete pairs, {wanted or "some"} expected; unpack the data set again'
        if found:
            message += f', or say that this is meant: --expect {split}={found}'
        report.faults.append(Fault(str(root / layout.IMAGES / split), message))


def _check_ignored(root: Path, highest: Dict[str, Dict[str, int]], report: VerifyReport) -> None:
    """Report a split whose labels have no pixel with a class: nothing to learn from, or no mIoU."""
    for split, classes in highest.items():
        report.n_ignored[split] = sum(value == facts.NO_CLASS for value in classes.values())
        if classes and report.n_ignored[split] == len(classes):
            message = (
                f'none of its {len(classes)} labels holds a class, every pixel is {facts.IGNORED} (ignored); '
                'unpack the labels again and run prepare --force'
            )
            report.faults.append(Fault(str(root / layout.LABELS / split), message))


def _check_classes(root: Path, highest: Dict[str, int], num_classes: int, report: VerifyReport) -> None:
    """Report labels of fewer classes: each is in range, but the highest classes never occur."""
    found = max(highest.values(), default=-1) + 1
    if len(highest) >= ENOUGH_TO_MISS_A_CLASS and 0 < found <= num_classes - 2:
        message = (
            f'no label of {len(highest)} holds a class above {found - 1}: labels of {found} classes, '
            f'not of {num_classes}; run prepare --force, or train with --num_classes {found}'
        )
        report.faults.append(Fault(str(root / layout.LABELS / 'train'), message))

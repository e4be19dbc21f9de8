"""Writes a small data set of procedural street scenes in the layout of Cityscapes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Dict, List, Optional, Set

from recipe.core import console, files, json_files
from recipe.data import layout, parallel, scenes

# Town of each split; the real Cityscapes separates towns too.
CITIES = {'train': 'musterstadt', 'val': 'probeburg'}
SIZE_LIMITS = (64, 8192)  # pixels along either side
MAX_SCENES = 999_999  # six digits in a file name
_MADE_BY = 'procedural street scenes of tools/cityscapes.py demo'


@dataclasses.dataclass(frozen=True)
class DemoSet:
    """Content of a demo set.

    Args:
        train: Scenes to train on.
        val: Scenes to validate on.
        width: Picture width in pixels.
        height: Picture height in pixels.
        seed: Seed of all scenes.
    """

    train: int
    val: int
    width: int
    height: int
    seed: int

    def described(self) -> Dict[str, object]:
        """Return the content of demo.json."""
        return {'made_by': _MADE_BY, 'generator': scenes.GENERATOR_VERSION, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class _Job:
    root: str
    split: str
    index: int
    wanted: DemoSet


def demo(root: Path, wanted: DemoSet, workers: Optional[int] = None, progress: bool = True) -> int:
    """Make a demo set, or complete an interrupted one. ``prepare`` makes its labelTrainIds.

    Args:
        root: An empty or new folder, or one that holds this very demo set.
        wanted: Its content.
        workers: Processes; by default one per core.
        progress: Whether to show progress on stdout.

    Returns:
        How many scenes were made; 0 if all were there.

    Raises:
        console.UserError: A size or count is out of range, or the folder holds anything else.
    """
    _check_range(wanted)
    _claim(root, wanted)
    # The real set has a test split too, and upstream's converter lists it without a check.
    for part in (layout.IMAGES, layout.LABELS):
        (root / part / 'test').mkdir(parents=True, exist_ok=True)
    jobs: List[_Job] = []
    for split in layout.SPLITS:
        there = _complete(root, split)
        for index in range(getattr(wanted, split)):
            if f'{CITIES[split]}/{stem(split, index)}' not in there:
                jobs.append(_Job(str(root), split, index, wanted))
    parallel.run(_make, jobs, 'demo scenes', workers, progress)
    return len(jobs)


def stem(split: str, index: int) -> str:
    """Return the common part of a scene's file names: town, sequence, frame."""
    return f'{CITIES[split]}_{index:06d}_000019'


def _check_range(wanted: DemoSet) -> None:
    low, high = SIZE_LIMITS
    for name in ('width', 'height'):
        if not low <= getattr(wanted, name) <= high:
            raise console.UserError(f'--{name}={getattr(wanted, name)} is out of range', f'give {low} to {high} pixels')
    for name in layout.SPLITS:
        if not 1 <= getattr(wanted, name) <= MAX_SCENES:
            raise console.UserError(
                f'--{name}={getattr(wanted, name)} is out of range', f'give 1 to {MAX_SCENES} scenes'
            )
    if wanted.seed < 0:
        raise console.UserError(f'--seed={wanted.seed} is negative', 'give 0 or more')


def _claim(root: Path, wanted: DemoSet) -> None:
    """Check that the folder may be written to, and write demo.json into it."""
    described = wanted.described()
    path = root / layout.DEMO_FILE
    if root.exists() and not root.is_dir():
        raise console.UserError(f'{root} is a file', 'give --data_path a new folder')
    if path.is_file():
        found: Dict[str, object] = {}
        with contextlib.suppress(OSError, json_files.JsonError):
            found = json_files.read(path, dict)
        if found != described:
            raise console.UserError(
                f'{root} holds another demo set ({_differences(found, described)})',
                'give --data_path a new folder, or delete this one',
            )
        for part in (layout.IMAGES, layout.LABELS):
            files.sweep(root / part)
        return
    files.sweep(root)
    if root.is_dir() and any(root.iterdir()):
        raise console.UserError(
            f'{root} holds files that no demo made, so nothing is written there', 'give --data_path a new folder'
        )
    root.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as partial:
        partial.write_text(json.dumps(described, indent=2) + '\n', encoding='utf-8')


def _differences(found: Dict[str, object], described: Dict[str, object]) -> str:
    if not found:
        return 'its demo.json is damaged'
    parts = [f'{key} {found.get(key)}, not {value}' for key, value in described.items() if found.get(key) != value]
    return ', '.join(parts) or 'its demo.json says more'


def _complete(root: Path, split: str) -> Set[str]:
    """Return 'city/stem' of the scenes whose files are all there."""
    images, labels = root / layout.IMAGES / split, root / layout.LABELS / split
    if not images.is_dir() or not labels.is_dir():
        return set()
    there = set(layout.stems(images, layout.IMAGE_SUFFIX))
    there &= set(layout.stems(labels, layout.POLYGON_SUFFIX))
    return there & set(layout.stems(labels, layout.LABEL_IDS_SUFFIX))


def _make(job: _Job) -> None:
    """Make one scene's three files."""
    import cv2
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    if multiprocessing.parent_process() is not None:
        cv2.setNumThreads(1)  # the other cores draw other scenes
    wanted = job.wanted
    scene = scenes.render(wanted.seed, job.split, job.index, wanted.width, wanted.height)
    name = stem(job.split, job.index)
    images, labels = (Path(job.root, part, job.split, CITIES[job.split]) for part in (layout.IMAGES, layout.LABELS))
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    polygons = labels / (name + layout.POLYGON_SUFFIX)
    with files.whole(polygons) as partial:
        partial.write_text(json.dumps(scene.annotation), encoding='utf-8')
    with files.whole(labels / (name + layout.LABEL_IDS_SUFFIX)) as partial:
        json2labelImg(str(polygons), str(partial), 'ids')
    _, encoded = cv2.imencode('.png', cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
    with files.whole(images / (name + layout.IMAGE_SUFFIX)) as partial:
        partial.write_bytes(encoded.tobytes())

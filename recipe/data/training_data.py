"""The data set of a training: the user's, verified, or the built-in demo set, made when first needed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Optional, Sequence

from recipe.core import console, paths, run_folder
from recipe.data import diagnosis, layout, verify

# Scenes to train and to validate on, width and height in pixels, seed.
DEMO = (240, 40, 256, 128, 0)
DEMO_DATA = paths.OUTPUT / 'demo_data'


def root(given: Optional[str], demo: bool, needs_labels: bool = True) -> Path:
    """The data root. The demo set need not exist yet; it is in the user's cache if test/output cannot be written.

    Args:
        given: Value of ``--data_path``.
        demo: Whether to use the built-in set if nothing is given.
        needs_labels: Whether it must hold labels.

    Raises:
        console.UserError: The folder is not a Cityscapes root.
    """
    if given is None and demo:
        from recipe.data import scenes

        # Sets of another size or generator version have folders of their own.
        folder = DEMO_DATA / '_'.join(map(str, ('v' + str(scenes.GENERATOR_VERSION), *DEMO)))
        if folder.exists() or os.access(run_folder.existing_part(folder), os.W_OK):
            return folder
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        return cache / 'mask2former_swin_recipe' / 'demo_data' / folder.name
    return diagnosis.require_root(given, needs_labels)


def verified(
    data_root: Path,
    progress: bool = True,
    num_classes: int = verify.NUM_CLASSES,
    class_keys: Optional[Sequence[str]] = None,
    splits: Sequence[str] = layout.SPLITS,
) -> str:
    """Verify a data set; fast if it was verified before and has not changed.

    Args:
        data_root: From ``root``.
        progress: Whether to show progress on stdout.
        num_classes: Classes of the model.
        class_keys: Settings that say so.
        splits: What to verify.

    Returns:
        A summary, one line.

    Raises:
        console.UserError: The first fault, how many there are and how to see all.
    """
    found = verify.verify(data_root, progress=progress, num_classes=num_classes, class_keys=class_keys, splits=splits)
    if not found.ok:
        more = len(found.faults) - 1
        raise console.UserError(
            f'{found.faults[0]}' + (f' (and {more} more faults)' if more else ''),
            f'all: python tools/cityscapes.py verify --data_path={shlex.quote(str(data_root))}'
            + (f' --num_classes={num_classes}' if num_classes != verify.NUM_CLASSES else ''),
        )
    return f'{data_root}: {found.summary()}'


def require(data_root: Path, num_classes: int = verify.NUM_CLASSES, class_keys: Optional[Sequence[str]] = None) -> None:
    """Verify a data set and print its summary; the arguments are those of ``verified``.

    Raises:
        console.UserError: As ``verified``.
    """
    console.say(f'data     {verified(data_root, True, num_classes, class_keys)}')


def require_decoded(data_root: Path, folder: Path) -> None:
    """Check that a decoded cache holds the current data set.

    Raises:
        console.UserError: It does not; says how to rebuild it.
    """
    from recipe.data import cache as cityscapes_cache

    cityscapes_cache.require_fresh(data_root, folder)


def make_demo(data_root: Path) -> None:
    """Make or complete the demo set, in the order of the real one: polygons first, then training labels."""
    from recipe.data import demo as cityscapes_demo
    from recipe.data import prepare

    cityscapes_demo.demo(data_root, cityscapes_demo.DemoSet(*DEMO))
    prepare.prepare(data_root)

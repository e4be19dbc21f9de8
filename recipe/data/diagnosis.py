"""Recognises common wrong layouts of a data root, each with one line on what to do."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

from recipe.core import console, inputs
from recipe.data import layout

_PARTS = (layout.IMAGES, layout.LABELS)
_HOLDS = f'the folder that holds {layout.IMAGES}/ and {layout.LABELS}/'


class Diagnosis(NamedTuple):
    """One thing that is wrong.

    Attributes:
        path: Where.
        problem: What is wrong.
        fix: What to do.
    """

    path: str
    problem: str
    fix: str


def require_folder(given: str) -> Path:
    """Check that ``--data_path`` names a folder, of whatever layout; returns it, absolute.

    Raises:
        console.UserError: Names the folder and what is wrong with it.
    """
    root = inputs.absolute(given)
    fault = _folder_fault(root)
    if fault is not None:
        raise console.UserError(f'--data_path: {root}: {fault[0]}', fault[1])
    return root


def require_root(given: Optional[str], needs_labels: bool = True) -> Path:
    """Find the data root. Only the root and its two top folders are looked at. Runs in a bare Python.

    Args:
        given: What ``--data_path`` says, or None for the default place.
        needs_labels: Whether it must hold gtFine/.

    Returns:
        The root, absolute.

    Raises:
        console.UserError: Names the folder, what it lacks and, if it is nearby, the right one.
    """
    if given is None and not inputs.DEFAULT_CITYSCAPES.is_dir():
        fix = f'give --data_path=DIR, {_HOLDS}, or try --demo, which needs no data set'
        raise console.UserError(f'there is no Cityscapes at {inputs.DEFAULT_CITYSCAPES}', fix)
    root = inputs.DEFAULT_CITYSCAPES if given is None else inputs.absolute(given)
    fault = _root_fault(root)
    for part in _PARTS if needs_labels else (layout.IMAGES,):
        if fault is None and not (root / part).is_dir():
            problem, fix = _missing_part(root, part)
            fault = (f'{part}/: {problem}', fix)
    if fault is not None:
        raise console.UserError(f'--data_path: {root}: {fault[0]}', fault[1])
    return root


def diagnose(root: Path, splits: Sequence[str] = layout.SPLITS) -> List[Diagnosis]:
    """Return what is wrong with the folders of a data root; empty if both parts have all splits.

    Args:
        root: The data root.
        splits: The splits that are needed.
    """
    fault = _root_fault(root)
    if fault:
        return [Diagnosis(str(root), *fault)]
    faults: List[Diagnosis] = []
    for part in _PARTS:
        faults.extend(_part_faults(root, part, splits))
    return faults


def _folder_fault(root: Path) -> Optional[Tuple[str, str]]:
    """Return why this is no folder."""
    if root.is_symlink() and not root.exists():
        return f'broken symbolic link to {os.readlink(str(root))}', f'mend the link or give --data_path {_HOLDS}'
    if not root.exists():
        return 'no such folder', f'give --data_path {_HOLDS}'
    if not root.is_dir():
        if root.suffix == '.zip':
            zips = shlex.quote(str(root.parent))
            return (
                'is a zip, not a folder',
                f'unpack it: python tools/cityscapes.py prepare --data_path FOLDER --zips {zips}',
            )
        return 'is a file, not a folder', f'give --data_path {_HOLDS}'
    return None


def _root_fault(root: Path) -> Optional[Tuple[str, str]]:
    """Return what is wrong with the root as a whole."""
    fault = _folder_fault(root)
    if fault is not None:
        return fault
    if any((root / part).exists() or (root / part).is_symlink() for part in _PARTS):
        return None
    names = {entry.name for entry in root.iterdir()}
    if any(name in names for name in layout.ZIPS.values()):
        return (
            'the zips are not unpacked',
            f'run python tools/cityscapes.py prepare --data_path {shlex.quote(str(root))}',
        )
    for parent in (root, *root.parents):
        if parent.name in (*_PARTS, layout.COARSE):
            return f'too low, inside {parent.name}/', f'give --data_path {parent.parent}'
    if set(layout.SPLITS) & names:
        return f'holds {" and ".join(sorted(set(layout.SPLITS) & names))} itself', f'give --data_path {_HOLDS}'
    homes = {part: [name for name in sorted(names) if (root / name / part).is_dir()] for part in _PARTS}
    shared = [name for name in homes[layout.IMAGES] if name in homes[layout.LABELS]]
    if shared:
        return 'one level too high', f'give --data_path {root / shared[0]}'
    if all(homes.values()):
        found = ' and '.join(f'{homes[part][0]}/{part}' for part in _PARTS)
        return f'its parts lie apart, in {found}', f'move both to {root}'
    for name in homes[layout.IMAGES] + homes[layout.LABELS]:
        return 'one level too high', f'give --data_path {root / name}'
    for name in sorted(names):
        for part in _PARTS:
            if name.lower() == part.lower():
                return f"has {name}/, which must be spelt '{part}'", 'rename it'
    if layout.COARSE in names:
        wanted = ' and '.join(layout.ZIPS.values())
        return f'has {layout.COARSE}/ only', f'training needs {layout.LABELS}/ and {layout.IMAGES}/: unpack {wanted}'
    other = f'for another data set: python tools/dataset.py inspect {shlex.quote(str(root))}'
    return f'has neither {layout.IMAGES}/ nor {layout.LABELS}/', f'give --data_path {_HOLDS}; {other}'


def _part_faults(root: Path, part: str, splits: Sequence[str]) -> List[Diagnosis]:
    """Return what is wrong with leftImg8bit/ or gtFine/."""
    folder = root / part
    if folder.is_symlink() and not folder.exists():
        return [Diagnosis(str(folder), f'broken symbolic link to {os.readlink(str(folder))}', 'mend the link')]
    if not folder.is_dir():
        return [Diagnosis(str(folder), *_missing_part(root, part))]
    names = [entry.name for entry in folder.iterdir()]
    if part in names and not set(layout.SPLITS) & set(names):
        return [Diagnosis(str(folder / part), 'nested twice', f'move the contents of {part}/{part}/ up to {part}/')]
    faults: List[Diagnosis] = []
    for split in splits:
        place = folder / split
        if place.is_symlink() and not place.exists():
            faults.append(Diagnosis(str(place), f'broken symbolic link to {os.readlink(str(place))}', 'mend the link'))
        elif not place.is_dir():
            faults.append(Diagnosis(str(place), *_missing_split(part, split, names)))
    return faults


def _missing_part(root: Path, part: str) -> Tuple[str, str]:
    if (root / part).exists():
        return 'is a file, not a folder', 'unpack the data set again'
    for entry in root.iterdir():
        if entry.name.lower() == part.lower():
            return f'missing, but there is {entry.name}/', f"rename it to '{part}'"
    if (root / layout.ZIPS[part]).is_file():
        return (
            f'missing: {layout.ZIPS[part]} is not unpacked',
            f'run python tools/cityscapes.py prepare --data_path {shlex.quote(str(root))}',
        )
    if part == layout.LABELS and (root / layout.COARSE).is_dir():
        return f'missing: {layout.COARSE}/ is no substitute', f'unpack {layout.ZIPS[part]}'
    return 'missing', f'unpack {layout.ZIPS[part]} into {root}'


def _missing_split(part: str, split: str, names: List[str]) -> Tuple[str, str]:
    for name in names:
        if name.lower() == split:
            return f'missing, but there is {name}/', f"rename it to '{split}'"
    return 'missing', f'unpack {layout.ZIPS[part]} whole'

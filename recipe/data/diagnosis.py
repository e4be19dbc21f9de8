"""Recognises common wrong layouts of a data root, each with one line on what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional, Tuple

from recipe.data import layout

Diagnosis = Tuple[str, str]  # path, what is wrong and what to do
_PARTS = (layout.IMAGES, layout.LABELS)
_HOLDS = f'the folder that holds {layout.IMAGES}/ and {layout.LABELS}/'


def diagnose(root: Path) -> List[Diagnosis]:
    """Return what is wrong with the folders of a data root; empty if both parts have both splits.

    Args:
        root: The data root.
    """
    fault = _root_fault(root)
    if fault:
        return [(str(root), fault)]
    faults: List[Diagnosis] = []
    for part in _PARTS:
        faults.extend(_part_faults(root, part))
    return faults


def _root_fault(root: Path) -> Optional[str]:
    """Return what is wrong with the root as a whole."""
    if root.is_symlink() and not root.exists():
        return f'broken symbolic link to {os.readlink(str(root))}; mend the link or give --data_path {_HOLDS}'
    if not root.exists():
        return f'no such folder; give --data_path {_HOLDS}'
    if not root.is_dir():
        if root.suffix == '.zip':
            return f'is a zip, not a folder; unpack it: prepare --data_path FOLDER --zips {root.parent}'
        return f'is a file, not a folder; give --data_path {_HOLDS}'
    if any((root / part).exists() or (root / part).is_symlink() for part in _PARTS):
        return None
    names = {entry.name for entry in root.iterdir()}
    if any(name in names for name in layout.ZIPS.values()):
        return f'the zips are not unpacked; run prepare --data_path {root}'
    for parent in (root, *root.parents):
        if parent.name in (*_PARTS, layout.COARSE):
            return f'too low, inside {parent.name}/; give --data_path {parent.parent}'
    if set(layout.SPLITS) & names:
        return f'holds {" and ".join(sorted(set(layout.SPLITS) & names))} itself; give --data_path {_HOLDS}'
    homes = {part: [name for name in sorted(names) if (root / name / part).is_dir()] for part in _PARTS}
    shared = [name for name in homes[layout.IMAGES] if name in homes[layout.LABELS]]
    if shared:
        return f'one level too high; give --data_path {root / shared[0]}'
    if all(homes.values()):
        found = ' and '.join(f'{homes[part][0]}/{part}' for part in _PARTS)
        return f'its parts lie apart, in {found}; move both to {root}'
    for name in homes[layout.IMAGES] + homes[layout.LABELS]:
        return f'one level too high; give --data_path {root / name}'
    for name in sorted(names):
        for part in _PARTS:
            if name.lower() == part.lower():
                return f"has {name}/, which must be spelt '{part}'; rename it"
    if layout.COARSE in names:
        wanted = ' and '.join(layout.ZIPS.values())
        return f'has {layout.COARSE}/ only; training needs {layout.LABELS}/ and {layout.IMAGES}/: unpack {wanted}'
    return f'has neither {layout.IMAGES}/ nor {layout.LABELS}/; give --data_path {_HOLDS}'


def _part_faults(root: Path, part: str) -> List[Diagnosis]:
    """Return what is wrong with leftImg8bit/ or gtFine/."""
    folder = root / part
    if folder.is_symlink() and not folder.exists():
        return [(str(folder), f'broken symbolic link to {os.readlink(str(folder))}; mend the link')]
    if not folder.is_dir():
        return [(str(folder), _missing_part(root, part))]
    names = [entry.name for entry in folder.iterdir()]
    if part in names and not set(layout.SPLITS) & set(names):
        return [(str(folder / part), f'nested twice; move the contents of {part}/{part}/ up to {part}/')]
    faults: List[Diagnosis] = []
    for split in layout.SPLITS:
        place = folder / split
        if place.is_symlink() and not place.exists():
            faults.append((str(place), f'broken symbolic link to {os.readlink(str(place))}; mend the link'))
        elif not place.is_dir():
            faults.append((str(place), _missing_split(part, split, names)))
    return faults


def _missing_part(root: Path, part: str) -> str:
    if (root / part).exists():
        return 'is a file, not a folder; unpack the data set again'
    for entry in root.iterdir():
        if entry.name.lower() == part.lower():
            return f"missing, but there is {entry.name}/; rename it to '{part}'"
    if (root / layout.ZIPS[part]).is_file():
        return f'missing: {layout.ZIPS[part]} is not unpacked; run prepare --data_path {root}'
    if part == layout.LABELS and (root / layout.COARSE).is_dir():
        return f'missing: {layout.COARSE}/ is no substitute; unpack {layout.ZIPS[part]}'
    return f'missing; unpack {layout.ZIPS[part]} into {root}'


def _missing_split(part: str, split: str, names: List[str]) -> str:
    for name in names:
        if name.lower() == split:
            return f"missing, but there is {name}/; rename it to '{split}'"
    return f'missing; unpack {layout.ZIPS[part]} whole'

"""Class names: from a file beside the pictures, or the standard ones of a known set."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from recipe.core import console, json_files
from recipe.data.sets.file import Colour

_FILES = (
    *(
        'classes.txt',
        'class_names.txt',
        'labels.txt',
        'names.txt',
        'label_colors.txt',
        'labelmap.txt',
        'objectInfo150.txt',
    ),
    *('class_dict.csv', 'classes.csv', 'labels.csv', 'class_dict_seg.csv', 'label_colors.csv'),
    *('classes.json', 'labels.json', 'config_v1.2.json', 'config_v2.0.json', 'config.json', 'label_map.json'),
)
_VOID = {
    'void',
    'unlabeled',
    'unlabelled',
    'unlabled',
    'ignore',
    'ignored',
    'unknown',
    'undefined',
    'none',
    'unlabeled area',
}


class Named(NamedTuple):
    """A class that a file names.

    Attributes:
        name: Its name.
        value: The number that the file gives it; None: none, so its place counts.
        colour: The colour that the file gives it.
        is_void: Whether it means pixels to ignore.
    """

    name: str
    value: Optional[int] = None
    colour: Optional[Colour] = None
    is_void: bool = False


class Found(NamedTuple):
    """Class names, and where they are from.

    Attributes:
        classes: The names.
        why: One line.
        is_standard: Whether they are those of a known set, and no file of this one names them.
    """

    classes: List[Named]
    why: str
    is_standard: bool = False


def find(root: Path, standard: str = '', first_value: int = 0) -> Optional[Found]:
    """Find class names.

    Args:
        root: Folder of the set.
        standard: ``Layout.classes``.
        first_value: ``Layout.first_value``.
    """
    for name in _FILES:
        path = root / name
        if path.is_file():
            classes = _read(path)
            if classes:
                return Found(classes, f'{name} names {len(classes)} classes')
    if not standard:
        return None
    return Found(_standard(standard, first_value), f'the standard names of {standard.replace("_", "-")}', True)


def _read(path: Path) -> List[Named]:
    try:
        if path.suffix == '.json':
            content: Any
            try:
                content = json_files.read(path, dict)
            except json_files.JsonError:
                content = json_files.read(path, list)
            found = _of_json(content)
        else:
            text = path.read_text(encoding='utf-8-sig')
            found = _of_csv(text) if path.suffix == '.csv' else _of_text(text)
    except (OSError, UnicodeDecodeError, json_files.JsonError) as error:
        console.warn(f'{path} cannot be read, so it names no classes: {console.reason(error)}')
        return []
    unique: Dict[str, Named] = {}
    for one in found:
        name = _clean(one.name)
        if name:
            unique.setdefault(name, one._replace(name=name, is_void=one.is_void or _is_void(name)))
    return [*unique.values()]


def _clean(name: str) -> str:
    """A name as dataset.json takes it."""
    return re.sub(r'\s+', ' ', re.sub(r'[|,\x00-\x1f]', ' ', name)).strip()[:80]


def _is_void(name: str) -> bool:
    return name.lower().strip() in _VOID


def _of_json(content: Any) -> List[Named]:
    """``{"labels": [{"readable", "color", "evaluate"}]}`` of Mapillary, a list of names, or names by number."""
    if isinstance(content, dict) and isinstance(content.get('labels'), list):
        content = content['labels']
    if isinstance(content, dict):
        pairs = [(key, value) for key, value in content.items()]
        if all(isinstance(value, str) and key.isdigit() for key, value in pairs):
            return [Named(value, int(key)) for key, value in pairs]
        if all(isinstance(value, int) and not isinstance(value, bool) for _, value in pairs):
            return [Named(key, value) for key, value in pairs]
        return []
    found = []
    for at, one in enumerate(content):
        if isinstance(one, str):
            found.append(Named(one, at))
        elif isinstance(one, dict):
            name = next(
                (one[key] for key in ('readable', 'name', 'label', 'class') if isinstance(one.get(key), str)), None
            )
            value = next((one[key] for key in ('id', 'value', 'index') if type(one.get(key)) is int), at)
            if name:
                found.append(
                    Named(name, value, _colour(one.get('color') or one.get('colour')), one.get('evaluate') is False)
                )
    return found


def _colour(values: Any) -> Optional[Colour]:
    try:
        red, green, blue = (int(value) for value in values)
    except (TypeError, ValueError):
        return None
    return (red, green, blue) if all(0 <= value <= 255 for value in (red, green, blue)) else None


def _of_csv(text: str) -> List[Named]:
    """``name,r,g,b`` with or without a head, also with a number of the class."""
    rows = [
        [cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)
    ]
    if not rows:
        return []
    has_head = not any(cell.lstrip('-').isdigit() for cell in rows[0])
    head = [cell.lower() for cell in rows[0]] if has_head else []
    found = []
    for row in rows[has_head:]:
        words = [cell for cell in row if cell and not cell.isdigit()]
        numbers = [int(cell) for cell in row if cell.isdigit()]
        if not words:
            continue
        colour = _colour(numbers[-3:]) if len(numbers) >= 3 else None
        rest = numbers[:-3] if colour else numbers
        named = {'id', 'value', 'index', 'label', 'class_id', 'trainid'} & set(head)
        found.append(Named(words[0], rest[0] if rest and (named or not colour) else None, colour))
    return found


def _of_text(text: str) -> List[Named]:
    """A name in each line, perhaps with its number or its colour before or behind it."""
    found = []
    for line in text.splitlines():
        line = line.split('#')[0].strip()
        if not line or line.lower().startswith(('idx', 'id ', 'id\t')):
            continue
        columns = [cell.strip() for cell in re.split(r'\t+', line)]
        if len(columns) >= 6 and columns[0].isdigit():  # objectInfo150.txt of ADE20K
            found.append(Named(columns[-1].split(',')[0].split(';')[0], int(columns[0])))
            continue
        match = re.fullmatch(r'(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,:]+(\D.*)', line)
        if match:
            found.append(Named(match[4].strip(), None, _colour(match.group(1, 2, 3))))
            continue
        match = re.fullmatch(r'(.*?\D)[\s,:]+(\d+)[\s,]+(\d+)[\s,]+(\d+)(?:::)?', line)
        if match:
            found.append(Named(match[1].strip(' :,'), None, _colour(match.group(2, 3, 4))))
            continue
        match = re.fullmatch(r'(\d+)\s*[:=,\s]\s*(\D.*)', line) or re.fullmatch(r'(\D.*?)\s*[:=,]\s*(\d+)', line)
        if match:
            number, name = (match[1], match[2]) if match[1].isdigit() else (match[2], match[1])
            found.append(Named(name.strip(), int(number)))
            continue
        found.append(Named(line))
    return found


def _standard(kind: str, first_value: int) -> List[Named]:
    """Names and colours of a known set, from mmseg or cityscapesscripts."""
    if kind.startswith('cityscapes'):
        from cityscapesscripts.helpers.labels import labels

        evaluated = sorted((label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId)
        if kind == 'cityscapes':
            return [Named(label.name, label.trainId, label.color) for label in evaluated]
        ignored = [label for label in labels if label.ignoreInEval and label.id >= 0]
        return [
            *(Named(label.name, label.id, label.color) for label in evaluated),
            *(Named(label.name, label.id, label.color, is_void=True) for label in ignored),
        ]
    if kind == 'camvid':  # the 11 classes of SegNet's version
        names = (
            'sky',
            'building',
            'pole',
            'road',
            'pavement',
            'tree',
            'sign symbol',
            'fence',
            'car',
            'pedestrian',
            'bicyclist',
        )
        return [*(Named(name, value) for value, name in enumerate(names)), Named('unlabelled', 11, is_void=True)]
    from mmseg.datasets import ADE20KDataset, COCOStuffDataset

    meta = {'ade': ADE20KDataset, 'coco_stuff': COCOStuffDataset}[kind].METAINFO
    pairs: List[Tuple[str, Any]] = list(zip(meta['classes'], meta['palette']))
    return [Named(_clean(name), number + first_value, _colour(colour)) for number, (name, colour) in enumerate(pairs)]


def by_value(found: Found) -> Dict[int, Named]:
    """Classes by the number that their file gives them."""
    return {one.value: one for one in found.classes if one.value is not None}

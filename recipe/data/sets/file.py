"""Reads and writes dataset.json: the pictures and labels of a set, how labels are coded, and what the classes are.

docs/your_data.md explains each key. Standard library only, Python 3.8 on.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from recipe.core import console, files, inputs, json_files

FORMAT = 1
NAME = 'dataset.json'
SHEET = 'dataset_samples.png'  # drawn beside it; no picture of the set
CITYSCAPES = Path(__file__).with_name('cityscapes.json')
IGNORED = 255
UNKNOWN = 254  # what a value that the file does not name becomes; no class may have this number
MOST_CLASSES = UNKNOWN
NO_OBJECT = 0.1  # weight of "no object" in the recipe
CODINGS = ('indices', 'palette', '16 bits', 'rgb', 'instances')
# Kinds of faults that a user may accept in the file.
ACCEPTABLE = ('all-ignored label', 'class that never occurs', 'duplicate', 'picture without a label')
SPLITS = ('train', 'val', 'test')

Value = Union[int, Tuple[int, int, int]]  # of a pixel: a number, or a colour
Colour = Tuple[int, int, int]


@dataclass(frozen=True)
class Split:
    """Which pairs belong to a split.

    Attributes:
        images: Folder of the pictures, below the root. A ``*`` stands for each folder that fits.
        labels: Folder of the labels; a ``*`` is filled in as in ``images``.
        list: Text file with a pair, or the name of a pair, in each line; None: all files of the folders.
        only: Patterns of names; a pair must fit one of them. Empty: all.
        without: Patterns of names that are left out.
        first: First name, in sorted order.
        before: Name at which the split ends, in sorted order.
    """

    images: str
    labels: str
    list: Optional[str] = None
    only: Tuple[str, ...] = ()
    without: Tuple[str, ...] = ()
    first: Optional[str] = None
    before: Optional[str] = None

    def as_dict(self) -> Dict[str, Any]:
        """Content for the file and for a config; ``split_of`` reads it."""
        content = {
            'images': self.images,
            'labels': self.labels,
            'list': self.list,
            'only': list(self.only),
            'without': list(self.without),
            'first': self.first,
            'before': self.before,
        }
        return {key: value for key, value in content.items() if value or key in ('images', 'labels')}


def split_of(content: Dict[str, Any]) -> Split:
    """The split of ``Split.as_dict``, which was checked when the file was read."""
    return Split(
        content['images'],
        content['labels'],
        content.get('list'),
        tuple(content.get('only') or ()),
        tuple(content.get('without') or ()),
        content.get('first'),
        content.get('before'),
    )


class Labelled(NamedTuple):
    """A class as the labels have it.

    Attributes:
        name: Its name.
        value: What a pixel of it holds.
        colour: For pictures, RGB.
        share: Of the pixels that have a class, in percent; None: not known.
    """

    name: str
    value: Value
    colour: Colour
    share: Optional[float] = None


class Trained(NamedTuple):
    """A class that is trained: one class of the labels, or several that ``map`` merges."""

    name: str
    colour: Colour
    values: Tuple[Value, ...]


@dataclass(frozen=True)
class DataSet:
    """The content of a dataset.json; docs/your_data.md explains the keys."""

    path: Path
    root: Path
    layout: str
    splits: Dict[str, Split]
    image_suffixes: Tuple[str, ...]
    label_suffix: str
    coding: str
    classes: Tuple[Labelled, ...]
    ignore: Tuple[Value, ...]
    typical: Tuple[int, int]
    crop: Tuple[int, int]
    short_side: int
    long_side: int
    val_batch_size: Optional[int] = None
    instances: Optional[Tuple[int, int]] = None
    map: Dict[str, Optional[str]] = field(default_factory=dict)
    weights_applied: bool = False
    no_object: float = NO_OBJECT
    weights: Dict[str, float] = field(default_factory=dict)
    accept: Tuple[str, ...] = ()
    reasons: Dict[str, str] = field(default_factory=dict)
    smallest: Optional[Tuple[int, int]] = None
    largest: Optional[Tuple[int, int]] = None

    @property
    def trained(self) -> List[Trained]:
        """The classes of the model, in order."""
        own = {one.name: one.colour for one in self.classes}
        found: Dict[str, Trained] = {}
        for one in self.classes:
            name = self.map.get(one.name, one.name)
            if name is not None:
                known = found.get(name, Trained(name, own.get(name, one.colour), ()))
                found[name] = known._replace(values=(*known.values, one.value))
        return list(found.values())

    @property
    def names(self) -> List[str]:
        """Names of the trained classes."""
        return [one.name for one in self.trained]

    @property
    def palette(self) -> List[List[int]]:
        """Colours of the trained classes, RGB."""
        return [list(one.colour) for one in self.trained]

    @property
    def codes(self) -> List[List[int]]:
        """Pairs of what a pixel holds, as one number (see ``code_of``), and its train id or ``IGNORED``."""
        train_ids = {code_of(value): number for number, one in enumerate(self.trained) for value in one.values}
        known = [code_of(one.value) for one in self.classes] + [code_of(value) for value in self.ignore]
        return [[code, train_ids.get(code, IGNORED)] for code in sorted(set(known))]

    @property
    def class_weight(self) -> List[float]:
        """Weights of the trained classes and, last, of "no object": C + 1 numbers."""
        by_class = self.weights if self.weights_applied else {}
        return [*(float(by_class.get(name, 1.0)) for name in self.names), self.no_object]

    @property
    def is_cityscapes(self) -> bool:
        """Whether it is the built-in file, whose set mmseg's own class reads."""
        return self.path == CITYSCAPES


def code_of(value: Value) -> int:
    """A pixel's value as one number; a colour (r, g, b) as r * 65536 + g * 256 + b."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def value_text(code: int, coding: str) -> str:
    """What a pixel holds, as in the file: ``7`` or ``[128, 64, 128]``."""
    return str([code >> 16, code >> 8 & 255, code & 255]) if coding == 'rgb' else str(code)


def read(given: Union[str, Path], root: Optional[str] = None) -> DataSet:
    """Read and check a file.

    Args:
        given: As the user gave it.
        root: Folder that replaces the file's own root; the value of --data_path.

    Raises:
        console.UserError: Names the file, and the key that is wrong in it.
    """
    folder = inputs.absolute(str(given))
    if folder.is_dir():
        there = folder / NAME
        fix = f'give {there}' if there.is_file() else f'make one: python tools/dataset.py inspect {folder}'
        raise console.UserError(f'--dataset: {folder} is a folder', fix)
    path = inputs.require_file('--dataset', str(given))
    try:
        content = json_files.read(path, dict)
    except json_files.JsonError as error:
        raise console.UserError(
            f'--dataset: {path}: {error}', 'mend it, or make it again with python tools/dataset.py inspect DIR'
        ) from None
    return _Reader(path).data_set(content, root)


class _Reader:
    """Turns the content of a file into a ``DataSet``, and names the key of the first fault."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, key: str, problem: str, fix: str = '') -> console.UserError:
        return console.UserError(f'{self.path}: "{key}" {problem}', fix)

    def get(self, group: Dict[str, Any], key: str, kind: Any, place: str = '', default: Any = None) -> Any:
        """A value of a kind; the default if it is not there or null."""
        value, names = group.get(key), {dict: 'an object {}', list: 'a list []', str: 'a text', bool: 'true or false'}
        if value is None:
            if default is not None:
                return default
            raise self.fail(place + key, 'is missing')
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self.fail(place + key, f'is {str(value)[:60]!r}', f'give {names[kind]}')
        return value

    def number(self, value: Any, key: str, low: float, high: float, whole: bool = True) -> Any:
        try:
            if whole:
                return json_files.whole_number(value, int(low), int(high))
            return json_files.number(value, low, high)
        except json_files.JsonError:
            wanted = f'a {"whole " * whole}number from {low:g} to {high:g}'
            raise self.fail(key, f'is {str(value)[:60]!r}', f'give {wanted}') from None

    def texts(self, group: Dict[str, Any], key: str, place: str = '') -> Tuple[str, ...]:
        values = self.get(group, key, list, place, ())
        for value in values:
            if not isinstance(value, str) or not value:
                raise self.fail(place + key, f'holds {str(value)[:60]!r}', 'give texts')
        return tuple(values)

    def data_set(self, content: Dict[str, Any], root: Optional[str]) -> DataSet:
        form = content.get('format')
        if form != FORMAT:
            raise self.fail(
                'format', f'is {str(form)[:40]}, not {FORMAT}', 'make it again with python tools/dataset.py inspect DIR'
            )
        known = {*KEYS}
        strange = sorted(set(content) - known)
        if strange:
            raise self.fail(strange[0], 'is no key of this file', f'the keys are {", ".join(KEYS)}')
        coding = self.get(content, 'coding', str)
        if coding not in CODINGS:
            raise self.fail('coding', f'is {coding[:40]!r}', f'give one of {", ".join(CODINGS)}')
        classes = self.classes(content, coding)
        ignore = tuple(
            self.value(one, f'ignore.{at}', coding) for at, one in enumerate(self.get(content, 'ignore', list, '', ()))
        )
        self.require_apart(classes, ignore)
        mapped = self.map(content, classes)
        sizes = self.get(content, 'sizes', dict)
        training = self.get(content, 'training', dict)
        weights = self.get(content, 'class_weights', dict, '', {})
        by_class = self.get(weights, 'by_class', dict, 'class_weights.', {})
        accept = self.texts(content, 'accept')
        for kind in accept:
            if kind not in ACCEPTABLE:
                raise self.fail('accept', f'holds {kind[:40]!r}', f'what can be accepted: {", ".join(ACCEPTABLE)}')
        reasons = self.get(content, 'reasons', dict, '', {})
        suffixes = self.texts(content, 'image_suffixes')
        if not suffixes:
            raise self.fail('image_suffixes', 'is empty', 'give such as [".jpg"]')
        batch = training.get('val_batch_size')
        found = DataSet(
            path=self.path,
            root=self.root(content, root),
            layout=self.get(content, 'layout', str, '', 'not named'),
            splits=self.splits(content),
            image_suffixes=suffixes,
            label_suffix=self.get(content, 'label_suffix', str),
            coding=coding,
            instances=self.instances(content, coding),
            classes=classes,
            ignore=ignore,
            map=mapped,
            typical=self.pair(sizes, 'typical', 'sizes.'),
            smallest=self.pair(sizes, 'smallest', 'sizes.') if sizes.get('smallest') else None,
            largest=self.pair(sizes, 'largest', 'sizes.') if sizes.get('largest') else None,
            crop=self.crop(training),
            short_side=self.number(training.get('short_side'), 'training.short_side', 32, 1 << 14),
            long_side=self.number(training.get('long_side'), 'training.long_side', 32, 1 << 16),
            val_batch_size=None if batch is None else self.number(batch, 'training.val_batch_size', 1, 4096),
            weights_applied=self.get(weights, 'applied', bool, 'class_weights.', False) if weights else False,
            no_object=self.number(weights.get('no_object', NO_OBJECT), 'class_weights.no_object', 0, 1e6, whole=False),
            weights={
                name: self.number(weight, f'class_weights.by_class.{name}', 0, 1e6, whole=False)
                for name, weight in by_class.items()
            },
            accept=accept,
            reasons={key: str(value) for key, value in reasons.items()},
        )
        if not found.trained:
            raise self.fail('map', 'ignores every class', 'keep at least one')
        strange = sorted(set(by_class) - {*found.names, *(one.name for one in classes)})
        if strange:
            raise self.fail(
                f'class_weights.by_class.{strange[0]}', 'is no class', f'the classes are {", ".join(found.names[:8])}'
            )
        if not any(found.class_weight[:-1]):
            raise self.fail('class_weights.by_class', 'is 0 for every class', 'give one of them a weight')
        return found

    def root(self, content: Dict[str, Any], given: Optional[str]) -> Path:
        if given is not None:
            return inputs.absolute(given)
        root = content.get('root')
        if root is None:
            raise self.fail('root', 'is null, so the place of the set has to be given', 'give --data_path=DIR')
        if not isinstance(root, str) or not root:
            raise self.fail('root', f'is {str(root)[:60]!r}', 'give a folder, relative to this file or absolute')
        found = Path(os.path.normpath(self.path.parent / root))
        if not found.is_dir():
            raise self.fail('root', f'is {root}, and there is no folder {found}', 'correct it, or give --data_path=DIR')
        return found

    def pair(self, group: Dict[str, Any], key: str, place: str) -> Tuple[int, int]:
        value = self.get(group, key, list, place)
        if len(value) != 2:
            raise self.fail(place + key, f'holds {len(value)} numbers', 'give two')
        first, second = (self.number(one, place + key, 1, 1 << 16) for one in value)
        return first, second

    def crop(self, training: Dict[str, Any]) -> Tuple[int, int]:
        crop = self.pair(training, 'crop', 'training.')
        if any(side % 32 for side in crop):
            raise self.fail('training.crop', f'is {list(crop)}', 'give multiples of 32: height, then width')
        return crop

    def instances(self, content: Dict[str, Any], coding: str) -> Optional[Tuple[int, int]]:
        if coding != 'instances':
            return None
        group = self.get(content, 'instances', dict)
        divisor = self.number(group.get('divisor'), 'instances.divisor', 2, 1 << 24)
        return divisor, self.number(group.get('from', 0), 'instances.from', 0, 1 << 24)

    def value(self, value: Any, key: str, coding: str) -> Value:
        if coding != 'rgb':
            number: int = self.number(value, key, 0, (1 << 16) - 1)
            return number
        return self.colour(value, key)

    def colour(self, value: Any, key: str) -> Colour:
        if not isinstance(value, list) or len(value) != 3:
            raise self.fail(key, f'is {str(value)[:60]!r}', 'give a colour, such as [128, 64, 128]')
        red, green, blue = (self.number(one, key, 0, 255) for one in value)
        return red, green, blue

    def classes(self, content: Dict[str, Any], coding: str) -> Tuple[Labelled, ...]:
        rows = self.get(content, 'classes', list)
        if not 1 <= len(rows) <= MOST_CLASSES:
            raise self.fail('classes', f'holds {len(rows)} classes', f'give 1 to {MOST_CLASSES}')
        found: Dict[str, Labelled] = {}
        for at, row in enumerate(rows):
            place = f'classes.{at}'
            if not isinstance(row, dict):
                raise self.fail(place, f'is {str(row)[:60]!r}', 'give {"name": ..., "value": ...}')
            name = self.name(row.get('name'), f'{place}.name')
            if name in found:
                raise self.fail(
                    f'{place}.name', f'is {name!r}, as of another class', 'give each class a name of its own'
                )
            value = self.value(row.get('value'), f'{place}.value', coding)
            default = value if isinstance(value, tuple) else made_up_colour(at)
            colour = default if row.get('colour') is None else self.colour(row['colour'], f'{place}.colour')
            share = row.get('share_percent')
            share = None if share is None else self.number(share, f'{place}.share_percent', 0, 100, whole=False)
            found[name] = Labelled(name, value, colour, share)
        return tuple(found.values())

    def name(self, name: Any, key: str) -> str:
        """A name that tables, logs and options can hold."""
        if not isinstance(name, str) or not name.strip() or name != name.strip() or len(name) > 80:
            raise self.fail(key, f'is {str(name)[:60]!r}', 'give a text of 1 to 80 characters')
        if '|' in name or ',' in name or not name.isprintable():
            raise self.fail(key, f'is {name!r}', 'leave out |, commas and control characters')
        return name

    def require_apart(self, classes: Sequence[Labelled], ignore: Sequence[Value]) -> None:
        owner: Dict[Value, str] = {}
        for name, value in [*((one.name, one.value) for one in classes), *(('', value) for value in ignore)]:
            if value in owner and (name or owner[value]):
                both = ' and '.join(f'class {one!r}' if one else '"ignore"' for one in (owner[value], name))
                raise self.fail('classes', f'gives the value {value} to {both}', 'keep one of them')
            owner[value] = name

    def map(self, content: Dict[str, Any], classes: Sequence[Labelled]) -> Dict[str, Optional[str]]:
        mapped = self.get(content, 'map', dict, '', {})
        names = {one.name for one in classes}
        for name, target in mapped.items():
            if name not in names:
                raise self.fail(f'map.{name}', 'is no class', f'the classes are {", ".join(sorted(names)[:8])}')
            if target is None:
                continue
            self.name(target, f'map.{name}')
            if mapped.get(target, target) != target:
                raise self.fail(f'map.{name}', f'leads to {target!r}, which is mapped itself', 'name the last one')
        return dict(mapped)

    def splits(self, content: Dict[str, Any]) -> Dict[str, Split]:
        groups = self.get(content, 'splits', dict)
        for name in ('train', 'val'):
            if name not in groups:
                raise self.fail(f'splits.{name}', 'is missing', 'give {"images": FOLDER, "labels": FOLDER}')
        strange = sorted(set(groups) - {*SPLITS})
        if strange:
            raise self.fail(f'splits.{strange[0]}', 'is no split', f'give {", ".join(SPLITS)}')
        return {name: self.split(self.get(groups, name, dict, 'splits.'), f'splits.{name}.') for name in groups}

    def split(self, group: Dict[str, Any], place: str) -> Split:
        strange = sorted(set(group) - {'images', 'labels', 'list', 'only', 'without', 'first', 'before'})
        if strange:
            raise self.fail(place + strange[0], 'is no key of a split')
        folders = {}
        for key in ('images', 'labels'):
            folder = self.get(group, key, str, place)
            if folder.startswith('/') or '..' in Path(folder).parts or folder.count('*') > 1:
                raise self.fail(place + key, f'is {folder!r}', 'give a folder below the root, with one * at most')
            folders[key] = folder
        if folders['images'].count('*') != folders['labels'].count('*'):
            raise self.fail(place + 'labels', f'is {folders["labels"]!r}', 'give as many * as "images" has')
        texts = {key: self.get(group, key, str, place, '') or None for key in ('list', 'first', 'before')}
        return Split(
            folders['images'],
            folders['labels'],
            texts['list'],
            self.texts(group, 'only', place),
            self.texts(group, 'without', place),
            texts['first'],
            texts['before'],
        )


KEYS = (
    *('format', 'root', 'layout', 'splits', 'image_suffixes', 'label_suffix', 'coding', 'instances', 'classes'),
    *('ignore', 'map', 'sizes', 'training', 'class_weights', 'accept', 'reasons'),
)


def made_up_colour(number: int) -> Colour:
    """A colour for class ``number``: the bits of the number spread over the three channels, as in Pascal VOC's map."""
    red = green = blue = 0
    number += 1  # 0 would be black
    for shift in range(7, -1, -1):
        red |= (number & 1) << shift
        green |= (number >> 1 & 1) << shift
        blue |= (number >> 2 & 1) << shift
        number >>= 3
    return red, green, blue


def _rounded(number: float) -> float:
    """Three significant digits."""
    return float(f'{number:.3g}') if math.isfinite(number) else 0.0


def as_text(found: DataSet, root: Optional[str]) -> str:
    """The text of a file.

    Args:
        found: The content.
        root: The root as it stands in the file; None: it has to be given each time.
    """

    def plain(value: Value) -> Any:
        return list(value) if isinstance(value, tuple) else value

    content: Dict[str, Any] = {
        'format': FORMAT,
        'root': root,
        'layout': found.layout,
        'splits': {name: split.as_dict() for name, split in found.splits.items()},
        'image_suffixes': list(found.image_suffixes),
        'label_suffix': found.label_suffix,
        'coding': found.coding,
        **({'instances': dict(zip(('divisor', 'from'), found.instances))} if found.instances else {}),
        'classes': [
            {
                'name': one.name,
                'value': plain(one.value),
                'colour': list(one.colour),
                'share_percent': None if one.share is None else _rounded(one.share),
            }
            for one in found.classes
        ],
        'ignore': [plain(value) for value in found.ignore],
        'map': found.map,
        'sizes': {
            name: list(size)
            for name, size in (('typical', found.typical), ('smallest', found.smallest), ('largest', found.largest))
            if size
        },
        'training': {
            'crop': list(found.crop),
            'short_side': found.short_side,
            'long_side': found.long_side,
            'val_batch_size': found.val_batch_size,
        },
        'class_weights': {
            'applied': found.weights_applied,
            'no_object': found.no_object,
            'by_class': {name: _rounded(weight) for name, weight in found.weights.items()},
        },
        'accept': list(found.accept),
        'reasons': found.reasons,
    }
    return _text(content) + '\n'


def _text(value: Any, indent: str = '') -> str:
    """JSON with each short group on one line, so that people can edit it."""
    flat = json.dumps(value, ensure_ascii=False)
    is_flat = isinstance(value, (dict, list)) and len(flat) + len(indent) <= 110
    if not isinstance(value, (dict, list)) or (is_flat and indent):
        return flat
    inner = indent + '  '
    if isinstance(value, dict):
        rows = [f'{json.dumps(key, ensure_ascii=False)}: {_text(child, inner)}' for key, child in value.items()]
    else:
        rows = [_text(child, inner) for child in value]
    opening, closing = '{}' if isinstance(value, dict) else '[]'
    return f'{opening}\n{inner}' + f',\n{inner}'.join(rows) + f'\n{indent}{closing}'


def write(found: DataSet) -> Path:
    """Write the file at ``found.path``; its root is relative if that leads down from the file's folder."""
    try:
        root = found.root.relative_to(found.path.parent).as_posix()
    except ValueError:
        root = str(found.root)
    return files.write_text(found.path, as_text(found, root))

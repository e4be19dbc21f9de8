"""Guesses the content of dataset.json from a folder. Each guess has a reason."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from recipe.core import console
from recipe.data import parallel
from recipe.data.sets import coding, layouts, look, names, split
from recipe.data.sets.file import (
    MOST_CLASSES,
    DataSet,
    Labelled,
    Split,
    Value,
    made_up_colour,
)
from recipe.data.sets.pairs import Pair, find, is_chosen

SAMPLES = 400  # labels to read, if the user names no number
_SIZES = 2000  # pictures whose sizes are read
CROP = (512, 1024)  # of the recipe: height, width
SHORT_SIDE = 1024  # of Cityscapes' pictures
_STEP = 32  # the model halves a side five times
_BOUNDARY = 224 << 16 | 224 << 8 | 192  # colour of Pascal VOC's boundaries, which are ignored
_MOST_WEIGHT = 5.0
_ENOUGH_LABELS = 10  # to say what labels do not hold


class _Coding(NamedTuple):
    """How labels are coded."""

    kind: str
    why: str
    instances: Optional[Tuple[int, int]] = None


def inspect(
    root: Path, out: Path, samples: int = SAMPLES, workers: Optional[int] = None, progress: bool = True
) -> DataSet:
    """Guess the content of a file.

    Args:
        root: Folder of the set, absolute.
        out: The file's path.
        samples: How many labels to read, evenly spread; 0: all.
        workers: Processes that read.
        progress: Whether to show progress on stdout.

    Raises:
        console.UserError: No layout is recognised, or the labels have no classes.
    """
    layout = layouts.detect(root)
    found = {
        name: find(root, one, layout.image_suffixes, layout.label_suffix).pairs for name, one in layout.splits.items()
    }
    found = {name: pairs for name, pairs in found.items() if pairs}
    if sum(map(len, found.values())) < 2:
        raise console.UserError(
            f'{root}: {sum(map(len, found.values()))} pairs of picture and label ({layout.why}), and two are needed',
            'a label has to be named as its picture',
        )
    reasons = {'layout': layout.why}
    everything = [pair for pairs in found.values() for pair in pairs]
    chosen = _spread(everything, samples or len(everything))
    looks = _look(chosen, None, workers, progress)
    coded = _coding(looks, layout)
    if coded.kind == 'rgb' and any(one.mode not in ('RGB', 'RGBA') for one in looks.values()):
        looks = _look(chosen, True, workers, progress)
    reasons['coding'] = coded.why
    counts: Dict[int, int] = collections.Counter()
    present: Dict[str, Set[int]] = {}
    for pair in chosen:
        if pair.label not in looks:
            continue
        one: Dict[int, int] = collections.Counter()
        for code, count in looks[pair.label].codes.items():
            one[int(coding.class_values(np.array(code), coded.instances))] += count
        present[pair.label] = set(one)
        for code, count in one.items():
            counts[code] += count
    classes, ignore = _classes(root, layout, coded.kind, counts, looks, reasons)
    splits = _splits(layout, found, {pair.name: present.get(pair.label, set()) for pair in chosen}, reasons)
    sizes = [size for pair in _spread(everything, _SIZES) for size in [look.size_of(pair.image)] if size]
    if not sizes:
        raise console.UserError(f'{root}: none of its pictures can be read, such as {everything[0].image}')
    typical, is_alike = _typical(sizes)
    crop, short_side, long_side = training_sizes(typical)
    reasons['training'] = (
        f'{"all" if is_alike else "most"} pictures are {typical[0]}x{typical[1]}; '
        f'their short side at scale 1 is {short_side}, a crop is {crop[1]}x{crop[0]}'
    )
    frequency = {one.name: sum(_code(one.value) in codes for codes in present.values()) for one in classes}
    weights = class_weights(frequency)
    reasons['class_weights'] = (
        'not applied; median number of labels with a class / number of labels with this class, from 1 to '
        f'{_MOST_WEIGHT:g}; set "applied" to true to train with them'
    )
    return DataSet(
        path=out,
        root=root,
        layout=layout.name,
        splits=splits,
        image_suffixes=layout.image_suffixes,
        label_suffix=layout.label_suffix,
        coding=coded.kind,
        instances=coded.instances,
        classes=tuple(classes),
        ignore=tuple(ignore),
        typical=typical,
        smallest=(min(size[0] for size in sizes), min(size[1] for size in sizes)),
        largest=(max(size[0] for size in sizes), max(size[1] for size in sizes)),
        crop=crop,
        short_side=short_side,
        long_side=long_side,
        val_batch_size=None if is_alike else 1,
        weights=weights,
        reasons=reasons,
    )


def _code(value: Value) -> int:
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _spread(items: Sequence[Any], count: int) -> List[Any]:
    """At most ``count`` items, evenly spread."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _look(
    pairs: Sequence[Pair], is_rgb: Optional[bool], workers: Optional[int], progress: bool
) -> Dict[str, look.Label]:
    """Read labels; those that cannot be read are named and left out."""
    jobs = [look.LabelJob(pair.label, is_rgb) for pair in pairs]
    found = dict(zip((job.path for job in jobs), parallel.run(look.label, jobs, 'reading labels', workers, progress)))
    faults = [f'{path}: {one.fault}' for path, one in found.items() if one.fault]
    for fault in faults[:3]:
        console.warn(fault)
    good = {path: one for path, one in found.items() if not one.fault}
    if not good:
        raise console.UserError(f'none of {len(jobs)} labels can be read; the first: {faults[0]}')
    if faults:
        console.warn(f'{len(faults)} of {len(jobs)} labels cannot be read; the guesses are made without them')
    return good


def _coding(looks: Dict[str, look.Label], layout: layouts.Layout) -> _Coding:
    modes = collections.Counter(one.mode for one in looks.values())
    some = ', '.join(f'{count} of Pillow mode {mode}' for mode, count in modes.most_common())
    if set(modes) & {'RGB', 'RGBA'}:
        return _Coding('rgb', f'labels have colours ({some})')
    if layout.instances is not None:
        return _Coding(
            'instances', f'{layout.name} numbers classes x {layout.instances[0]} + instance', layout.instances
        )
    values = {code for one in looks.values() for code in one.codes}
    if len(values) > MOST_CLASSES or max(values) > 255:
        return _numbers_beyond_bytes(values, some)
    if set(modes) == {'P'}:
        colours: Dict[int, Set[Tuple[int, int, int]]] = {}
        for one in looks.values():
            for value, colour in one.palette.items():
                colours.setdefault(value, set()).add(colour)
        if all(len(seen) == 1 for seen in colours.values()):
            return _Coding(
                'palette', f'labels have a palette, which is the same in all ({some}): the index is the class'
            )
        return _Coding('rgb', 'labels have palettes that differ from file to file: the colour is the class')
    return _Coding('indices', f'labels have one channel of 8 bits ({some}): the number is the class')


def _numbers_beyond_bytes(values: Set[int], some: str) -> _Coding:

    def classes(divisor: int) -> Set[int]:
        return {value // divisor if value >= divisor else value for value in values}

    def fit(divisor: int) -> float:
        """Share of the classes whose instances are numbered from a small number on."""
        least: Dict[int, int] = {}
        for value in values:
            if value >= divisor:
                least[value // divisor] = min(least.get(value // divisor, divisor), value % divisor)
        return sum(number < divisor / 20 for number in least.values()) / max(1, len(least))

    divisor = max((1000, 256), key=fit)
    is_likely = fit(divisor) > 0.9 and len(classes(divisor)) < 0.8 * len(values)
    if len(values) <= MOST_CLASSES and not is_likely:
        return _Coding(
            '16 bits', f'labels hold {len(values)} numbers up to {max(values)} ({some}): the number is the class'
        )
    if len(classes(divisor)) > MOST_CLASSES:
        raise console.UserError(
            f'the labels hold {len(values)} numbers, so they are no labels, or have more than {MOST_CLASSES} classes'
        )
    return _Coding(
        'instances',
        f'labels hold {len(values)} numbers ({some}), which fit class x {divisor} + instance',
        (divisor, divisor),
    )


# --- classes ---------------------------------------------------------------------------------------------------------


def _classes(
    root: Path,
    layout: layouts.Layout,
    kind: str,
    counts: Dict[int, int],
    looks: Dict[str, look.Label],
    reasons: Dict[str, str],
) -> Tuple[List[Labelled], List[Value]]:
    """Classes in the order of their values, and the values to ignore."""
    is_rgb = kind == 'rgb'
    if len(counts) > MOST_CLASSES + 1:
        raise console.UserError(
            f'{root}: the labels hold {len(counts)} {"colours" if is_rgb else "numbers"}, so they are photos, or were '
            f'stored or resized with losses; at most {MOST_CLASSES} classes can be trained',
            'bring the original labels',
        )
    ignore: Dict[int, str] = dict.fromkeys(layout.ignore, f'{layout.name} ignores it')
    named = names.find(root, layout.classes, layout.first_value)
    known: Dict[int, names.Named] = {}
    if named is not None:
        known, why = _bind(named, is_rgb, sorted(set(counts) - set(ignore) - {255}), looks)
        reasons['names'] = why
        ignore.update({code: f'it is named {one.name}' for code, one in known.items() if one.is_void})
        if not is_rgb and known and min(known) > 0:
            ignore.setdefault(0, f'the named classes begin with {min(known)}')
    else:
        reasons['names'] = 'no file names the classes; write the names into dataset.json'
    if not is_rgb or not any(code in counts for code in ignore):
        guessed = _guess_ignored(is_rgb, counts, {*known, *ignore})
        if guessed is not None:
            ignore[guessed[0]] = guessed[1]
    codes = sorted({*counts, *(code for code, one in known.items())} - set(ignore))
    if not set(codes) & set(counts):
        raise console.UserError(f'{root}: every pixel of the labels that were read is ignored', 'bring other labels')
    total = sum(counts.get(code, 0) for code in codes) or 1
    palette = {value: colour for one in looks.values() for value, colour in one.palette.items()}
    classes = []
    for at, code in enumerate(codes):
        value = _value(code, is_rgb)
        one = known.get(code)
        default = value if isinstance(value, tuple) else palette.get(code) if kind == 'palette' else None
        name = one.name if one else f'colour {code >> 16} {code >> 8 & 255} {code & 255}' if is_rgb else f'class {code}'
        colour = (one.colour if one else None) or default or made_up_colour(at)
        classes.append(Labelled(name, value, colour, 100 * counts.get(code, 0) / total))
    strange = [one.name for one, code in zip(classes, codes) if known and code not in known]
    if strange:
        reasons['names'] += f'; not named there: {", ".join(strange[:5])}'
    shown = ', '.join(f'{_value(code, is_rgb)} ({why})' for code, why in list(ignore.items())[:4])
    reasons['ignore'] = shown or 'no value looks like one to ignore'
    return classes, [_value(code, is_rgb) for code in sorted(ignore)]


def _value(code: int, is_rgb: bool) -> Value:
    return (code >> 16, code >> 8 & 255, code & 255) if is_rgb else code


def _bind(
    found: names.Found, is_rgb: bool, codes: List[int], looks: Dict[str, look.Label]
) -> Tuple[Dict[int, names.Named], str]:
    """Find what the pixels of each named class hold; empty if nothing fits."""
    rows, why = found.classes, found.why
    coloured = {_code(one.colour): one for one in rows if one.colour}
    if is_rgb:
        if set(coloured) & set(codes):
            return coloured, f'{why}, by colour'
        return {}, f'{why}, but not by colour, so they are not used'
    palette = {_code(colour): value for one in looks.values() for value, colour in one.palette.items()}
    if any(one.value is not None for one in rows):
        known = names.by_value(found)
        highest = max(codes, default=0)
        # Somebody's own classes in the folders of a known set: of its own labels so many hold higher numbers too.
        if found.is_standard and len(looks) >= _ENOUGH_LABELS and 2 * highest < max(known):
            return {}, f'{why} are not used: none of {len(looks)} labels holds a number above {highest}'
        return known, f'{why}, by number'
    if coloured and set(coloured) & set(palette):
        by_colour = {palette[code]: one for code, one in coloured.items() if code in palette}
        return by_colour, f"{why}, by the palette's colours"
    if max(codes, default=0) < len(rows):
        return dict(enumerate(rows)), f'{why}; the first is that of 0'
    if len(codes) == len(rows):
        return dict(zip(codes, rows)), f'{why}, as many as there are values, in their order'
    return {}, f'{why}, but the labels hold {len(codes)} values, so they are not used'


def _guess_ignored(is_rgb: bool, counts: Dict[int, int], named: Set[int]) -> Optional[Tuple[int, str]]:
    """The value that most likely means pixels to ignore, and why."""
    if is_rgb:
        if _BOUNDARY in counts and _BOUNDARY not in named:
            return _BOUNDARY, "the colour of Pascal VOC's boundaries"
        for code, name in ((0, 'black'), (0xFFFFFF, 'white')):
            if code in counts and code not in named and len(counts) >= 5:
                return code, f'{name} is likely to mean no class'
        return None
    if 255 in counts and 255 not in named and set(counts) != {0, 255}:
        return 255, 'the usual value'
    if 0xFFFF in counts and 0xFFFF not in named:
        return 0xFFFF, 'the largest number of 16 bits'
    return None


def class_weights(frequency: Dict[str, int]) -> Dict[str, float]:
    """Weights for rare classes: median frequency / frequency, from 1 to 5.

    Mask2Former's classification loss counts queries, and a class has one query in each picture that holds it: so the
    frequency is that of pictures, not of pixels. Median frequency balancing: Eigen and Fergus, 2015, arXiv:1411.4734.

    Args:
        frequency: Labels with the class, by name.
    """
    known = sorted(count for count in frequency.values() if count)
    median = float(np.median(known)) if known else 1.0
    return {
        name: min(_MOST_WEIGHT, max(1.0, median / count)) if count else _MOST_WEIGHT
        for name, count in frequency.items()
    }


# --- splits and sizes ------------------------------------------------------------------------------------------------


def _splits(
    layout: layouts.Layout, found: Dict[str, List[Pair]], present: Dict[str, Set[int]], reasons: Dict[str, str]
) -> Dict[str, Split]:
    given = {name: layout.splits[name] for name in found if name != 'all'}
    if 'train' in given and 'val' in given:
        reasons['splits'] = 'given: ' + ', '.join(f'{name} {len(found[name])} pairs' for name in given)
        return given
    if 'train' in given and 'test' in given:
        reasons['splits'] = (
            f'given: train {len(found["train"])} pairs; there is no split to validate on, so test does, '
            f'{len(found["test"])} pairs'
        )
        return {'train': given['train'], 'val': given['test']}
    whole = next(name for name in ('train', 'all', 'val', 'test') if name in found)
    proposed = split.propose(layout.splits[whole], sorted(pair.name for pair in found[whole]), present)
    parts = {'train': proposed.train, 'val': proposed.val}
    counts = (f'{name} {sum(is_chosen(pair.name, one) for pair in found[whole])} pairs' for name, one in parts.items())
    reasons['splits'] = f'proposed, as no split is given: {", ".join(counts)}; {proposed.why}'
    return parts


def _typical(sizes: Sequence[Tuple[int, int]]) -> Tuple[Tuple[int, int], bool]:
    """(width, height) of a typical picture, and whether all are so."""
    (most, count), *others = collections.Counter(sizes).most_common()
    if 2 * count >= len(sizes):
        return most, not others
    widths, heights = zip(*sizes)
    return (int(np.median(widths)), int(np.median(heights))), False


def training_sizes(typical: Tuple[int, int]) -> Tuple[Tuple[int, int], int, int]:
    """The crop, and the size at scale 1, for pictures of a size.

    At scale 1 the short side is that of the pictures, 1024 at most. The crop is the recipe's, 512 x 1024, if it fits
    into a picture at this scale; otherwise each of its sides that does not fit is the largest multiple of 32 that does.

    Args:
        typical: (width, height) of a typical picture.

    Returns:
        (height, width) of the crop, the short side and the long side at scale 1, in pixels.
    """
    short = max(_STEP, min(SHORT_SIDE, *typical))
    scale = short / min(typical)
    width, height = (max(_STEP, math.floor(side * scale + 0.5)) for side in typical)
    crop = tuple(min(most, side // _STEP * _STEP) for most, side in zip(CROP, (height, width)))
    return (crop[0], crop[1]), short, max(width, height)

"""Data sets as strangers have them, drawn by seed: layouts, codings, sizes and numbers of classes; and broken ones."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import Callable, Dict, Sequence, Tuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIZE = (128, 64)


def colours(count: int) -> np.ndarray:
    """Colours that are all different, uint8 (count, 3)."""
    return np.array([(37 * (n + 1) % 256, 91 * (n + 1) % 256, 59 * (n + 1) % 256) for n in range(count)], np.uint8)


def draw(number: int, classes: int, size: Tuple[int, int]) -> Tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 (H, W, 3), and its classes, int (H, W), -1 for some pixels at the upper edge.

    Every class occurs in each run of ``classes / 4`` pictures.
    """
    random = np.random.default_rng(number)
    width, height = size
    truth = np.full((height, width), number % classes)
    rows = np.array_split(np.arange(height), 2)
    columns = np.array_split(np.arange(width), 2)
    for part, (row, column) in enumerate((row, column) for row in rows for column in columns):
        truth[np.ix_(row, column)] = (4 * number + part) % classes
    truth[:2] = -1
    noise = random.integers(-20, 21, (height, width, 3))
    picture = np.clip(colours(classes)[truth].astype(int) + noise, 0, 255).astype(np.uint8)
    return picture, truth


def save_label(path: Path, truth: np.ndarray, coding: str, values: Sequence[int]) -> None:
    """Write a label.

    Args:
        path: PNG to write.
        truth: From ``draw``.
        coding: ``indices``, ``palette``, ``rgb``, ``16 bits`` or ``instances``.
        values: What a pixel of each class holds; with ``rgb`` the row of ``colours``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.array([*values, 255 if coding != 'rgb' else 0])  # -1 is the last one
    if coding == 'rgb':
        table = np.concatenate([colours(len(values)), np.zeros((1, 3), np.uint8)])
        Image.fromarray(table[truth]).save(path)
        return
    pixels = table[truth]
    if coding == 'instances':
        ramp = np.arange(pixels.shape[1]) * 4 // pixels.shape[1]
        pixels = np.where(truth >= 0, pixels * 1000 + ramp, 0)
    picture = Image.fromarray(pixels.astype(np.uint16 if coding in ('16 bits', 'instances') else np.uint8))
    if coding == 'palette':
        flat = np.zeros((256, 3), np.uint8)
        flat[list(values)] = colours(len(values))
        picture.putpalette(flat.reshape(-1).tolist())
    picture.save(path)


def make(
    root: Path,
    coding: str = 'indices',
    classes: int = 4,
    sizes: Sequence[Tuple[int, int]] = (SIZE,),
    counts: Tuple[int, int] = (8, 4),
    values: Sequence[int] = (),
    names: bool = True,
    place: Callable[[str, int], Tuple[str, str]] = lambda split, n: (
        f'images/{split}/s{n}.jpg',
        f'labels/{split}/s{n}.png',
    ),
) -> Path:
    """Write a set.

    Args:
        root: Its folder.
        coding: See ``save_label``.
        classes: How many.
        sizes: (width, height) of pictures, in turns.
        counts: Pictures to train and to validate on.
        values: What a pixel of each class holds; by default its number.
        names: Whether a file names the classes.
        place: Paths of picture and label, of a split and a number.
    """
    values = values or range(classes)
    for split, first, count in (('train', 0, counts[0]), ('val', 100, counts[1])):
        for number in range(first, first + count):
            image, label = (root / path for path in place(split, number))
            picture, truth = draw(number, classes, sizes[number % len(sizes)])
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(image)
            save_label(label, truth, coding, values)
    if names:
        rows = [f'name_{value}' for value in values]
        if coding == 'rgb':
            lines = ['name,r,g,b', *(f'{name},{r},{g},{b}' for name, (r, g, b) in zip(rows, colours(classes).tolist()))]
            (root / 'class_dict.csv').write_text('\n'.join(lines) + '\n')
        else:
            (root / 'classes.txt').write_text(''.join(f'{value}: {name}\n' for name, value in zip(rows, values)))
    return root


# --- broken sets -----------------------------------------------------------------------------------------------------
# Each breaks a copy of the set of ``make_good``, and returns the file at fault and the words that name the fault.

GOOD_VALUES = (0, 3, 7, 12)
Fault = Tuple[Path, str]


def make_good(root: Path) -> Path:
    """The set that the broken ones are made from: numbers with gaps, two sizes."""
    return make(root, sizes=(SIZE, (96, 96)), values=GOOD_VALUES)


def _label(root: Path, split: str = 'train') -> Path:
    return sorted((root / 'labels' / split).iterdir())[0]


def _image(root: Path, split: str = 'train') -> Path:
    return sorted((root / 'images' / split).iterdir())[0]


def _pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def _save_as(path: Path, kind: str, pixels: np.ndarray) -> None:
    """Write a picture of a kind under any name."""
    with path.open('wb') as file:
        Image.fromarray(pixels).save(file, kind)


def _oriented(root: Path, value: int) -> Fault:
    path = _image(root)
    exif = Image.Exif()
    exif[0x0112] = value
    Image.open(path).save(path, exif=exif.tobytes())
    return path, 'EXIF orientation: '


def _written(path: Path, content: bytes, words: str) -> Fault:
    path.write_bytes(content)
    return path, words


def _replaced(path: Path, pixels: np.ndarray, words: str) -> Fault:
    _save_as(path, 'PNG', pixels)
    return path, words


def _linked(path: Path) -> Fault:
    path.unlink()
    path.symlink_to('gone')
    return path, 'broken symbolic link'


def _removed(path: Path, at_fault: Path, words: str) -> Fault:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return at_fault, words


def _no_label(root: Path) -> Fault:
    return _removed(_label(root), _image(root), 'picture without a label: ')


def _folder_for_a_label(root: Path) -> Fault:
    _label(root).unlink()
    (root / 'labels' / 'train' / _image(root).with_suffix('.png').name).mkdir()
    return _image(root), 'picture without a label: '


def _with_losses(path: Path) -> Fault:
    _save_as(path, 'JPEG', _pixels(path))
    return path, 'holds JPEG data'


def _damaged(path: Path) -> Fault:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    return path, 'unreadable label: '


def _bomb(path: Path) -> Fault:
    """A label whose head promises 90 000 x 90 000 pixels."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack('>II', 90_000, 90_000)
    data[29:33] = struct.pack('>I', zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    return path, 'too many pixels'


def _duplicate(root: Path) -> Fault:
    path = root / 'images' / 'val' / 's900.jpg'
    shutil.copy(_image(root), path)
    shutil.copy(_label(root), root / 'labels' / 'val' / 's900.png')
    return path, 'duplicate: the same picture as '


def _without_a_class(root: Path) -> Fault:
    for path in (root / 'labels' / 'train').iterdir():
        pixels = _pixels(path)
        _save_as(path, 'PNG', np.where(pixels == GOOD_VALUES[-1], 0, pixels).astype(np.uint8))
    return root / 'dataset.json', 'class that never occurs: no label to train on holds name_12'


def _all_ignored(root: Path) -> Fault:
    for path in (root / 'labels' / 'val').iterdir():
        _save_as(path, 'PNG', np.full_like(_pixels(path), 255))
    return _label(root, 'val'), 'all-ignored label: '


def _empty_split(root: Path) -> Fault:
    for path in [*(root / 'images' / 'val').iterdir(), *(root / 'labels' / 'val').iterdir()]:
        path.unlink()
    return root / 'images' / 'val', 'empty split val: '


def _moved_label(root: Path) -> Fault:
    """A label under another name: both it and its picture are alone."""
    path = _label(root)
    path.rename(path.with_name('other.png'))
    return path.with_name('other.png'), 'label without a picture: '


def _few_bits(path: Path) -> Fault:
    return _replaced(path, _pixels(path) == 0, 'unknown value: it holds 1;')


def _other_palette(path: Path) -> Fault:
    picture = Image.fromarray((_pixels(path) // 3).astype(np.uint8))
    picture.putpalette(list(range(256)) * 3)
    picture.save(path)
    return path, 'unknown value: it holds '


def _with_long_text(path: Path) -> Fault:
    """A whole PNG with more metadata than Pillow reads."""
    text = PngInfo()
    text.add_text('notes', 'x' * (2 << 20), zip=True)
    Image.open(path).save(path, 'PNG', pnginfo=text)
    return path, 'holds more text (metadata) than Pillow reads'


BROKEN: Dict[str, Callable[[Path], Fault]] = {
    'no label': _no_label,
    'a folder in place of a label': _folder_for_a_label,
    'a label under another name': _moved_label,
    'no picture': lambda root: _removed(_image(root), _label(root), 'label without a picture: '),
    'a label of another size': lambda root: _replaced(
        _label(root), _pixels(_label(root))[::2], 'different sizes: it is '
    ),
    'a label turned by a quarter': lambda root: _replaced(
        _label(root), _pixels(_label(root)).T, 'different sizes: it is '
    ),
    'an empty label': lambda root: _written(_label(root), b'', 'empty file (0 bytes)'),
    'half a label': lambda root: _written(_label(root), _label(root).read_bytes()[:60], 'unreadable label: damaged'),
    'a page in place of a label': lambda root: _written(
        _label(root), b'<html>log in</html>', 'unreadable label: damaged or truncated picture (no picture begins'
    ),
    'a damaged label': lambda root: _damaged(_label(root)),
    'a label that promises too much': lambda root: _bomb(_label(root)),
    'a label stored with losses': lambda root: _with_losses(_label(root)),
    'a label in colours': lambda root: _replaced(
        _label(root), np.stack([_pixels(_label(root))] * 3, -1), 'has colours'
    ),
    'a label with transparency': lambda root: _replaced(
        _label(root), np.stack([_pixels(_label(root))] * 2, -1), 'has colours (Pillow mode LA)'
    ),
    'a value that nothing names': lambda root: _replaced(
        _label(root), np.full_like(_pixels(_label(root)), 99), 'unknown value: it holds 99;'
    ),
    '16 bits with a strange value': lambda root: _replaced(
        _label(root), _pixels(_label(root)).astype(np.uint16) + 40000, 'unknown value: it holds 40000, 40003'
    ),
    'a label of one bit': lambda root: _few_bits(_label(root)),
    'a label with another palette': lambda root: _other_palette(_label(root)),
    'an ignored label': lambda root: _replaced(
        _label(root), np.full_like(_pixels(_label(root)), 255), 'all-ignored label: '
    ),
    'a split of ignored labels': _all_ignored,
    'a label that is a broken link': lambda root: _linked(_label(root)),
    'a label resized with interpolation': lambda root: _replaced(
        _label(root),
        np.array(Image.open(_label(root)).resize((7, 9)).resize(SIZE, Image.BILINEAR)),
        'unknown value: it holds ',
    ),
    'an empty picture': lambda root: _written(_image(root), b'', 'empty file (0 bytes)'),
    'a picture with a long text': lambda root: _with_long_text(_image(root)),
    'a label with a long text': lambda root: _with_long_text(_label(root)),
    'half a picture': lambda root: _written(_image(root), _image(root).read_bytes()[:900], 'unreadable: damaged'),
    'a text in place of a picture': lambda root: _written(
        _image(root), b'\x1b[31mno', 'unreadable: damaged or truncated picture (no picture begins with'
    ),
    'zeros in place of a picture': lambda root: _written(
        _image(root), bytes(999), 'unreadable: damaged or truncated picture (no picture begins with'
    ),
    'a picture of 16 bits': lambda root: _replaced(
        _image(root), np.zeros((64, 128), np.uint16), 'wrong kind of picture: it has Pillow mode I'
    ),
    'a picture of one bit': lambda root: _replaced(
        _image(root), np.zeros((64, 128), bool), 'wrong kind of picture: it has Pillow mode 1'
    ),
    'a picture turned by a quarter': lambda root: _oriented(root, 6),
    'a picture on its head': lambda root: _oriented(root, 3),
    'a picture that is a broken link': lambda root: _linked(_image(root)),
    'one picture in two splits': _duplicate,
    'a class that no label holds': _without_a_class,
    'no pictures to validate on': lambda root: _removed(
        root / 'images' / 'val', root / 'images' / 'val', 'missing split val: no such folder'
    ),
    'no labels to train on': lambda root: _removed(
        root / 'labels' / 'train', root / 'labels' / 'train', 'missing split train: no such folder'
    ),
    'an empty split': _empty_split,
}

# Changes of a good dataset.json, and the words of the refusal; each names the key.
BROKEN_FILES: Dict[str, Tuple[Callable[[Dict], object], str]] = {
    'another format': (lambda content: content.update(format=9), '"format" is 9, not 1'),
    'a key of no meaning': (lambda content: content.update(colours=[]), '"colours" is no key of this file'),
    'no classes': (lambda content: content.update(classes=[]), '"classes" holds 0 classes'),
    'classes as a text': (lambda content: content.update(classes='road'), '"classes" is \'road\'; give a list []'),
    'a name twice': (lambda content: content['classes'][1].update(name='name_0'), '"classes.1.name" is \'name_0\''),
    'a name that tables cannot hold': (lambda content: content['classes'][1].update(name='a|b'), '"classes.1.name" is'),
    'a value twice': (lambda content: content['classes'][1].update(value=0), 'gives the value 0 to class'),
    'a value as a text': (lambda content: content['classes'][1].update(value='3'), '"classes.1.value" is \'3\''),
    'a class that is ignored': (lambda content: content.update(ignore=[3]), 'and "ignore"'),
    'a map of no class': (lambda content: content.update(map={'sky': None}), '"map.sky" is no class'),
    'a map that ignores all': (
        lambda content: content.update(map={f'name_{value}': None for value in GOOD_VALUES}),
        '"map" ignores every class',
    ),
    'a chain of maps': (
        lambda content: content.update(map={'name_0': 'name_3', 'name_3': 'name_7'}),
        '"map.name_0" leads to \'name_3\', which is mapped itself',
    ),
    'a crop that the model cannot take': (
        lambda content: content['training'].update(crop=[100, 128]),
        '"training.crop"',
    ),
    'no split to validate on': (lambda content: content['splits'].pop('val'), '"splits.val" is missing'),
    'a folder outside': (lambda content: content['splits']['val'].update(images='../x'), '"splits.val.images" is'),
    'a root that is gone': (lambda content: content.update(root='gone'), '"root" is gone, and there is no folder'),
    'an unknown coding': (lambda content: content.update(coding='runs'), '"coding" is \'runs\'; give one of indices'),
    'a weight of no class': (
        lambda content: content['class_weights']['by_class'].update(sky=2),
        '"class_weights.by_class.sky" is no class',
    ),
    'a weight below 0': (
        lambda content: content['class_weights']['by_class'].update(name_0=-1),
        '"class_weights.by_class.name_0" is',
    ),
    'a fault that nobody can accept': (lambda content: content.update(accept=['damage']), '"accept" holds \'damage\''),
}

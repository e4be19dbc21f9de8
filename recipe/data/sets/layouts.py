"""Recognises how a folder lays out pictures, labels and splits. ``DETECTORS`` are tried in their order."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from recipe.core import console
from recipe.data import layout as cityscapes
from recipe.data.sets.file import SHEET, Split

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
LABEL_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff', '.gif', '.webp')
_IMAGE_FOLDERS = (
    'images',
    'image',
    'imgs',
    'img',
    'img_dir',
    'jpegimages',
    'rgb',
    'pictures',
    'photos',
    'input',
    'inputs',
)
_LABEL_FOLDERS = (
    *('labels', 'label', 'masks', 'mask', 'annotations', 'annotation', 'ann_dir', 'annots', 'gt', 'groundtruth'),
    *('ground_truth', 'segmentationclass', 'segmentation', 'seg', 'semantic', 'labelids', 'target', 'targets'),
)
# Words for a split in names of folders and list files.
_WORDS = {
    'train': ('train', 'training', 'trn', 'train2017'),
    'val': ('val', 'valid', 'validation', 'dev', 'val2017'),
    'test': ('test', 'testing'),
}
# Ends of names, before the suffix, that tell a label from its picture.
_MARKS = (
    'mask',
    'masks',
    'label',
    'labels',
    'gt',
    'seg',
    'segmentation',
    'annotation',
    'labelids',
    'labeltrainids',
    'l',
)
_MOST_ENTRIES = 200_000
_NEAR = 5  # a label is that near to its picture in the sorted names of a folder


@dataclass(frozen=True)
class Layout:
    """What was recognised.

    Attributes:
        name: Of the layout.
        why: How it was recognised, one line.
        splits: Folders of each split; one named ``all`` if the set has no splits.
        image_suffixes: Ends of the names of pictures.
        label_suffix: End of the names of labels.
        classes: Standard names of the classes: ``mmseg``'s data set; empty: none.
        first_value: What labels hold for the first of these classes.
        ignore: What labels hold for pixels to ignore, if that belongs to the layout.
        instances: As ``DataSet.instances``.
    """

    name: str
    why: str
    splits: Dict[str, Split]
    image_suffixes: Tuple[str, ...]
    label_suffix: str
    classes: str = ''
    first_value: int = 0
    ignore: Tuple[int, ...] = ()
    instances: Optional[Tuple[int, int]] = None


def detect(root: Path) -> Layout:
    """Recognise the layout of a folder.

    Raises:
        console.UserError: It is none that is known.
    """
    if not root.is_dir():
        problem = 'is no folder' if root.exists() else 'there is no such folder'
        raise console.UserError(f'{root}: {problem}', 'give the folder of the data set')
    for detector in DETECTORS:
        found = detector(root)
        if found is not None:
            return found
    raise console.UserError(
        f'{root}: {_describe(root)}',
        'put pictures into images/ and labels of the same names into labels/, '
        'or name a label as its picture with _mask behind it',
    )


def _describe(root: Path) -> str:
    names = _names(root)
    if not names:
        return 'the folder is empty'
    pictures = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    if pictures:
        return f'no layout is recognised: {pictures} pictures, and no label beside one of them'
    return f'no layout is recognised: it holds {", ".join(names[:6])}{", ..." * (len(names) > 6)}'


def _names(folder: Path) -> List[str]:
    return sorted(entry.name for entry in os.scandir(str(folder)) if not entry.name.startswith('.'))


def _folders(folder: Path) -> List[str]:
    return sorted(entry.name for entry in os.scandir(str(folder)) if entry.is_dir() and not entry.name.startswith('.'))


def _files(folder: Path, suffixes: Sequence[str]) -> List[str]:
    """Names of files below a folder, with '/'."""
    found = []
    for number, (name, _) in enumerate(cityscapes.walk(folder)):
        if number > _MOST_ENTRIES:
            break
        if name.lower().endswith(tuple(suffixes)) and name != SHEET:
            found.append(name)
    return found


def _ends_of(folder: Path, suffixes: Sequence[str]) -> Tuple[str, ...]:
    """The suffixes that files below a folder have, as they are spelt, the most frequent first."""
    counts: Dict[str, int] = {}
    for name in _files(folder, suffixes):
        end = Path(name).suffix.lower()
        counts[end] = counts.get(end, 0) + 1
    return tuple(sorted(counts, key=lambda end: -counts[end]))


def _split_word(name: str) -> Optional[str]:
    return next((split for split, words in _WORDS.items() if name.lower() in words), None)


def _split_folders(folder: Path) -> Dict[str, str]:
    """Names of the folders of splits, by split."""
    found: Dict[str, str] = {}
    for name in _folders(folder):
        split = _split_word(name)
        if split:
            found.setdefault(split, name)
    return found


# --- layouts of known sets -------------------------------------------------------------------------------------------


def _cityscapes(root: Path) -> Optional[Layout]:
    images, labels = root / cityscapes.IMAGES, root / cityscapes.LABELS
    if not images.is_dir() or not labels.is_dir():
        return None
    splits = {
        name: Split(f'{cityscapes.IMAGES}/{name}', f'{cityscapes.LABELS}/{name}')
        for name in cityscapes.SPLITS
        if (images / name).is_dir() and (labels / name).is_dir()
    }
    suffixes = (cityscapes.TRAIN_IDS_SUFFIX, cityscapes.LABEL_IDS_SUFFIX, cityscapes.INSTANCE_IDS_SUFFIX)
    there = [suffix for suffix in suffixes if any(name.endswith(suffix) for name, _ in cityscapes.walk(labels))]
    if 'train' not in splits or not there:
        return None
    kinds = {
        cityscapes.TRAIN_IDS_SUFFIX: ('cityscapes', None),
        cityscapes.LABEL_IDS_SUFFIX: ('cityscapes label ids', None),
        cityscapes.INSTANCE_IDS_SUFFIX: ('cityscapes label ids', (1000, 1000)),
    }
    classes, instances = kinds[there[0]]
    why = f'holds {cityscapes.IMAGES}/ and {cityscapes.LABELS}/, labels *{there[0]}'
    return Layout('Cityscapes', why, splits, (cityscapes.IMAGE_SUFFIX,), there[0], classes, instances=instances)


def _ade20k(root: Path) -> Optional[Layout]:
    images, labels = root / 'images', root / 'annotations'
    if not all((folder / name).is_dir() for folder in (images, labels) for name in ('training', 'validation')):
        return None
    splits = {
        split: Split(f'images/{name}', f'annotations/{name}')
        for split, name in (('train', 'training'), ('val', 'validation'))
    }
    named = any(name.startswith('ADE_') for name in _names(images / 'training')[:3]) or 'objectInfo150.txt' in _names(
        root
    )
    why = 'holds images/ and annotations/ with training/ and validation/'
    return Layout(
        'ADE20K',
        why,
        splits,
        ('.jpg',),
        '.png',
        classes='ade' if named else '',
        first_value=1,
        ignore=(0,) if named else (),
    )


def _mapillary(root: Path) -> Optional[Layout]:
    version = next(
        (
            v
            for v in ('v1.2/', 'v2.0/', '')
            if (root / f'training/{v}labels').is_dir() and (root / 'training/images').is_dir()
        ),
        None,
    )
    if version is None or not (root / 'validation/images').is_dir():
        return None
    splits = {
        split: Split(f'{name}/images', f'{name}/{version}labels')
        for split, name in (('train', 'training'), ('val', 'validation'))
        if (root / f'{name}/{version}labels').is_dir()
    }
    if not any(name.startswith('config') and name.endswith('.json') for name in _names(root)):
        return None
    return Layout(
        'Mapillary Vistas', f'holds training/images, training/{version}labels and its config', splits, ('.jpg',), '.png'
    )


def _bdd100k(root: Path) -> Optional[Layout]:
    for base in ('', 'bdd100k/'):
        images = next(
            (f'{base}images/{size}' for size in ('10k', '100k') if (root / f'{base}images/{size}/train').is_dir()), None
        )
        labels = f'{base}labels/sem_seg/masks'
        if images and (root / labels / 'train').is_dir():
            splits = {
                name: Split(f'{images}/{name}', f'{labels}/{name}')
                for name in ('train', 'val')
                if (root / images / name).is_dir() and (root / labels / name).is_dir()
            }
            return Layout(
                'BDD100K',
                f'holds {images} and {labels}',
                splits,
                ('.jpg',),
                '.png',
                classes='cityscapes',
                ignore=(255,),
            )
    return None


def _coco_stuff(root: Path) -> Optional[Layout]:
    for images, labels in (
        ('images', 'annotations'),
        ('images', 'stuffthingmaps'),
        ('', 'stuffthingmaps'),
        ('', 'annotations'),
    ):
        if (root / images / 'train2017').is_dir() and (root / labels / 'train2017').is_dir():
            splits = {
                split: Split(f'{images}/{name}'.lstrip('/'), f'{labels}/{name}')
                for split, name in (('train', 'train2017'), ('val', 'val2017'))
                if (root / images / name).is_dir() and (root / labels / name).is_dir()
            }
            names = _files(root / labels / 'train2017', ('.png',))
            if not names:
                return None
            is_trained = any(name.endswith('_labelTrainIds.png') for name in names)
            why = f'holds {images or "."}/train2017 and {labels}/train2017'
            suffix = '_labelTrainIds.png' if is_trained else '.png'
            return Layout(
                'COCO-stuff', why, splits, ('.jpg',), suffix, classes='coco_stuff' if is_trained else '', ignore=(255,)
            )
    return None


def _camvid(root: Path) -> Optional[Layout]:
    """``train`` beside ``trainannot`` or ``train_labels``, as CamVid is given away."""
    for mark in ('annot', '_labels', '_label', '_masks', '_mask', '_gt'):
        folders = {_split_word(name): name for name in _folders(root) if _split_word(name)}
        splits = {
            str(split): Split(name, f'{name}{mark}')
            for split, name in folders.items()
            if (root / f'{name}{mark}').is_dir()
        }
        if 'train' not in splits:
            continue
        images, labels = root / splits['train'].images, root / splits['train'].labels
        ends = _ends_of(images, IMAGE_SUFFIXES)
        suffix = _label_suffix(images, labels, ends)
        if ends and suffix:
            name = 'CamVid' if 'camvid' in root.name.lower() or mark == 'annot' else f'train beside train{mark}'
            classes = 'camvid' if name == 'CamVid' and suffix == '.png' and mark == 'annot' else ''
            return Layout(name, f'holds train/ beside train{mark}/', splits, ends, suffix, classes=classes)
    return None


# --- layouts of anybody ----------------------------------------------------------------------------------------------


def _label_suffix(images: Path, labels: Path, image_suffixes: Sequence[str]) -> Optional[str]:
    """What is behind the name of a picture in the name of its label; None if they do not fit each other."""
    image_names = _files(images, image_suffixes)
    stems = {name[: -len(Path(name).suffix)] for name in image_names}
    if not stems:
        return None
    counts: Dict[str, int] = {}
    same = images == labels
    for name in _files(labels, LABEL_SUFFIXES):
        base, end = name[: -len(Path(name).suffix)], Path(name).suffix
        if base in stems and not same:
            counts[end] = counts.get(end, 0) + 1
            continue
        # A mark such as _mask, behind the name of a picture.
        for match in re.finditer(r'[_.-]', base):
            if base[: match.start()] in stems and base[match.start() + 1 :].lower().replace('_', '') in _MARKS_ALL:
                counts[base[match.start() :] + end] = counts.get(base[match.start() :] + end, 0) + 1
                break
    if not counts:
        return None
    return max(counts, key=lambda key: counts[key])


_MARKS_ALL: Set[str] = {
    *_MARKS,
    'gtfinelabelids',
    'gtfinelabeltrainids',
    'trainid',
    'color',
    'semantic',
    'annot',
    'lbl',
}


def _list_file(root: Path) -> Optional[Layout]:
    """Text files train.txt and val.txt, with the pairs of a split."""
    places = [
        root,
        *(root / name for name in ('splits', 'lists', 'ImageSets/Segmentation', 'ImageSets')),
        *_if_folder(root),
    ]
    for folder in places:
        if not folder.is_dir():
            continue
        lists = {
            split: path
            for path in sorted(folder.glob('*.txt'))
            for split in [_split_word(path.stem)]
            if split and path.is_file() and path.stat().st_size
        }
        if 'train' not in lists:
            continue
        found = _of_list(root, lists)
        if found is not None:
            return found
    return None


def _if_folder(root: Path) -> List[Path]:
    return [root / name for name in _folders(root) if name.lower() in ('list', 'split', 'meta')]


def _of_list(root: Path, lists: Dict[str, Path]) -> Optional[Layout]:
    try:
        lines = lists['train'].read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    words = next((line.replace('\t', ' ').replace(',', ' ').split() for line in lines if line.strip()), [])
    relative = {split: path.relative_to(root).as_posix() for split, path in lists.items()}
    why = f'{relative["train"]} lists its pairs'
    if len(words) == 2:
        splits = {split: Split('.', '.', list=path) for split, path in relative.items()}
        return Layout('a list file', why, splits, (Path(words[0]).suffix.lower(),), Path(words[1]).suffix.lower())
    if len(words) == 1:
        for images, labels in _pairs_of_folders(root):
            ends = _ends_of(root / images, IMAGE_SUFFIXES)
            suffix = _label_suffix(root / images, root / labels, ends)
            if suffix:
                splits = {split: Split(images, labels, list=path) for split, path in relative.items()}
                return Layout('a list file', f'{why}, of {images}/ and {labels}/', splits, ends, suffix)
    return None


def _pairs_of_folders(root: Path) -> Iterator[Tuple[str, str]]:
    """Folders of pictures beside folders of labels, by their names."""
    names = _folders(root)
    for image in sorted(
        (name for name in names if name.lower() in _IMAGE_FOLDERS), key=lambda name: _IMAGE_FOLDERS.index(name.lower())
    ):
        for label in sorted(
            (name for name in names if name.lower() in _LABEL_FOLDERS),
            key=lambda name: _LABEL_FOLDERS.index(name.lower()),
        ):
            yield image, label


def _images_beside_labels(root: Path) -> Optional[Layout]:
    """images/ beside labels/, with splits in them, above them or not at all; or once for each scene."""
    for images, labels in _pairs_of_folders(root):
        inner = _split_folders(root / images)
        splits = {
            split: Split(f'{images}/{name}', f'{labels}/{name}')
            for split, name in inner.items()
            if (root / labels / name).is_dir()
        }
        splits = splits if 'train' in splits else {'all': Split(images, labels)}
        found = _fitting(root, splits, f'holds {images}/ and {labels}/ with files of the same names')
        if found:
            return found
    outer = _split_folders(root)
    if 'train' in outer:
        for images, labels in _pairs_of_folders(root / outer['train']):
            splits = {
                split: Split(f'{name}/{images}', f'{name}/{labels}')
                for split, name in outer.items()
                if (root / name / images).is_dir() and (root / name / labels).is_dir()
            }
            found = _fitting(root, splits, f'holds */{images} and */{labels} with files of the same names')
            if found:
                return found
    scenes = [(scene, pair) for scene in _folders(root) for pair in _pairs_of_folders(root / scene)]
    if scenes:
        images, labels = scenes[0][1]
        found = _fitting(
            root, {'all': Split(f'*/{images}', f'*/{labels}')}, f'each scene has a folder with {images}/ and {labels}/'
        )
        if found:
            return found
    return None


def _fitting(root: Path, splits: Dict[str, Split], why: str) -> Optional[Layout]:
    """A layout, if pictures and labels of its first split fit each other."""
    first = splits.get('train') or splits['all']
    for images in sorted(root.glob(first.images)) if '*' in first.images else [root / first.images]:
        star = images.relative_to(root).parts[0]
        labels = root / first.labels.replace('*', star)
        if not labels.is_dir():
            continue
        ends = _ends_of(images, IMAGE_SUFFIXES)
        suffix = _label_suffix(images, labels, ends)
        if suffix:
            return Layout('images beside labels', why, splits, ends, suffix)
    return None


def _pairs_by_suffix(root: Path) -> Optional[Layout]:
    """Pictures and labels in one folder, such as a.jpg and a_mask.png, or a_image.png and a_mask.png."""
    outer = _split_folders(root)
    folders = outer if 'train' in outer else {'all': '.'}
    splits = {split: Split(name, name) for split, name in folders.items()}
    folder = root / (folders.get('train') or '.')
    names = _files(folder, IMAGE_SUFFIXES)
    ends = _ends_of(folder, IMAGE_SUFFIXES)
    suffix = _label_suffix(folder, folder, ends)
    if suffix:
        return Layout(
            'pairs by suffix', f'a label is named as its picture with {suffix} behind it', splits, ends, suffix
        )
    # a.jpg beside a.png: the suffix alone tells them apart.
    stems: Dict[str, Set[str]] = {}
    for name in names:
        stems.setdefault(name[: -len(Path(name).suffix)], set()).add(Path(name).suffix.lower())
    both = sum({'.png'} < found and bool(found & {'.jpg', '.jpeg', '.webp'}) for found in stems.values())
    if both and 2 * both >= len(stems):
        return Layout(
            'pairs by suffix',
            'a label is named as its picture, but .png',
            splits,
            tuple(end for end in ends if end != '.png'),
            '.png',
        )
    # a_image.png beside a_mask.png, or a_leftImg8bit.png beside a_gtFine_labelIds.png.
    marked: Dict[str, int] = {}
    for at, name in enumerate(names):
        match = re.search(r'[_.-](image|img|rgb|leftImg8bit|photo)\.\w+$', name)
        if match:
            stem = name[: match.start()]
            for other in names[max(0, at - _NEAR) : at + _NEAR]:
                rest = other[len(stem) :] if other.startswith(stem) else ''
                mark = re.sub(r'[_.-]|\.\w+$', '', rest[: -len(Path(rest).suffix)]).lower() if rest else ''
                if mark in _MARKS_ALL:
                    marked[f'{match[0]}|{rest}'] = marked.get(f'{match[0]}|{rest}', 0) + 1
        if len(marked) and sum(marked.values()) > 50:
            break
    if marked:
        image, _, label = max(marked, key=lambda key: marked[key]).partition('|')
        return Layout(
            'pairs by suffix', f'a picture ends with {image}, its label with {label}', splits, (image,), label
        )
    return None


DETECTORS: Tuple[Callable[[Path], Optional[Layout]], ...] = (
    *(_cityscapes, _ade20k, _mapillary, _bdd100k, _coco_stuff, _camvid),
    *(_list_file, _images_beside_labels, _pairs_by_suffix),
)

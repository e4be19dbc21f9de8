"""tools/cityscapes.py verify: every fault is caught and named, and the cache is only trusted where it may be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Callable, Dict, List

import cv2
import numpy as np
import pytest
from PIL import Image

import oriented_pictures
from cityscapes_sets import digests, make_prepared, run_tool
from recipe.core import console
from recipe.data import facts, training_data
from recipe.data import verify as cityscapes_verify

IMAGES, LABELS, TRAIN_IDS = '_leftImg8bit.png', '_gtFine_labelIds.png', '_gtFine_labelTrainIds.png'
Spoiler = Callable[[Path], Path]


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(tmp_path_factory.mktemp('verify') / 'set')


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of a faultless set, to be spoilt."""
    return Path(shutil.copytree(str(whole), str(tmp_path / 'set')))


def verify(root: Path, **options: object) -> cityscapes_verify.VerifyReport:
    return cityscapes_verify.verify(root, workers=1, progress=False, **options)


def a_file(root: Path, suffix: str, split: str = 'train', index: int = 1) -> Path:
    return sorted(root.glob(f'*/{split}/*/*{suffix}'))[index]


def label_of(image: Path) -> Path:
    return Path(str(image).replace('leftImg8bit', 'gtFine', 1).replace(IMAGES, TRAIN_IDS))


def write_label(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    Image.fromarray(change(np.array(Image.open(path)))).save(str(path))
    return path


def test_a_whole_set_has_no_faults(root: Path) -> None:
    report = verify(root)
    assert report.ok
    assert report.n_pairs == {'train': 4, 'val': 2}
    assert report.n_files == 12


# --- faults of single files: each spoiler returns the path that must be named ----------------------------------------


def truncated(suffix: str) -> Spoiler:
    def spoil(root: Path) -> Path:
        path = a_file(root, suffix)
        path.write_bytes(path.read_bytes()[:-200])
        return path

    return spoil


def a_flipped_byte(root: Path) -> Path:
    path = a_file(root, IMAGES)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))
    return path


def empty(root: Path) -> Path:
    path = a_file(root, IMAGES)
    path.write_bytes(b'')
    return path


def an_html_page(root: Path) -> Path:
    path = a_file(root, IMAGES)
    path.write_bytes(b'<html>please log in</html>' * 40)
    return path


def a_jpeg(root: Path) -> Path:
    path = a_file(root, IMAGES)
    Image.open(path).save(str(path), format='JPEG')
    return path


def a_grey_picture(root: Path) -> Path:
    path = a_file(root, IMAGES)
    Image.open(path).convert('L').save(str(path))
    return path


def a_colour_label(root: Path) -> Path:
    path = a_file(root, TRAIN_IDS)
    Image.open(path).convert('RGB').save(str(path))
    return path


def label_ids(root: Path) -> Path:
    path = a_file(root, TRAIN_IDS)
    shutil.copy(str(path).replace(TRAIN_IDS, LABELS), str(path))
    return path


def stray_values(root: Path) -> Path:
    return write_label(a_file(root, TRAIN_IDS), lambda label: np.where(label == 0, 77, label).astype(np.uint8))


def a_small_picture(root: Path) -> Path:
    path = a_file(root, IMAGES)
    Image.open(path).resize((64, 32)).save(str(path))
    return path


def a_small_label(root: Path) -> Path:
    return write_label(a_file(root, TRAIN_IDS), lambda label: label[::2, ::2])


def a_small_pair(root: Path) -> Path:
    path = a_small_picture(root)
    write_label(label_of(path), lambda label: label[::2, ::2])
    return path


def a_broken_link(suffix: str) -> Spoiler:
    def spoil(root: Path) -> Path:
        path = a_file(root, suffix)
        path.unlink()
        path.symlink_to(root / 'nowhere.png')
        return path

    return spoil


def a_missing_label(root: Path) -> Path:
    label = a_file(root, TRAIN_IDS)
    label.unlink()
    return Path(str(label).replace('gtFine', 'leftImg8bit', 1).replace(TRAIN_IDS, IMAGES))


def a_missing_label_and_polygons(root: Path) -> Path:
    image = a_missing_label(root)
    Path(str(label_of(image)).replace('labelTrainIds.png', 'polygons.json')).unlink()
    return image


def a_missing_picture(root: Path) -> Path:
    image = a_file(root, IMAGES)
    image.unlink()
    return label_of(image)


def a_label_in_another_city(root: Path) -> Path:
    label = a_file(root, TRAIN_IDS)
    city = label.parent.with_name('elsewhere')
    city.mkdir()
    label.rename(city / label.name)
    return Path(str(label).replace('gtFine', 'leftImg8bit', 1).replace(TRAIN_IDS, IMAGES))


def a_picture_without_city(root: Path) -> Path:
    image = a_file(root, IMAGES)
    for path in (image, label_of(image)):
        path.rename(path.parent.parent / path.name)
    return image.parent.parent / image.name


def a_misspelt_name(root: Path) -> Path:
    image = a_file(root, IMAGES)
    wrong = image.with_name(image.name.replace('leftImg8bit', 'leftimg8bit'))
    image.rename(wrong)
    return wrong


def a_capital_extension(root: Path) -> Path:
    image = a_file(root, IMAGES)
    wrong = image.with_suffix('.PNG')
    image.rename(wrong)
    return wrong


def a_scene_in_both_splits(root: Path) -> Path:
    image = a_file(root, IMAGES)
    for path in (image, label_of(image)):
        copy = Path(str(path).replace('train', 'val'))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(path), str(copy))
    return Path(str(image).replace('train', 'val'))


def a_missing_pair(root: Path) -> Path:
    image = a_file(root, IMAGES)
    for path in (image, label_of(image)):
        path.unlink()
    return root / 'leftImg8bit' / 'train'


def a_folder_named_as_a_picture(root: Path) -> Path:
    image = a_file(root, IMAGES)
    image.unlink()
    image.mkdir()
    return label_of(image)


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (truncated(IMAGES), 'damaged or truncated'),
        (truncated(TRAIN_IDS), 'damaged or truncated'),
        (a_flipped_byte, 'damaged or truncated'),
        (an_html_page, 'damaged or truncated'),
        (empty, 'empty file (0 bytes)'),
        (a_jpeg, 'JPEG'),
        (a_grey_picture, 'not 8-bit RGB'),
        (a_colour_label, 'not 8-bit with one channel'),
        (label_ids, 'labelIds, not labelTrainIds'),
        (stray_values, 'holds 77; labels of 19 classes hold 0 to 18 and 255'),
        (a_small_picture, 'is 64x32, not 128x64'),
        (a_small_label, 'is 64x32, its picture 128x64'),
        (a_small_pair, 'is 64x32, not 128x64'),
        (a_broken_link(IMAGES), 'broken symbolic link'),
        (a_broken_link(TRAIN_IDS), 'broken symbolic link'),
        (a_missing_label, 'is missing; run prepare'),
        (a_missing_label_and_polygons, 'unpack gtFine_trainvaltest.zip again and run prepare'),
        (a_missing_picture, 'its picture'),
        (a_folder_named_as_a_picture, 'its picture'),
        (a_label_in_another_city, 'its label is in another folder'),
        (a_picture_without_city, 'not in a folder of its city'),
        (a_misspelt_name, "must end with '_leftImg8bit.png'"),
        (a_capital_extension, "must end with '_leftImg8bit.png'"),
        (a_scene_in_both_splits, 'is in train as well'),
        (a_missing_pair, '3 complete pairs, 4 expected'),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_a_fault_of_a_file_is_named_with_its_path(root: Path, spoil: Spoiler, said: str) -> None:
    named = spoil(root)
    report = verify(root)
    assert [fault for fault in report.faults if fault.path == str(named) and said in fault.message], report.faults
    assert not any('\n' in str(fault) for fault in report.faults)


def test_every_fault_is_named_not_only_the_first(root: Path) -> None:
    spoilt = [a_file(root, IMAGES, 'train', 0), a_file(root, IMAGES, 'train', 2), a_file(root, TRAIN_IDS, 'val', 0)]
    for path in spoilt:
        path.write_bytes(b'')
    assert [fault.path for fault in verify(root).faults] == [str(path) for path in spoilt]


# --- wrong layouts ---------------------------------------------------------------------------------------------------


def renamed(old: str, new: str) -> Spoiler:
    def spoil(root: Path) -> Path:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)
        return root

    return spoil


def deleted(*names: str) -> Spoiler:
    def spoil(root: Path) -> Path:
        for name in names:
            shutil.rmtree(str(root / name))
        return root

    return spoil


def at(name: str) -> Spoiler:
    return lambda root: root / name


def without(suffix: str) -> Spoiler:
    def spoil(root: Path) -> Path:
        for path in root.rglob(f'*{suffix}'):
            path.unlink()
        return root

    return spoil


def nothing_but_label_ids(root: Path) -> Path:
    without(TRAIN_IDS)(root)
    return without('_polygons.json')(root)


def splits_only(root: Path) -> Path:
    deleted('gtFine')(root)
    (root / 'leftImg8bit').rename(root / 'pictures')
    return root / 'pictures'


def nested(part: str) -> Spoiler:
    def spoil(root: Path) -> Path:
        (root / part).rename(root / 'x')
        (root / part).mkdir()
        (root / 'x').rename(root / part / part)
        return root

    return spoil


def a_link(target: str, name: str = 'link') -> Spoiler:
    def spoil(root: Path) -> Path:
        if (root / name).exists():
            shutil.rmtree(str(root / name))
        (root / name).symlink_to(target)
        return root if name != 'link' else root / name

    return spoil


def zips_only(root: Path) -> Path:
    deleted('leftImg8bit', 'gtFine')(root)
    for name in ('leftImg8bit_trainvaltest.zip', 'gtFine_trainvaltest.zip'):
        (root / name).write_bytes(b'PK')
    return root


def one_zip_left(root: Path) -> Path:
    deleted('gtFine')(root)
    (root / 'gtFine_trainvaltest.zip').write_bytes(b'PK')
    return root


def a_zip_file(root: Path) -> Path:
    (root / 'leftImg8bit_trainvaltest.zip').write_bytes(b'PK')
    return root / 'leftImg8bit_trainvaltest.zip'


def coarse_for_fine(root: Path) -> Path:
    (root / 'gtFine').rename(root / 'gtCoarse')
    return root


def coarse_only(root: Path) -> Path:
    deleted('leftImg8bit')(root)
    return coarse_for_fine(root)


def parts_apart(root: Path) -> Path:
    for part in ('leftImg8bit', 'gtFine'):
        renamed(part, f'{part}_trainvaltest/{part}')(root)
    return root


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (at('none'), 'no such folder'),
        (at('demo.json'), 'is a file, not a folder'),
        (a_zip_file, 'is a zip, not a folder'),
        (a_link('nowhere'), 'broken symbolic link to nowhere'),
        (at('leftImg8bit'), 'too low, inside leftImg8bit/; give --data_path {root}'),
        (at('gtFine/train'), 'too low, inside gtFine/; give --data_path {root}'),
        (at('leftImg8bit/val/probeburg'), 'too low, inside leftImg8bit/; give --data_path {root}'),
        (renamed('gtFine', 'labels/gtFine'), 'missing; unpack gtFine_trainvaltest.zip'),
        (splits_only, 'holds train and val itself'),
        (lambda root: root.parent, 'one level too high; give --data_path {root}'),
        (parts_apart, 'its parts lie apart'),
        (deleted('leftImg8bit', 'gtFine'), 'has neither leftImg8bit/ nor gtFine/'),
        (deleted('gtFine'), 'missing; unpack gtFine_trainvaltest.zip'),
        (deleted('leftImg8bit'), 'missing; unpack leftImg8bit_trainvaltest.zip'),
        (deleted('gtFine/val'), 'missing; unpack gtFine_trainvaltest.zip whole'),
        (deleted('leftImg8bit/val'), 'missing; unpack leftImg8bit_trainvaltest.zip whole'),
        (deleted('leftImg8bit/train'), 'missing; unpack leftImg8bit_trainvaltest.zip whole'),
        (nested('leftImg8bit'), 'nested twice'),
        (nested('gtFine'), 'nested twice'),
        (zips_only, 'the zips are not unpacked; run python tools/cityscapes.py prepare --data_path {root}'),
        (
            one_zip_left,
            'gtFine_trainvaltest.zip is not unpacked; run python tools/cityscapes.py prepare --data_path {root}',
        ),
        (coarse_for_fine, 'gtCoarse/ is no substitute'),
        (coarse_only, 'has gtCoarse/ only'),
        (renamed('leftImg8bit', 'leftimg8bit'), "there is leftimg8bit/; rename it to 'leftImg8bit'"),
        (renamed('gtFine', 'GTFINE'), "there is GTFINE/; rename it to 'gtFine'"),
        (renamed('gtFine/val', 'gtFine/Val'), "there is Val/; rename it to 'val'"),
        (a_link('nowhere', 'gtFine'), 'broken symbolic link to nowhere'),
        (without(TRAIN_IDS), 'they are not made yet; run prepare'),
        (nothing_but_label_ids, 'only labelIds'),
        (without('_gtFine_*'), 'no labels; unpack'),
        (without(IMAGES), 'no *_leftImg8bit.png'),
    ],
)
def test_a_wrong_layout_is_recognised_with_what_to_do(root: Path, spoil: Spoiler, said: str) -> None:
    report = verify(spoil(root))
    assert any(said.format(root=root) in fault.message for fault in report.faults), report.faults
    assert not any('\n' in str(fault) for fault in report.faults)


@pytest.mark.skipif(os.geteuid() == 0, reason='the superuser may list any folder')
def test_a_folder_that_may_not_be_listed_is_a_fault(root: Path) -> None:
    (root / 'gtFine').chmod(0)
    report = verify(root)
    (root / 'gtFine').chmod(0o755)
    assert str(root / 'gtFine') in report.faults[0].path


def test_linked_folders_are_followed(root: Path, tmp_path: Path) -> None:
    (root / 'gtFine').rename(tmp_path / 'labels')
    (root / 'gtFine').symlink_to(tmp_path / 'labels')
    assert verify(root).ok


def test_half_written_files_of_a_killed_run_are_no_faults(root: Path) -> None:
    label = a_file(root, TRAIN_IDS)
    label.with_name(f'.partial.host.1.{label.name}').write_bytes(b'half')
    assert verify(root).ok


# --- counts, classes -------------------------------------------------------------------------------------------------


def test_counts_of_cityscapes_are_expected_where_all_cities_are_its_own(root: Path) -> None:
    (root / 'demo.json').unlink()
    assert verify(root).ok
    for part in ('leftImg8bit', 'gtFine'):
        (root / part / 'train' / 'musterstadt').rename(root / part / 'train' / 'aachen')
        (root / part / 'val' / 'probeburg').rename(root / part / 'val' / 'munster')
    messages = [str(fault) for fault in verify(root).faults]
    assert any('4 complete pairs, 2975 expected' in message for message in messages)
    assert any('2 complete pairs, 500 expected' in message for message in messages)
    assert len(messages) == 2


@pytest.mark.parametrize(('expect', 'faults'), [({'train': 4, 'val': 2}, 0), ({'train': 5}, 1), ({'val': 1}, 1)])
def test_given_counts_go_before_those_of_the_demo_set(root: Path, expect: Dict[str, int], faults: int) -> None:
    assert len(verify(root, expect=expect).faults) == faults


@pytest.mark.parametrize('text', ['{', '[]', '{"train": 4}', '{"train": "x", "val": 2, "width": 1, "height": 1}'])
def test_a_damaged_demo_json_is_one_fault(root: Path, text: str) -> None:
    (root / 'demo.json').write_text(text)
    faults: List[cityscapes_verify.Fault] = verify(root).faults
    assert [fault.path for fault in faults] == [str(root / 'demo.json')]


def many(root: Path, count: int, highest: int) -> None:
    """Fill a root with tiny pairs whose labels hold classes up to a highest one."""
    for split, number in (('train', count), ('val', 2)):
        for part in ('leftImg8bit', 'gtFine'):
            (root / part / split / 'town').mkdir(parents=True)
        for index in range(number):
            stem = f'{split}/town/town_{split}{index:06d}_000019'
            Image.new('RGB', (8, 8)).save(str(root / 'leftImg8bit' / f'{stem}{IMAGES}'))
            Image.new('L', (8, 8), highest).save(str(root / 'gtFine' / f'{stem}{TRAIN_IDS}'))
    described = {'train': count, 'val': 2, 'width': 8, 'height': 8}
    (root / 'demo.json').write_text(json.dumps(described))


@pytest.mark.parametrize(
    ('highest', 'classes', 'ok'), [(16, 19, False), (17, 19, True), (18, 19, True), (16, 17, True)]
)
def test_labels_of_fewer_classes_are_recognised(tmp_path: Path, highest: int, classes: int, ok: bool) -> None:
    many(tmp_path, cityscapes_verify.ENOUGH_TO_MISS_A_CLASS, highest)
    report = verify(tmp_path, num_classes=classes)
    assert report.ok is ok
    if not ok:
        assert 'labels of 17 classes, not of 19' in report.faults[0].message


def test_few_labels_may_lack_the_highest_classes(tmp_path: Path) -> None:
    many(tmp_path, cityscapes_verify.ENOUGH_TO_MISS_A_CLASS - 1, 5)
    assert verify(tmp_path).ok


def test_a_class_beyond_num_classes_is_a_fault_whether_cached_or_not(root: Path) -> None:
    def fault_paths() -> set:
        return {fault.path for fault in verify(root, num_classes=14).faults}

    cold = fault_paths()
    assert cold
    assert verify(root).ok
    assert fault_paths() == cold


# --- labels without a class ---


def ignore(root: Path, split: str, count: int = 99) -> None:
    for path in sorted(root.glob(f'gtFine/{split}/*/*{TRAIN_IDS}'))[:count]:
        write_label(path, lambda label: np.full_like(label, 255))


@pytest.mark.parametrize('splits', [('train',), ('val',), ('train', 'val')])
def test_a_split_without_any_class_is_a_fault_whether_cached_or_not(root: Path, splits: tuple) -> None:
    for split in splits:
        ignore(root, split)
    for _ in range(2):
        report = verify(root)
        assert [fault.path for fault in report.faults] == [str(root / 'gtFine' / split) for split in splits]
        assert all('labels holds a class' in fault.message for fault in report.faults)
    with pytest.raises(console.UserError, match='labels holds a class'):  # the launcher asks so, before a card is used
        training_data.require(root)


def test_a_damaged_label_does_not_hide_that_the_others_hold_no_class(root: Path) -> None:
    ignore(root, 'val')
    a_file(root, TRAIN_IDS, 'val').write_bytes(b'')
    assert str(root / 'gtFine/val') in [fault.path for fault in verify(root).faults]


def test_labels_without_a_class_beside_others_are_counted(root: Path) -> None:
    ignore(root, 'train', 3)
    ignore(root, 'val', 1)
    report = verify(root)
    assert report.ok
    assert 'no faults; 4 labels without any class' in report.summary()


def test_one_class_in_all_of_a_split_is_no_fault(root: Path) -> None:
    for path in root.glob(f'gtFine/*/*/*{TRAIN_IDS}'):
        write_label(path, np.zeros_like)
    assert verify(root).ok


def test_an_empty_split_is_a_fault_unless_it_is_asked_for(root: Path) -> None:
    for path in root.glob('*/val/*/*'):
        path.unlink()
    described = json.loads((root / 'demo.json').read_text())
    (root / 'demo.json').write_text(json.dumps(dict(described, val=0)))
    assert [fault.path for fault in verify(root).faults] == [str(root / 'leftImg8bit/val')]
    assert verify(root, expect={'val': 0}).ok


# --- pictures that are to be shown turned ---


@pytest.mark.parametrize('suffix', [IMAGES, TRAIN_IDS])
@pytest.mark.parametrize('way', list(oriented_pictures.all_ways(b'')))
def test_an_orientation_is_a_fault_however_it_is_written(root: Path, suffix: str, way: str) -> None:
    path = a_file(root, suffix)
    path.write_bytes(oriented_pictures.all_ways(path.read_bytes())[way])
    faults = verify(root).faults
    assert [fault.path for fault in faults] == [str(path)]
    assert 'orientation 6' in faults[0].message


def test_an_orientation_is_a_fault_whenever_opencv_turns_the_picture(root: Path) -> None:
    path = a_file(root, IMAGES)
    stored = path.read_bytes()
    flags = (cv2.IMREAD_COLOR, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    turned, faults = [], []
    for value in (*range(10), 255):
        path.write_bytes(oriented_pictures.all_ways(stored, value)['before the pixels'])
        loaded, plain = (cv2.imread(str(path), flag) for flag in flags)
        turned.append(not np.array_equal(loaded, plain))
        faults.append(not verify(root).ok)
    assert faults == turned == [value in range(2, 9) for value in range(11)]


def test_damaged_exif_data_is_no_fault(root: Path) -> None:
    path = a_file(root, IMAGES)
    stored = path.read_bytes()
    for content in (b'', b'hello', oriented_pictures.exif(6)[:8], oriented_pictures.exif(6)[:17]):
        chunk = oriented_pictures.chunk(b'eXIf', content)
        path.write_bytes(oriented_pictures.after_header(stored, chunk))
        assert verify(root).ok


def test_files_that_an_older_check_passed_are_read_again(root: Path) -> None:
    verify(root)
    cache = root / facts.CACHE_NAME
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict(known, format=1)))  # as written before orientations were looked at
    assert verify(root).from_cache == 0


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_check_reads_no_file_again(root: Path) -> None:
    assert verify(root).from_cache == 0
    second = verify(root)
    assert second.ok
    assert second.from_cache == second.n_files == 12


@pytest.mark.parametrize('suffix', [IMAGES, TRAIN_IDS])
def test_a_file_that_changed_is_checked_again_alone(root: Path, suffix: str) -> None:
    verify(root)
    path = a_file(root, suffix)
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))
    os.utime(str(path), ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    report = verify(root)
    assert path.stat().st_size == before.st_size
    assert report.from_cache == 11
    assert [fault.path for fault in report.faults] == [str(path)]
    # A file at fault is never remembered.
    assert [fault.path for fault in verify(root).faults] == [str(path)]


@pytest.mark.parametrize(
    'spoil',
    [
        lambda text: '',
        lambda text: '{',
        lambda text: 'null',
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('128', '129', 1),
        lambda text: json.dumps(dict(json.loads(text), format=0)),
        lambda text: json.dumps(dict(json.loads(text), files=[])),
    ],
    ids=['empty', 'brace', 'null', 'half', 'edited', 'format', 'list'],
)
def test_a_damaged_cache_is_ignored_and_replaced(root: Path, spoil: Callable[[str], str]) -> None:
    verify(root)
    cache = root / facts.CACHE_NAME
    good = cache.read_text()
    cache.write_text(spoil(good))
    report = verify(root)
    assert report.ok
    assert report.from_cache == 0
    assert cache.read_text() == good


def test_one_split_alone(root: Path) -> None:
    """The other one need not be there, and what is known of it is kept."""
    verify(root)
    a_file(root, IMAGES, 'val', 0).touch()
    alone = verify(root, splits=('val',))
    assert alone.ok and alone.n_pairs == {'val': 2}
    assert (alone.n_files, alone.from_cache) == (4, 3)
    assert verify(root).from_cache == 12
    for part in ('leftImg8bit', 'gtFine'):
        shutil.rmtree(root / part / 'train')
    assert verify(root, splits=('val',)).ok
    assert not verify(root).ok
    a_file(root, TRAIN_IDS, 'val', 0).unlink()
    assert [Path(fault.path).name.endswith(IMAGES) for fault in verify(root, splits=('val',)).faults] == [True, False]


def test_cached_files_are_still_missed_when_they_are_gone(root: Path) -> None:
    verify(root)
    image = a_missing_label(root)
    assert str(image) in [fault.path for fault in verify(root).faults]


def test_cached_sizes_are_still_judged(root: Path) -> None:
    verify(root)
    described = json.loads((root / 'demo.json').read_text())
    (root / 'demo.json').write_text(json.dumps(dict(described, width=256)))
    report = verify(root)
    assert report.from_cache == 12
    assert len(report.faults) == 6


def test_the_cache_goes_where_it_is_told_and_leaves_the_set_alone(root: Path, tmp_path: Path) -> None:
    before = digests(root)
    cache = tmp_path / 'deep' / 'cache.json'
    assert verify(root, cache=cache).ok
    assert verify(root, cache=cache).from_cache == 12
    assert digests(root) == before


def test_a_cache_that_cannot_be_written_is_a_warning_only(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'file').write_text('')
    assert verify(root, cache=tmp_path / 'file' / 'cache.json').ok
    assert capsys.readouterr().err.startswith('warning: ')


def test_a_read_only_root_keeps_its_cache_with_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    one, other = (facts.cache_path(Path(root) / 'missing') for root in ('/a', '/b'))
    assert one.parent.parent == other.parent.parent == tmp_path
    assert one != other


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_lists_every_fault_and_a_summary_last(root: Path) -> None:
    good = run_tool('verify', '--data_path', root, '--num_workers', 2)
    assert good.returncode == 0
    assert good.stdout.splitlines()[-1].startswith(f'{root}: train 4 pairs, val 2 pairs; no faults')
    spoilt = [a_file(root, IMAGES), a_file(root, TRAIN_IDS, 'val', 0)]
    for path in spoilt:
        path.write_bytes(b'')
    bad = run_tool('verify', f'--data_path={root}', '--num_workers=2')
    assert bad.returncode == 1
    lines = bad.stdout.splitlines()
    assert 'train 4 pairs, val 2 pairs; 2 faults; 12 files, 10 unchanged' in lines[-1]
    for path in spoilt:
        assert sum(line.startswith(f'{path}: ') for line in lines) == 1
    assert bad.stderr == ''


@pytest.mark.parametrize(
    'arguments', [('--expect=4',), ('--expect', 'train=x'), ('--expect', 'test=3'), ('--exp=train=4',)]
)
def test_bad_options_are_usage_errors(root: Path, arguments: tuple) -> None:
    result = run_tool('verify', '--data_path', root, *arguments)
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr

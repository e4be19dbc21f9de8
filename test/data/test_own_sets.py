"""Somebody's own set in Cityscapes' layout: any sizes, any number of classes; files that mean nothing."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import List

import numpy as np
import pytest
from PIL import Image

from cityscapes_sets import make_prepared
from recipe.core import console
from recipe.core.run_options import Options
from recipe.data import cli as data_cli
from recipe.data import layout, training_data
from recipe.data import prepare as cityscapes_prepare
from recipe.data import verify as cityscapes_verify
from recipe.data.demo import DemoSet
from recipe.engine import classes
from recipe.engine import config as run_config
from recipe.launch import options

MANY = DemoSet(train=cityscapes_verify.ENOUGH_TO_MISS_A_CLASS, val=2, width=64, height=64, seed=1)


@pytest.fixture(scope='module')
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 4 classes with pictures of three sizes."""
    root = make_prepared(tmp_path_factory.mktemp('own') / 'set', MANY)
    (root / layout.DEMO_FILE).unlink()
    for number, path in enumerate(labels(root)):
        size = ((256, 128), (320, 160), (200, 150))[number % 3]
        label = np.array(Image.open(path))
        small = Image.fromarray(np.where(label == 255, 255, label % 4).astype(np.uint8))
        small.resize(size, Image.NEAREST).save(path)
        image = picture_of(path)
        Image.open(image).resize(size).save(image)
    return root


@pytest.fixture
def root(own: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(own, tmp_path / 'set'))


def labels(root: Path) -> List[Path]:
    return sorted(path for path in root.rglob(f'*{layout.TRAIN_IDS_SUFFIX}') if not path.name.startswith('.'))


def picture_of(label: Path) -> Path:
    return Path(str(label).replace('/gtFine/', '/leftImg8bit/').replace(layout.TRAIN_IDS_SUFFIX, layout.IMAGE_SUFFIX))


def faults(root: Path, **given: object) -> List[str]:
    return [str(fault) for fault in cityscapes_verify.verify(root, workers=1, progress=False, **given).faults]


# --- sizes and counts ------------------------------------------------------------------------------------------------


def test_any_sizes_and_counts_are_taken_with_the_number_of_classes(own: Path) -> None:
    assert faults(own, num_classes=4) == []
    assert 'no faults' in training_data.verified(own, progress=False, num_classes=4)


def test_a_label_of_another_size_than_its_picture_is_still_a_fault(root: Path) -> None:
    path = labels(root)[0]
    Image.open(path).resize((64, 64), Image.NEAREST).save(path)
    assert len(faults(root, num_classes=4)) == 1


def test_a_part_of_cityscapes_is_refused_until_the_user_says_that_it_is_meant(root: Path) -> None:
    for part in (layout.IMAGES, layout.LABELS):
        for split, city in (('train', 'aachen'), ('val', 'lindau')):
            next((root / part / split).iterdir()).rename(root / part / split / city)
    found = faults(root, num_classes=4)
    assert any('2975 expected' in fault for fault in found)
    command = shlex.split(found[0].rpartition('python tools/cityscapes.py ')[2])
    assert command == ['verify', '--data_path', str(root), '--expect', f'train={MANY.train},val={MANY.val}']
    expect = {'train': MANY.train, 'val': MANY.val}
    assert faults(root, num_classes=4, expect=expect) == []
    assert faults(root, num_classes=4) == []  # remembered, also for the launcher
    shutil.rmtree(root / layout.IMAGES / 'val' / 'lindau')
    assert faults(root, num_classes=4) != []


# --- classes ---------------------------------------------------------------------------------------------------------


def train_overrides(message: str) -> List[str]:
    """The overrides that a message proposes."""
    return message.partition('train with ')[2].partition(' (')[0].split()


@pytest.mark.parametrize('cached', [False, True])
def test_values_beyond_the_classes_are_named_with_an_option_that_is_taken(root: Path, cached: bool) -> None:
    if cached:
        assert faults(root, num_classes=4) == []
    found = faults(root, num_classes=3)
    assert all('holds 3; labels of 3 classes hold 0 to 2 and 255' in fault for fault in found)
    with pytest.raises(console.UserError) as refused:
        training_data.verified(root, False, 3, ['model.decode_head.num_classes', 'model.auxiliary_head.num_classes'])
    proposed = train_overrides(str(refused.value))
    assert proposed == ['--', 'model.decode_head.num_classes=4', 'model.auxiliary_head.num_classes=4']
    assert '--num_classes=3' in str(refused.value)  # of the command that lists all


def test_fewer_classes_than_cityscapes_has_are_named_with_an_option_that_is_taken(own: Path) -> None:
    (fault,) = faults(own)
    proposed = train_overrides(fault)
    asked = options.parse('full', ['--demo', f'--data_path={own}', *proposed])
    config = run_config.make(asked, 'cpu', own)
    assert classes.require(config) == 4
    assert faults(own, num_classes=classes.require(config)) == []


@pytest.mark.parametrize('override', ['model.decode_head.num_classes=4', 'num_classes=4'])
@pytest.mark.parametrize('demo', [True, False])
def test_all_that_counts_classes_follows_one_override(own: Path, override: str, demo: bool) -> None:
    config = run_config.make(Options('full', demo=demo, data_path=str(own), overrides=[override]), 'cpu', own)
    head = config.model.decode_head
    assert head.num_classes == 4
    assert list(head.loss_cls.class_weight) == [1.0] * 4 + [0.1]
    for loader in (config.train_dataloader, config.val_dataloader):
        assert len(loader.dataset.metainfo['classes']) == 4
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope('mmseg')

    data = DATASETS.build(config.val_dataloader.dataset)
    assert len(data) == MANY.val
    assert data[0]['data_samples'].gt_sem_seg.data.max() <= 255


def test_the_recipes_own_classes_keep_their_names(own: Path) -> None:
    config = run_config.make(Options('full'), 'cpu', own)
    assert config.train_dataloader.dataset.type == 'CityscapesDataset'
    assert 'metainfo' not in config.train_dataloader.dataset


def test_heads_that_disagree_are_all_named() -> None:
    config = {'model': {'decode_head': [{'num_classes': 4}, {'x': 1}], 'auxiliary_head': {'num_classes': 19}}}
    with pytest.raises(console.UserError) as refused:
        classes.require(config)
    assert 'model.decode_head.0.num_classes=4, model.auxiliary_head.num_classes=19' in refused.value.problem
    assert 'model.decode_head.0.num_classes=4 model.auxiliary_head.num_classes=4' in refused.value.fix


def test_the_demo_takes_pictures_of_any_size_only_from_the_user(own: Path) -> None:
    theirs = run_config.make(Options('full', demo=True, data_path=str(own)), 'cpu', own)
    built_in = run_config.make(Options('full', demo=True), 'cpu', own)
    crops = ['RandomCrop' in str(config.train_dataloader.dataset.pipeline) for config in (theirs, built_in)]
    assert crops == [True, False]
    assert (theirs.val_dataloader.batch_size, built_in.val_dataloader.batch_size) == (1, 4)


# --- files that mean nothing -----------------------------------------------------------------------------------------


def add_companions(root: Path) -> int:
    """Write macOS's companion of each file that has a meaning."""
    paths = [*labels(root), *map(picture_of, labels(root)), *root.rglob(f'*{layout.POLYGON_SUFFIX}')]
    for path in paths:
        path.with_name(f'._{path.name}').write_bytes(
            bytes.fromhex('0005160700020000') + b'Mac OS X        ' + bytes(99)
        )
    (root / layout.IMAGES / 'train' / '.DS_Store').write_bytes(b'x')
    return len(paths)


def test_what_mmengine_passes_over_is_passed_over_and_said_once(root: Path, capsys: pytest.CaptureFixture) -> None:
    from mmengine.fileio import list_dir_or_file

    count = add_companions(root)
    trained = set(list_dir_or_file(str(root), list_dir=False, suffix=layout.IMAGE_SUFFIX, recursive=True))
    checked = {str(picture_of(path).relative_to(root)) for path in labels(root)}
    assert trained == checked
    assert faults(root, num_classes=4) == []
    said = f'passed over {count} files whose names begin with a dot, such as '
    assert training_data.verified(root, progress=False, num_classes=4).count(said) == 1
    cityscapes_prepare.prepare(root, workers=1, progress=False, force=True)
    assert capsys.readouterr().out.count(said) == 1


def test_a_half_written_file_of_the_recipe_is_not_worth_a_word(root: Path) -> None:
    path = labels(root)[0]
    path.with_name(f'.partial.host.1.{path.name}').write_bytes(b'')
    assert layout.passed_over(root) == ''


def test_a_set_without_polygons_needs_no_preparation(root: Path, capsys: pytest.CaptureFixture) -> None:
    for path in root.rglob(f'*{layout.POLYGON_SUFFIX}'):
        path.unlink()
    assert cityscapes_prepare.prepare(root, workers=1, progress=False) == 0
    assert f'{len(labels(root))} are there already' in capsys.readouterr().out
    change(labels(root)[0], '16 bits')
    assert '--force' not in faults(root, num_classes=4)[0]


# --- words -----------------------------------------------------------------------------------------------------------


def change(path: Path, mode: str) -> None:
    """Save a picture in another mode."""
    pixels = np.array(Image.open(path))
    if mode == '16 bits':
        Image.fromarray(pixels.astype(np.uint16)).save(path)
    elif mode == '1 bit':
        Image.fromarray(pixels == 0).save(path)
    elif mode in ('2 bits', '4 bits'):
        grey_with_few_bits(path, pixels, int(mode[0]))
    else:
        Image.open(path).convert(mode).save(path)


def grey_with_few_bits(path: Path, pixels: np.ndarray, bits: int) -> None:
    """Write a PNG file in grey with 2 or is 4-bit, which Pillow does not write."""
    import struct
    import zlib

    values = np.minimum(pixels, (1 << bits) - 1)
    rows = [
        b'\0' + np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(-1)).tobytes()
        for row in values
    ]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b''.join(rows))) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + parts)


@pytest.mark.parametrize(
    ('mode', 'said'),
    [
        ('16 bits', 'is 16-bit'),
        ('1 bit', 'is 1-bit'),
        ('2 bits', 'is 2-bit'),
        ('4 bits', 'is 4-bit'),
        ('LA', 'an alpha channel'),
        ('RGB', 'a colour picture is no label'),
        ('RGBA', 'a colour picture is no label'),
    ],
)
def test_a_label_of_another_mode_is_called_what_it_is(root: Path, mode: str, said: str) -> None:
    change(labels(root)[0], mode)
    (fault,) = faults(root, num_classes=4)
    assert said in fault
    assert ('colour' in fault) == ('colour' in said)
    assert 'not 8-bit with one channel' in fault
    assert 'save each pixel as the number of its class' in fault


@pytest.mark.parametrize(('mode', 'said'), [('L', 'is grey'), ('RGBA', 'an alpha channel'), ('P', 'has a palette')])
def test_a_picture_of_another_mode_is_called_what_it_is(root: Path, mode: str, said: str) -> None:
    change(picture_of(labels(root)[0]), mode)
    (fault,) = faults(root, num_classes=4)
    assert f'picture {said}' in fault or f'and {said}' in fault
    assert 'save it as 8-bit RGB' in fault


def test_a_palette_does_not_make_a_label_a_colour_picture(root: Path) -> None:
    path = labels(root)[0]
    picture = Image.open(path).convert('L')
    picture.putpalette(list(range(256)) * 3)
    picture.save(path)
    assert Image.open(path).mode == 'P'
    assert faults(root, num_classes=4) == []


def test_a_large_text_in_a_picture_is_no_damage(root: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    path = picture_of(labels(root)[0])
    text = PngInfo()
    text.add_text('XML:com.adobe.xmp', 'x' * (3 << 20), zip=True)
    Image.open(path).convert('RGB').save(path, pnginfo=text)
    (fault,) = faults(root, num_classes=4)
    assert 'damaged' not in fault
    assert f'exiftool -all= {path}' in fault


@pytest.mark.parametrize('content', [b'<html>please log in</html>', b'\x1b[31m' * 9, bytes(99)])
def test_no_object_of_python_stands_for_a_file_that_is_no_picture(root: Path, content: bytes) -> None:
    labels(root)[0].write_bytes(content)
    (fault,) = faults(root, num_classes=4)
    assert 'no picture begins with ' in fault
    assert 'BytesIO' not in fault
    assert fault.isprintable()


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('# 模型\nx = 1\n'.encode('gbk'), 'is not in UTF-8 (line 1), perhaps in GBK; save it as UTF-8'),
        (b'\xef\xbb\xbfx = 1\n', 'begins with a byte order mark (BOM); save it as UTF-8 without'),
        ('x = 1\n'.encode('utf-16'), 'begins with a byte order mark'),
    ],
)
@pytest.mark.parametrize('inherited', [False, True])
def test_a_config_in_another_encoding_is_named(tmp_path: Path, content: bytes, said: str, inherited: bool) -> None:
    path = given = tmp_path / 'config.py'
    path.write_bytes(content)
    if inherited:
        given = tmp_path / 'child.py'
        given.write_text("_base_ = ['./config.py']\n")
    with pytest.raises(console.UserError) as refused:
        run_config.load(given)
    assert f'--config: {path} {said}' in str(refused.value)


def test_names_of_files_act_on_no_terminal(root: Path, capsys: pytest.CaptureFixture) -> None:
    path = picture_of(labels(root)[0])
    path.rename(path.with_name(f'town\nerror: \x1b[2Jnot mine\x9b{layout.IMAGE_SUFFIX}'))
    assert data_cli.main(['verify', '--data_path', str(root), '--num_classes', '4', '--num_workers', '1']) == 1
    shown = ''.join(capsys.readouterr()).splitlines()
    assert all(line.isprintable() and not line.startswith('error:') for line in shown)
    assert any(rf'town\nerror: \x1b[2Jnot mine\x9b{layout.IMAGE_SUFFIX}: its label ' in line for line in shown)

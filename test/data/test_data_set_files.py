"""Data sets of strangers: their file is guessed, checked and refused; what is loaded is what the labels mean."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import pytest
from PIL import Image

import own_sets
from cityscapes_sets import make_prepared
from recipe.core import console
from recipe.core.run_options import Options
from recipe.data.sets import cli, coding, file, inspect, pairs, split, verify
from recipe.engine import config as run_config
from recipe.launch import checks, options
from recipe.launch.plan import Plan


def inspected(root: Path, samples: int = 0) -> file.DataSet:
    """The file of a folder, written and read again."""
    return file.read(file.write(inspect.inspect(root, root / file.NAME, samples, workers=1, progress=False)))


def faults(data: file.DataSet) -> List[str]:
    return [str(fault) for fault in verify.verify(data, workers=1, progress=False).faults]


@pytest.fixture(scope='module')
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = own_sets.make_good(tmp_path_factory.mktemp('good') / 'set')
    inspected(root)
    return root


@pytest.fixture
def root(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / 'set'))


# --- layouts ---------------------------------------------------------------------------------------------------------


def at(image: str, label: str):
    """Paths of picture and label; {s} is the split, {t} its long name, {n} a number, {k} a scene."""
    long = {'train': 'training', 'val': 'validation'}
    return lambda s, n: tuple(text.format(s=s, t=long[s], n=f'{n:03d}', k=n % 4) for text in (image, label))


LAYOUTS = {
    'Cityscapes': ('leftImg8bit/{s}/c/c_{n}_leftImg8bit.png', 'gtFine/{s}/c/c_{n}_gtFine_labelTrainIds.png'),
    'ADE20K': ('images/{t}/x_{n}.jpg', 'annotations/{t}/x_{n}.png'),
    'Mapillary Vistas': ('{t}/images/{n}.jpg', '{t}/v1.2/labels/{n}.png'),
    'BDD100K': ('images/10k/{s}/{n}.jpg', 'labels/sem_seg/masks/{s}/{n}.png'),
    'CamVid': ('{s}/{n}.png', '{s}annot/{n}.png'),
    'COCO-stuff': ('images/{s}2017/{n}.jpg', 'annotations/{s}2017/{n}.png'),
    'images beside labels': ('img_dir/{s}/{n}.jpg', 'ann_dir/{s}/{n}.png'),
    'images beside labels ': ('{s}/images/{n}.jpg', '{s}/masks/{n}_mask.png'),
    'images beside labels  ': ('seq{k}/Images/{n}.png', 'seq{k}/Labels/{n}.png'),
    'pairs by suffix': ('{n}.jpg', '{n}_mask.png'),
    'pairs by suffix ': ('a/{n}_image.png', 'a/{n}_mask.png'),
    'pairs by suffix  ': ('{n}.jpg', '{n}.png'),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_each_layout_is_recognised_with_all_of_its_pairs(tmp_path: Path, name: str) -> None:
    root = own_sets.make(tmp_path / 'set', place=at(*LAYOUTS[name]))
    if name == 'Mapillary Vistas':
        (root / 'classes.txt').unlink()
        rows = [{'readable': f'name_{n}', 'color': [n, 9, 9], 'evaluate': n < 3} for n in range(4)]
        (root / 'config_v1.2.json').write_text(json.dumps({'labels': rows}))
    data = inspected(root)
    assert data.layout == name.strip()
    counts = verify.verify(data, workers=1, progress=False).n_pairs
    assert sum(counts.values()) == 12
    if '{s}' in ''.join(LAYOUTS[name]) or '{t}' in ''.join(LAYOUTS[name]):
        assert counts == {'train': 8, 'val': 4}
        assert data.reasons['splits'].startswith('given: ')
    assert data.names == [f'name_{n}' for n in range(3 if name == 'Mapillary Vistas' else 4)]
    assert faults(data) == []


def test_own_classes_in_the_folders_of_a_known_set_do_not_get_its_names(tmp_path: Path) -> None:
    root = own_sets.make(tmp_path / 'set', place=at(*LAYOUTS['Cityscapes']))
    (root / 'classes.txt').unlink()
    data = inspected(root)
    assert data.layout == 'Cityscapes'
    assert data.names == [f'class {n}' for n in range(4)]
    assert 'not used: none of 12 labels holds a number above 3' in data.reasons['names']
    assert faults(data) == []


@pytest.mark.parametrize('columns', [1, 2])
def test_a_list_file_names_the_pairs(tmp_path: Path, columns: int) -> None:
    root = own_sets.make(tmp_path, place=lambda s, n: (f'JPEGImages/{n}.jpg', f'SegmentationClass/{n}.png'))
    folder = root / ('ImageSets/Segmentation' if columns == 1 else '.')
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in (('train', range(8)), ('val', range(100, 104))):
        lines = [f'{n}' if columns == 1 else f'JPEGImages/{n}.jpg SegmentationClass/{n}.png' for n in numbers]
        (folder / f'{name}.txt').write_text('\n'.join(lines))
    data = inspected(root)
    assert data.layout == 'a list file'
    assert verify.verify(data, workers=1, progress=False).n_pairs == {'train': 8, 'val': 4}
    (root / 'JPEGImages/3.jpg').unlink()
    assert [fault for fault in faults(data) if 'JPEGImages/3.jpg: missing file: ' in fault]


@pytest.mark.parametrize(
    ('names', 'by'),
    [
        ([f'town{k}/{n}' for k in range(5) for n in range(4)], 'folder'),
        ([f'seq{k}_{n:04d}' for k in range(5) for n in range(4)], 'scene'),
        ([f'c_{k:06d}_{n:06d}' for k in range(5) for n in range(4)], 'scene'),
        ([f'img{n:04d}' for n in range(20)], 'block'),
    ],
)
def test_a_proposed_split_parts_no_scene(names: List[str], by: str) -> None:
    proposed = split.propose(file.Split('i', 'l'), names, {})
    parts = [[name for name in names if pairs.is_chosen(name, one)] for one in (proposed.train, proposed.val)]
    assert sorted(parts[0] + parts[1]) == sorted(names)
    assert len(parts[1]) == 4
    assert by in proposed.why
    if by == 'block':
        assert parts[1] == names[-4:]
    else:
        scenes = [{name[:-1].rstrip('0_') for name in part} for part in parts]
        assert not scenes[0] & scenes[1]


def test_a_proposed_split_leaves_every_class_to_train_on() -> None:
    names = [f'seq{k}_{n}' for k in range(6) for n in range(3)]
    rare = {'seq2_1': {7}}
    proposed = split.propose(file.Split('i', 'l'), names, {**{name: {0} for name in names}, **rare})
    assert pairs.is_chosen('seq2_1', proposed.train)


# --- coding ----------------------------------------------------------------------------------------------------------

CODINGS: Dict[str, Tuple[int, Sequence[int]]] = {
    'palette': (30, range(30)),
    'rgb': (4, range(4)),
    'indices': (4, (0, 3, 7, 12)),
    '16 bits': (4, (0, 300, 700, 1200)),
    'instances': (30, range(1, 31)),
}


@pytest.mark.parametrize('engine', ['recipe', 'upstream'])
@pytest.mark.parametrize('kind', CODINGS)
def test_what_is_loaded_is_what_the_labels_mean(tmp_path: Path, kind: str, engine: str) -> None:
    """Through the data set and the validation pipeline that a run builds, with both engines."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    count, values = CODINGS[kind]
    root = own_sets.make(tmp_path, kind, count, ((128, 64), (96, 96)), (16, 8), values)
    data = inspected(root)
    assert (data.coding, data.names) == (kind, [f'name_{value}' for value in values])
    assert faults(data) == []
    config = run_config.make(Options('full', dataset=str(data.path), engine=engine), 'cpu', data.root)
    init_default_scope('mmseg')
    loaded = DATASETS.build(config.val_dataloader.dataset)
    assert len(loaded) == 8
    assert list(loaded.metainfo['classes']) == data.names
    for sample in loaded:
        number = int(Path(sample['data_samples'].img_path).stem[1:])
        _, truth = own_sets.draw(number, count, ((128, 64), (96, 96))[number % 2])
        expected = np.where(truth < 0, 255, truth)
        assert np.array_equal(sample['data_samples'].gt_sem_seg.data[0].numpy(), expected)
    crop = DATASETS.build(config.train_dataloader.dataset)[0]
    assert set(crop['data_samples'].gt_sem_seg.data.unique().tolist()) <= {*range(count), 255}


def test_a_palette_that_differs_from_file_to_file_is_read_by_colour(tmp_path: Path) -> None:
    root = own_sets.make(tmp_path, 'rgb')
    for number, path in enumerate(sorted(root.rglob('labels/*/*.png'))):
        order = [4, 3, 2, 1, 0] if number % 2 else [0, 1, 2, 3, 4]
        Image.open(path).quantize(5).remap_palette(order).save(path)
    data = inspected(root)
    assert data.coding == 'rgb'
    assert data.names == [f'name_{n}' for n in range(4)]
    assert faults(data) == []


def test_a_value_that_appears_after_the_check_is_refused_by_name(root: Path) -> None:
    data = file.read(root / file.NAME)
    decoder = coding.Decoder(data.coding, data.codes)
    path = root / 'labels/train/s0.png'
    Image.fromarray(np.full((64, 128), 99, np.uint8)).save(path)
    with pytest.raises(console.UserError, match=r's0\.png: holds 99, which dataset.json does not name'):
        decoder.read(str(path))


def test_two_values_of_a_mask_are_two_classes(tmp_path: Path) -> None:
    root = own_sets.make(tmp_path, names=False)
    for path in root.rglob('labels/*/*.png'):
        Image.fromarray(np.where(np.array(Image.open(path)) % 2, 255, 0).astype(np.uint8)).save(path)
    data = inspected(root)
    assert ([one.value for one in data.classes], data.ignore) == ([0, 255], ())


# --- the file --------------------------------------------------------------------------------------------------------


def edited(root: Path, **changes: object) -> file.DataSet:
    path = root / file.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return file.read(path)


def test_a_file_that_is_written_is_the_file_that_is_read(root: Path) -> None:
    data = file.read(root / file.NAME)
    text = data.path.read_text()
    assert file.write(data).read_text() == text


def test_a_map_merges_and_ignores(root: Path) -> None:
    data = edited(root, map={'name_3': 'moving', 'name_12': 'moving', 'name_7': None})
    assert data.names == ['name_0', 'moving']
    assert data.codes == [[0, 0], [3, 1], [7, 255], [12, 1], [255, 255]]
    assert data.class_weight == [1.0, 1.0, 0.1]
    config = run_config.make(Options('full', dataset=str(data.path)), 'cpu', data.root)
    assert config.model.decode_head.num_classes == 2
    assert list(config.model.decode_head.loss_cls.class_weight) == [1.0, 1.0, 0.1]
    assert faults(data) == []


def test_weights_are_proposed_for_rare_classes_and_trained_with_when_asked(root: Path) -> None:
    assert inspect.class_weights({'road': 10, 'car': 5, 'train': 1, 'tram': 0}) == {
        'road': 1.0,
        'car': 1.0,
        'train': 5.0,
        'tram': 5.0,
    }
    weights = {'by_class': {'name_3': 4.0}, 'no_object': 0.2}
    data = edited(root, class_weights={**weights, 'applied': True})
    config = run_config.make(Options('full', dataset=str(data.path)), 'cpu', data.root)
    assert list(config.model.decode_head.loss_cls.class_weight) == [1.0, 4.0, 1.0, 1.0, 0.2]
    assert edited(root, class_weights={**weights, 'applied': False}).class_weight == [1.0] * 4 + [0.2]


def test_accepted_faults_are_counted_and_all_others_stay_faults(root: Path) -> None:
    own_sets.BROKEN['an ignored label'](root)
    own_sets.BROKEN['an empty picture'](root)
    assert len(faults(file.read(root / file.NAME))) == 2
    data = edited(root, accept=['all-ignored label'])
    report = verify.verify(data, workers=1, progress=False)
    assert report.accepted == {'all-ignored label': 1}
    assert ['empty file' in str(fault) for fault in report.faults] == [True]


@pytest.mark.parametrize(
    ('typical', 'crop', 'sides'),
    [
        ((2048, 1024), (512, 1024), (1024, 2048)),  # Cityscapes
        ((1920, 1080), (512, 1024), (1024, 1820)),
        ((4000, 3000), (512, 1024), (1024, 1365)),
        ((3000, 4000), (512, 1024), (1024, 1365)),
        ((640, 480), (480, 640), (480, 640)),
        ((500, 375), (352, 480), (375, 500)),
        ((1100, 300), (288, 1024), (300, 1100)),
        ((20, 20), (32, 32), (32, 32)),
    ],
)
def test_the_crop_fits_into_the_pictures(typical, crop, sides) -> None:
    assert inspect.training_sizes(typical) == (crop, *sides)


def test_the_validation_takes_pictures_of_several_sizes_one_by_one(good: Path, tmp_path: Path) -> None:
    alike = inspected(own_sets.make(tmp_path / 'alike'))
    for data, size in ((file.read(good / file.NAME), 1), (alike, 4)):
        options_ = Options('full', demo=True, dataset=str(data.path))
        config = run_config.make(options_, 'cpu', data.root)
        assert config.val_dataloader.batch_size == 1  # of a demo with pictures of a user
        config = run_config.make(Options('full', dataset=str(data.path)), 'cpu', data.root)
        assert config.val_dataloader.batch_size == 1
        assert data.val_batch_size == (1 if size == 1 else None)


# --- Cityscapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('demo', [False, True])
def test_cityscapes_through_its_built_in_file_is_the_config_without_it(tmp_path: Path, demo: bool) -> None:
    plain = run_config.make(Options('full', demo=demo, data_path=str(tmp_path)), 'cpu', tmp_path)
    through = run_config.make(
        Options('full', demo=demo, data_path=str(tmp_path), dataset=str(file.CITYSCAPES)), 'cpu', tmp_path
    )
    assert through.to_dict() == plain.to_dict()
    assert through.pretty_text == plain.pretty_text


def test_an_inspected_cityscapes_gives_the_samples_of_mmsegs_own_class(tmp_path: Path) -> None:
    """Pictures, labels and draws, bit by bit, in the same order: so the losses are the same too."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    root = make_prepared(tmp_path / 'set')
    data = inspected(root)
    cityscapes = file.read(file.CITYSCAPES, str(root))
    assert (data.layout, data.names, data.palette) == ('Cityscapes', cityscapes.names, cityscapes.palette)
    configs = [
        run_config.make(Options('full', data_path=str(root)), 'cpu', root),
        run_config.make(Options('full', dataset=str(data.path)), 'cpu', root),
    ]
    configs[1].train_dataloader.dataset.pipeline[0].resize = configs[0].train_dataloader.dataset.pipeline[0].resize
    configs[1].train_dataloader.dataset.pipeline[0].crop = configs[0].train_dataloader.dataset.pipeline[0].crop
    init_default_scope('mmseg')
    theirs, ours = (DATASETS.build(config.train_dataloader.dataset) for config in configs)
    assert len(theirs) == len(ours) == 4
    for number in range(4):
        samples = []
        for one in (theirs, ours):
            np.random.seed(number)
            samples.append(one[number])
        first, second = samples
        assert first['data_samples'].img_path == second['data_samples'].img_path
        assert first['inputs'].equal(second['inputs'])
        assert first['data_samples'].gt_sem_seg.data.equal(second['data_samples'].gt_sem_seg.data)


# --- the tool --------------------------------------------------------------------------------------------------------


def run_tool(*argv: object) -> Tuple[int, str]:
    """What tools/dataset.py does: its status, and all that it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = cli.main([*map(str, argv)])
        except console.UserError as error:
            status = error.status
            print(f'error: {error}')
    return status, said.getvalue()


def test_every_guess_is_said_with_its_reason_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    root = own_sets.make_good(tmp_path / 'set')
    status, said = run_tool('inspect', root, '--num_workers=1')
    assert status == 0
    for key in ('layout', 'splits', 'coding', 'names', 'ignore', 'training', 'class_weights'):
        assert f'\n{key}: ' in said
    drawn = np.array(Image.open(root / file.SHEET).convert('RGB'))
    for colour in file.read(root / file.NAME).palette:
        assert (drawn == colour).all(-1).sum() > 1000
    assert run_tool('verify', root / file.NAME, '--num_workers=1')[0] == 0
    before = (root / file.NAME).read_bytes()
    status, said = run_tool('inspect', root, '--num_workers=1')
    assert (status, 'is there already; give --force' in said) == (1, True)
    assert (root / file.NAME).read_bytes() == before


def tried_training(path: Path) -> str:
    """What the launcher refuses a set with, before it makes a run folder."""
    with pytest.raises(console.UserError) as refused:
        plan = Plan(options.read('full', [f'--dataset={path}', '--demo']), starts=False, device='cpu', nproc=1)
        for check in checks.TRAINING:
            if check.name in ('data path', 'data set'):
                list(check.examine(plan))
    return str(refused.value)


@pytest.mark.parametrize('name', own_sets.BROKEN)
def test_each_fault_of_a_set_is_named_with_its_file(root: Path, name: str) -> None:
    at_fault, words = own_sets.BROKEN[name](root)
    status, said = run_tool('verify', root / file.NAME, '--num_workers=1')
    assert status == 1
    assert any(line.startswith(f'{at_fault}: ') and words in line for line in said.splitlines()), said
    assert 'Traceback' not in said
    assert ' fault' in said.splitlines()[-1]
    assert 'python tools/dataset.py verify ' in tried_training(root / file.NAME)


@pytest.mark.parametrize('name', own_sets.BROKEN_FILES)
def test_each_fault_of_a_file_is_named_with_its_key(root: Path, name: str) -> None:
    change, words = own_sets.BROKEN_FILES[name]
    path = root / file.NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    status, said = run_tool('verify', path)
    assert status == 1
    assert said.startswith(f'error: {path}: ') and words in said, said
    assert words in tried_training(path)


@pytest.mark.parametrize(
    ('content', 'said'),
    [(b'', 'is empty'), (b'{', 'no JSON'), (b'[]', 'holds a list, not an object'), (b'\xff\xfe{}', 'not in UTF-8')],
)
def test_a_file_that_is_no_json_is_named(root: Path, content: bytes, said: str) -> None:
    (root / file.NAME).write_bytes(content)
    status, text = run_tool('verify', root / file.NAME)
    assert (status, f'--dataset: {root / file.NAME}' in text, said in text) == (1, True, True)


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (lambda root: shutil.rmtree(root), 'there is no such folder'),
        (lambda root: [shutil.rmtree(root), root.mkdir()], 'the folder is empty'),
        (lambda root: shutil.rmtree(root / 'labels'), 'no layout is recognised: it holds classes.txt'),
        (lambda root: [path.unlink() for path in [*root.rglob('*.png')][1:]], 'two are needed'),
        (lambda root: [path.write_bytes(b'x') for path in root.rglob('*.png')], 'labels can be read; the first: '),
        (
            lambda root: [own_sets._save_as(p, 'PNG', np.full((64, 128), 255, np.uint8)) for p in root.rglob('*.png')],
            'every pixel of the labels that were read is ignored',
        ),
        (
            lambda root: [
                own_sets._save_as(p, 'PNG', np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8))
                for p in root.rglob('*.png')
            ],
            'it holds 8',
        ),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_and_no_file_is_written(tmp_path: Path, spoil, said: str) -> None:
    root = own_sets.make(tmp_path / 'set')
    spoil(root)
    status, text = run_tool('inspect', root, '--num_workers=1')
    assert (status, said in text) == (1, True), text
    assert not (root / file.NAME).exists()


def test_a_check_remembers_what_has_not_changed(root: Path) -> None:
    data = file.read(root / file.NAME)
    reports = [verify.verify(data, workers=1, progress=False) for _ in range(2)]
    assert [report.from_cache for report in reports] == [0, 24]
    path = root / 'labels/train/s0.png'
    Image.fromarray(np.full((64, 128), 99, np.uint8)).save(path)
    report = verify.verify(data, workers=1, progress=False)
    assert (report.from_cache, len(report.faults)) == (23, 1)


# --- the options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('script', 'given', 'said'),
    [
        ('evaluate', ['--official', '--checkpoint=x'], '--official is for Cityscapes only'),
        ('evaluate', ['--submission=a.zip', '--checkpoint=x'], '--submission is for Cityscapes only'),
        ('full', ['--decoded_cache=x'], '--decoded_cache holds pictures of Cityscapes'),
    ],
)
def test_what_belongs_to_cityscapes_is_refused_in_one_line(
    good: Path, script: str, given: List[str], said: str
) -> None:
    with pytest.raises(console.UserError, match=said):
        options.read(script, [f'--dataset={good / file.NAME}', *given])


def test_an_override_of_the_number_of_classes_is_refused(good: Path) -> None:
    asked = Options('full', dataset=str(good / file.NAME), overrides=['model.decode_head.num_classes=9'])
    with pytest.raises(console.UserError, match=r'the model has 9 classes, and .* 4; leave out the override'):
        run_config.make(asked, 'cpu', good)

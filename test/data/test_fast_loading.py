"""The fast loader: decoding, resizing, settings by device, the warning."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip('torch')
mmcv = pytest.importorskip('mmcv')
pytest.importorskip('recipe.data.transforms.png', reason='no patched mmseg; run bash tools/setup.sh')

# Below what skips where the patched packages are missing, since these imports would fail there.
from mmengine.registry import init_default_scope  # noqa: E402
from mmseg.datasets.transforms import PhotoMetricDistortion  # noqa: E402

import oriented_pictures  # noqa: E402
from recipe.data.transforms import fast_augment, fast_loading, picture_file, png, window_resize  # noqa: E402
from recipe.engine import loaders  # noqa: E402
from recipe.engine.hooks.loader_pace_hook import LoaderPaceHook  # noqa: E402
from recipe.engine.metric import DeviceIoUMetric  # noqa: E402

# Around a whole number, from what float32 cannot tell to what OpenCV's rounding can.
OFF = st.sampled_from([0.0, 1e-9, -1e-9, 1e-7, -1e-7, 1e-5, -1e-5, 1e-4, -1e-4, 2e-4, -2e-4, 1e-3, -1e-3])
NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)


def encoded(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'png', **options)
    return file.getvalue()


@pytest.mark.parametrize('rows', [1, 17, 40])
@pytest.mark.parametrize('channels', [1, 3])
def test_first_rows_are_those_of_the_whole(rows, channels):
    if png.decode_image_png_u8 is None:
        pytest.skip('kornia-rs is not installed')
    pixels = NOISE[..., 0] if channels == 1 else NOISE[..., :3]
    np.testing.assert_array_equal(png.decode_rows(encoded(pixels), rows), pixels[:rows])


@pytest.mark.parametrize('cut', [50, 600])
def test_damage_above_the_last_row_is_noticed(cut):
    if png.decode_image_png_u8 is None:
        pytest.skip('kornia-rs is not installed')
    with pytest.raises(ValueError, match='damaged PNG'):
        png.decode_rows(encoded(NOISE[..., :3])[:cut] if cut > 50 else encoded(NOISE[..., :3])[:60], 40)


def special_pictures():
    """PNG files that are more than rows of 8-bit grey or RGB, and one that is no PNG."""
    palette = Image.fromarray(NOISE[..., :3]).quantize(16)
    file = io.BytesIO()
    palette.save(file, 'png')
    jpeg = io.BytesIO()
    Image.fromarray(NOISE[..., :3]).save(jpeg, 'jpeg')
    plain = encoded(NOISE[..., :3])
    to_be_turned = oriented_pictures.chunk(b'eXIf', oriented_pictures.exif(6))  # by 90 degrees
    return {
        'palette': file.getvalue(),
        'alpha': encoded(NOISE),
        'sixteen bits': encoded(NOISE[..., 0].astype(np.uint16) * 257),
        'one transparent colour': encoded(NOISE[..., :3], transparency=(1, 2, 3)),
        'orientation': oriented_pictures.after_header(plain, to_be_turned),
        'orientation behind the pixels': oriented_pictures.after_pixels(plain, to_be_turned),
        'jpeg': jpeg.getvalue(),
    }


@pytest.mark.parametrize('kind', list(special_pictures()))
def test_special_pictures_are_left_to_opencv(tmp_path, kind):
    content = special_pictures()[kind]
    assert png.read_header(content) is None
    (tmp_path / 'picture').write_bytes(content)
    picture = picture_file.PictureFile(str(tmp_path / 'picture'))
    wanted = mmcv.imfrombytes(content, flag='color', backend='cv2')
    assert picture.shape == wanted.shape[:2]
    np.testing.assert_array_equal(picture.window(3, 20, 5, 30), wanted[3:20, 5:30])


@pytest.mark.parametrize('way', list(oriented_pictures.all_ways(b'')))
def test_a_picture_is_turned_where_upstream_turns_it(tmp_path, way):
    for value in range(1, 9):
        content = oriented_pictures.all_ways(encoded(NOISE[..., :3]), value)[way]
        (tmp_path / 'picture').write_bytes(content)
        wanted = mmcv.imfrombytes(content, flag='color', backend='cv2')
        np.testing.assert_array_equal(picture_file.PictureFile(str(tmp_path / 'picture')).window(), wanted)


@pytest.mark.parametrize('content', [b'', b'no picture', encoded(NOISE[..., :3])[:200]])
@pytest.mark.parametrize('is_label', [False, True])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, content, is_label):
    (tmp_path / 'broken.png').write_bytes(content)
    with pytest.raises(ValueError, match=r'cannot decode .*broken\.png'):
        picture_file.PictureFile(str(tmp_path / 'broken.png'), is_label).window()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_windows_are_those_of_the_whole_resized_picture(data):
    source = [data.draw(st.integers(2, 90)) for _ in range(2)]
    if data.draw(st.booleans()):  # a ratio with a short period
        above, below = data.draw(st.sampled_from([(2, 1), (3, 2), (3, 1), (1, 2), (4, 3), (5, 4), (1, 3)]))
        source = [length * below for length in source]
        resized = [length // below * above for length in source]
    else:
        resized = [data.draw(st.integers(2, 200)) for _ in range(2)]
    starts = [data.draw(st.integers(0, length - 1)) for length in resized]
    ends = [data.draw(st.integers(start + 1, length)) for start, length in zip(starts, resized)]
    # Black and white, so that the smallest difference of a weight shows.
    pixels = np.random.default_rng(sum(source)).choice(np.array([0, 255], np.uint8), (*source, 3))
    rows, columns = (
        window_resize.bilinear_span(source[axis], resized[axis], starts[axis], ends[axis]) for axis in range(2)
    )
    window = window_resize.bilinear_window(
        pixels[rows.start : rows.stop, columns.start : columns.stop],
        rows,
        columns,
        (ends[0] - starts[0], ends[1] - starts[1]),
    )
    part = np.s_[starts[0] : ends[0], starts[1] : ends[1]]
    np.testing.assert_array_equal(window, cv2.resize(pixels, tuple(resized[::-1]))[part])
    labels = pixels[..., 0]
    taken = [
        window_resize.nearest_positions(source[axis], resized[axis])[starts[axis] : ends[axis]] for axis in range(2)
    ]
    np.testing.assert_array_equal(
        window_resize.nearest_window(labels, *taken),
        cv2.resize(labels, tuple(resized[::-1]), interpolation=cv2.INTER_NEAREST)[part],
    )


@pytest.mark.parametrize(
    ('source', 'resized'), [((18, 2), (16, 2)), ((4, 8), (3, 8)), ((9, 9), (8, 8)), ((3, 3), (4, 4))]
)
def test_small_windows_are_resized_too(source, resized):
    """OpenCV copies an array whose rounded size is that of before."""
    pixels = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (*source, 3))
    whole = cv2.resize(pixels, tuple(resized[::-1]))
    for top, left in np.ndindex(*resized):
        rows, columns = (
            window_resize.bilinear_span(source[axis], resized[axis], start, start + 1)
            for axis, start in enumerate((top, left))
        )
        part = pixels[rows.start : rows.stop, columns.start : columns.stop]
        window = window_resize.bilinear_window(part, rows, columns, (1, 1))
        np.testing.assert_array_equal(window[0, 0], whole[top, left])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_values_are_changed_as_upstream_changes_them(data):
    """Also where a product falls on a whole number or right below it; rows of every length, with gaps between."""
    whole = st.builds(lambda product, value, off: product / value + off, st.integers(1, 255), st.integers(1, 255), OFF)
    alpha = data.draw(st.one_of(st.floats(0.01, 3), whole), 'alpha')
    near = st.builds(lambda number, off: number + off, st.integers(-40, 40), OFF)
    beta = data.draw(st.one_of(st.just(0), st.floats(-40, 40), near), 'beta')
    if data.draw(st.booleans(), 'shift only'):
        alpha = 1
    image = np.arange(256 * 3 * 7, dtype=np.uint8).reshape(7, 256, 3)[:, : data.draw(st.integers(1, 256), 'width')]
    if data.draw(st.booleans(), 'one channel'):
        image = image[..., 1]
    theirs = PhotoMetricDistortion().convert(image, alpha, beta)
    ours = fast_augment.TablePhotoMetricDistortion().convert(image, alpha, beta)
    np.testing.assert_array_equal(ours.reshape(theirs.shape), theirs)


@settings(max_examples=100, deadline=None)
@given(method=st.sampled_from(['hue', 'saturation']), seed=st.integers(0, 2**32 - 1))
def test_colours_are_turned_as_upstream_turns_them(method, seed):
    """By every angle, all hues of them in the picture."""
    hues = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_HSV)
    image = np.concatenate([hues, NOISE[..., :3].reshape(1, -1, 3)], axis=1)
    results = []
    for kind in (PhotoMetricDistortion, fast_augment.TablePhotoMetricDistortion):
        np.random.seed(seed)
        results.append(getattr(kind(hue_delta=180), method)(image.copy()))
    np.testing.assert_array_equal(results[1], results[0])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_crops_are_mixed_where_upstream_says_so(data):
    """RandomCrop's own condition, with labels that are ignored and crops of one row."""
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)), 'shape')
    kinds = data.draw(st.lists(st.sampled_from([0, 1, 7, 255]), min_size=1, max_size=3), 'kinds')
    size = shape[0] * shape[1]
    labels = np.array(data.draw(st.lists(st.sampled_from(kinds), min_size=size, max_size=size)), np.uint8).reshape(
        shape
    )
    ratio = data.draw(st.sampled_from([0.3, 0.5, 0.75, 0.9]), 'ratio')
    values, counts = np.unique(labels, return_counts=True)
    counts = counts[values != 255]
    theirs = len(counts) > 1 and np.max(counts) / np.sum(counts) < ratio
    init_default_scope('mmseg')
    resize = dict(type='RandomChoiceResize', scales=[8], resize_type='ResizeShortestEdge', max_size=64)
    crop = dict(type='RandomCrop', crop_size=(4, 4), cat_max_ratio=ratio)
    assert fast_loading.LoadResizedCrop(resize=resize, crop=crop)._is_mixed(labels) == theirs


def test_transforms_that_it_cannot_stand_for_are_refused():
    init_default_scope('mmseg')
    resize = dict(type='RandomChoiceResize', scales=[32], resize_type='ResizeShortestEdge', max_size=64)
    crop = dict(type='RandomCrop', crop_size=(8, 8))
    fast_loading.LoadResizedCrop(resize, crop)
    with pytest.raises(TypeError, match='RandomResize'):
        fast_loading.LoadResizedCrop(dict(type='RandomResize', scale=(64, 32), ratio_range=(0.5, 2.0)), crop)
    with pytest.raises(TypeError, match='keep the ratio'):
        fast_loading.LoadResizedCrop(dict(type='RandomChoiceResize', scales=[(64, 32)], keep_ratio=False), crop)
    with pytest.raises(ValueError, match='label_dtype'):
        fast_augment.FastPackSegInputs(label_dtype='float32')


@pytest.mark.parametrize('shape', [(1, 8, 4), (1, 32, 1), (1, 4, 1), (4, 8), (1, 1, 1)])
def test_a_prediction_of_another_shape_than_its_labels_is_refused(shape):
    metric = DeviceIoUMetric()
    metric.dataset_meta = {'classes': list('abc')}
    sample = {
        'img_path': 'town.png',
        'pred_sem_seg': {'data': torch.zeros(shape, dtype=torch.int64)},
        'gt_sem_seg': {'data': torch.zeros((1, 4, 8), dtype=torch.uint8)},
    }
    if shape == (4, 8):  # without its first dimension of one, as upstream takes it
        metric.process({}, [sample])
        return
    with pytest.raises(ValueError, match=r'town\.png: the prediction is \(.*\) pixels, the labels \(4, 8\)'):
        metric.process({}, [sample])


def test_labels_of_another_shape_than_their_picture_are_not_packed():
    def sample(labels, **more):
        maps = {'img': NOISE[:8, :16, :3], 'gt_seg_map': NOISE[..., 0][: labels[0], : labels[1]]}
        return {**maps, 'img_path': 'town.png', 'seg_map_path': 'labels.png', 'seg_fields': ['gt_seg_map'], **more}

    pack = fast_augment.FastPackSegInputs()
    pack(sample((8, 16)))
    pack(sample((16, 32), ori_shape=(16, 32)))  # a test's picture is resized, its labels are not
    for labels, more in (((16, 8), {}), ((16, 32), {}), ((32, 16), {'ori_shape': (16, 32)})):
        with pytest.raises(ValueError, match=r'town\.png is \(8, 16\) pixels, its labels labels\.png are'):
            pack(sample(labels, **more))


@pytest.mark.parametrize('device', ['npu', 'cuda', 'cpu'])
def test_loader_settings_follow_the_device(device):
    from mmengine.config import Config

    config = Config(
        dict(
            train_dataloader=dict(num_workers=2),
            val_dataloader=dict(num_workers=0, pin_memory=False),
            test_dataloader=dict(num_workers=1, prefetch_factor=2, persistent_workers=False),
        )
    )
    loaders.prepare_loaders(config, device)
    train, val, test = (config[name] for name in loaders.LOADERS)
    assert train.persistent_workers and train.prefetch_factor == loaders.PREFETCH
    assert train.get('pin_memory', False) == (device != 'cpu')
    assert not val.pin_memory and 'prefetch_factor' not in val and 'persistent_workers' not in val
    assert test.prefetch_factor == 2 and not test.persistent_workers
    old_torch = tuple(map(int, torch.__version__.split('.')[:2])) < (2, 9)
    assert train.get('pin_memory_device') == ('npu' if device == 'npu' and old_torch else None)


def test_labels_are_pinned_with_their_sample(monkeypatch):
    from mmengine.structures import PixelData
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor, *_: tensor + 1)
    sample = fast_augment.PinnableSample(gt_sem_seg=PixelData(data=torch.zeros(1, 2, 2)))
    assert pin_memory([sample])[0].gt_sem_seg.data.sum() == 4
    assert pin_memory([fast_augment.PinnableSample()])


def run_hook(hook, folder, times, logger):
    """Write the times of 100 iterations and let the hook look."""
    path = folder / 'vis_data' / 'steps.csv'
    path.parent.mkdir(exist_ok=True)
    with path.open('a') as file:
        file.writelines(f'{index},{data:.6f},{step:.6f}\n' for index, (data, step) in enumerate(times))
    runner = SimpleNamespace(
        rank=0, log_dir=str(folder), logger=logger, train_dataloader=SimpleNamespace(num_workers=2), max_iters=1000
    )
    hook.after_train_iter(runner, 99)


def test_a_slow_loader_is_told_once(tmp_path, caplog):
    logger = logging.getLogger('pace')
    hook = LoaderPaceHook()
    (tmp_path / 'vis_data').mkdir()
    (tmp_path / 'vis_data' / 'steps.csv').write_text('iter,data_s,step_s\n')
    run_hook(hook, tmp_path, [(9.0, 9.1)] * 5 + [(0.01, 0.5)] * 95, logger)  # only the start was slow
    assert not caplog.records
    run_hook(hook, tmp_path, [(0.2, 0.5)] * 100, logger)
    run_hook(hook, tmp_path, [(0.22, 0.5)] * 100, logger)
    run_hook(hook, tmp_path, [(0.0, 0.5)] * 100, logger)
    assert len(caplog.records) == 1
    assert '40% of the time of the last 100 iterations' in caplog.text and 'num_workers=2' in caplog.text
    run_hook(hook, tmp_path, [(0.4, 0.5)] * 100, logger)
    assert len(caplog.records) == 2

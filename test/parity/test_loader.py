"""The pipeline that chooses the crop first gives upstream's samples."""

import cv2
import mmseg.datasets  # noqa: F401  registers the transforms
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope

HEIGHT, WIDTH = 1024, 2048
RESIZE = dict(
    type='RandomChoiceResize',
    scales=[int(1024 * x * 0.1) for x in range(5, 21)],
    resize_type='ResizeShortestEdge',
    max_size=4096,
)
CROP = dict(type='RandomCrop', crop_size=(512, 1024), cat_max_ratio=0.75)
UPSTREAM = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    RESIZE,
    CROP,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
OURS = [
    dict(type='LoadResizedCrop', resize=RESIZE, crop=CROP),
    dict(type='FastRandomFlip', prob=0.5),
    dict(type='TablePhotoMetricDistortion'),
    dict(type='FastPackSegInputs', label_dtype='uint8'),
]


def samples(pipeline, files, seeds):
    """Run a training pipeline on each (picture, label) with each seed; arrays and metadata of the samples."""
    init_default_scope('mmseg')
    cv2.setNumThreads(1)
    steps, done = Compose(pipeline), []
    for index, seed in enumerate(seeds):
        np.random.seed(seed)
        image, label = files[index % len(files)]
        sample = steps(dict(img_path=image, seg_map_path=label, seg_fields=[], reduce_zero_label=False, label_map=None))
        done.append(
            {
                'image': sample['inputs'].numpy(),
                'labels': sample['data_samples'].gt_sem_seg.data.numpy(),
                'meta': sample['data_samples'].metainfo,
                'next': np.random.randint(1 << 30),
            }
        )
    return done


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Two scenes: noise of blacks and whites, where an error shows most, and smooth colours."""
    folder, made = tmp_path_factory.mktemp('pictures'), []
    generator = np.random.default_rng(0)
    noise = generator.choice(np.array([0, 255], np.uint8), (HEIGHT, WIDTH, 3))
    smooth = cv2.resize(generator.integers(0, 256, (16, 32, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    for name, image in (('noise', noise), ('smooth', smooth)):
        # One class fills most of the picture, so that crops are drawn again.
        labels = generator.choice(np.array([0] * 6 + [1, 7, 18, 255], np.uint8), (8, 16))
        labels = cv2.resize(labels, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
        paths = [str(folder / f'{name}{suffix}') for suffix in ('.png', '_label.png')]
        cv2.imwrite(paths[0], image)
        cv2.imwrite(paths[1], labels)
        made.append(tuple(paths))
    return made


def assert_same(theirs, ours):
    for one, other in zip(theirs, ours):
        assert other['meta'] == one['meta']
        assert other['next'] == one['next']  # as many random numbers were drawn
        assert other['image'].dtype == one['image'].dtype == np.uint8
        assert other['labels'].dtype == np.uint8
        np.testing.assert_array_equal(other['labels'], one['labels'])
        np.testing.assert_array_equal(other['image'], one['image'])


@pytest.mark.parametrize('decoder', ['fast', 'opencv'])
def test_same_samples(files, decoder):
    seeds = list(range(32 if decoder == 'fast' else 4))
    theirs = samples(UPSTREAM, files, seeds)
    ours = (samples if decoder == 'fast' else samples_without_fast_decoder)(OURS, files, seeds)
    assert_same(theirs, ours)
    if decoder == 'fast':
        assert {one['meta']['flip'] for one in theirs} == {True, False}
        assert len({one['meta']['scale_factor'] for one in theirs}) > 5


def samples_without_fast_decoder(pipeline, files, seeds):
    """As ``samples``, where the package of the fast decoder is not installed."""
    from mmseg.datasets.transforms import png

    decoder, png.decode_image_png_u8 = png.decode_image_png_u8, None
    try:
        return samples(pipeline, files, seeds)
    finally:
        png.decode_image_png_u8 = decoder


def test_loading_alone(files):
    """What validation loads is upstream's bit by bit."""
    ours = [dict(type='FastLoadImageFromFile'), dict(type='FastLoadAnnotations'), OURS[-1]]
    theirs = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), UPSTREAM[-1]]
    assert_same(samples(theirs, files, [0, 1]), samples(ours, files, [0, 1]))

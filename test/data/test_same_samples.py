"""The pipelines that equip() makes give upstream's samples."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope

from recipe.data.transforms import png
from recipe.engine import components  # noqa: F401  registers the transforms
from recipe.engine.equip import fast_pipeline

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


def samples(pipeline, files, seeds):
    """Run a training pipeline on each (picture, label) with each seed; arrays and metadata of the samples."""
    init_default_scope('mmseg')
    cv2.setNumThreads(1)
    steps, done = Compose(pipeline), []
    reduces = any(step.get('reduce_zero_label', False) for step in pipeline)
    for index, seed in enumerate(seeds):
        np.random.seed(seed)
        image, label = files[index % len(files)]
        sample = steps(
            dict(img_path=image, seg_map_path=label, seg_fields=[], reduce_zero_label=reduces, label_map=None)
        )
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
def test_same_samples(files, decoder, monkeypatch):
    if decoder == 'opencv':  # as if the package of the fast decoder were not installed
        monkeypatch.setattr(png, 'decode_image_png_u8', None)
    pipeline = fast_pipeline(UPSTREAM, 'uint8')
    assert pipeline[0]['type'] == 'LoadResizedCrop'
    seeds = list(range(32 if decoder == 'fast' else 4))
    theirs = samples(UPSTREAM, files, seeds)
    assert_same(theirs, samples(pipeline, files, seeds))
    if decoder == 'fast':
        assert {one['meta']['flip'] for one in theirs} == {True, False}
        assert len({one['meta']['scale_factor'] for one in theirs}) > 5


@pytest.mark.parametrize(
    'pipeline',
    [
        [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), UPSTREAM[-1]],  # what validation loads
        # a resize that LoadResizedCrop does not know, and labels that are changed on the way
        [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
            *UPSTREAM[3:],
        ],
    ],
)
def test_other_pipelines(files, pipeline):
    fast = fast_pipeline(pipeline, 'uint8')
    assert [step['type'] for step in fast[:2]] == ['FastLoadImageFromFile', 'FastLoadAnnotations']
    assert_same(samples(pipeline, files, [0, 1]), samples(fast, files, [0, 1]))

"""The recipe at its real size as far as that is cheap; test/e2e/test_real_size.py trains an iteration of it."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from recipe.bench import model as bench_model
from recipe.core import paths
from recipe.data import demo, prepare
from recipe.engine.equip import equip
from recipe.models import accelerate

pytestmark = pytest.mark.trains

CROP = (512, 1024)  # height, width
STEP_SIZE = (64, 128)


@pytest.fixture(scope='module')
def model():
    """All of Swin-B and its decoder; only its training pictures are an eighth of the crop in each direction."""
    small = {'data_preprocessor.size': STEP_SIZE, 'decode_head.train_cfg.num_points': 256}
    model = bench_model.build(bench_model.RECIPE, small)
    accelerate(model)
    return model


def test_a_sample_is_a_crop_of_the_recipe(tmp_path):
    demo.demo(tmp_path, demo.DemoSet(train=1, val=1, width=2048, height=1024, seed=0))
    prepare.prepare(tmp_path)
    cfg = Config.fromfile(paths.ROOT / bench_model.RECIPE)
    equip(cfg)
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    init_default_scope('mmseg')
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert (sample['inputs'].dtype, sample['inputs'].shape) == (torch.uint8, (3, *CROP))
    assert sample['data_samples'].gt_sem_seg.data.shape == (1, *CROP)
    assert tuple(cfg.model.data_preprocessor.size) == CROP
    assert cfg.model.decode_head.train_cfg.num_points == 12544


def test_the_features_of_a_crop(model):
    with torch.no_grad():
        features = model.extract_feat(torch.zeros(1, 3, *CROP))
    assert [tuple(one.shape) for one in features] == [
        (1, 128 * 2**level, CROP[0] // stride, CROP[1] // stride) for level, stride in enumerate((4, 8, 16, 32))
    ]


def test_a_step_has_the_thirty_losses_and_a_gradient_for_each_parameter(model):
    found = bench_model.step(model, bench_model.random_batch(1, *STEP_SIZE, classes=[[0, 7, 13]]))
    assert len(found['losses']) == 30  # class, mask and dice loss of the 10 predictions
    assert all(math.isfinite(value) for value in found['losses'].values())
    assert found['gradients'].keys() == dict(model.named_parameters()).keys()
    assert all(bool(value.isfinite().all()) for value in found['gradients'].values())

"""A run folder of the demo's model with random weights, made once."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.datasets import CityscapesDataset
from mmseg.registry import MODELS
from PIL import Image

from recipe.core import paths
from recipe.predict.trained_model import load_trained_model


@functools.lru_cache(maxsize=None)
def demo():
    """Config text of the demo, and weights that predict several classes in a picture."""
    config = Config.fromfile(str(paths.CONFIGS / 'demo.py'))
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    with torch.no_grad():  # as they are at first, all queries are of nearly the same class
        model.decode_head.cls_embed.weight.mul_(20)
        model.decode_head.mask_embed[-1].weight.mul_(5)
    return config.pretty_text, model.state_dict()


@pytest.fixture(scope='session')
def checkpoint():
    """The content of a checkpoint, as mmengine writes it."""
    text, weights = demo()
    meta = {'cfg': text, 'iter': 4, 'epoch': 0, 'seed': 0, 'dataset_meta': dict(CityscapesDataset.METAINFO)}
    return {'meta': meta, 'state_dict': weights, 'message_hub': {}, 'optimizer': {'state': {}, 'param_groups': []}}


@pytest.fixture(scope='session')
def run(tmp_path_factory, checkpoint):
    """A run folder with a best checkpoint and a later one."""
    folder = tmp_path_factory.mktemp('predict') / '20260101_120000'
    folder.mkdir()
    (folder / 'config.py').write_text(checkpoint['meta']['cfg'], encoding='utf-8')
    torch.save(checkpoint, folder / 'best_mIoU_iter_4.pth')
    torch.save({**checkpoint, 'meta': {**checkpoint['meta'], 'iter': 8}}, folder / 'iter_8.pth')
    return folder


@pytest.fixture(scope='session')
def trained(run):
    """The best checkpoint, on the CPU."""
    return load_trained_model(run, 'cpu')


@pytest.fixture(scope='session')
def street():
    """A picture of 256 x 128 pixels: random blocks, so that there is something to see."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((32, 32, 1), np.uint8)))

"""A small Mask2Former whose weights are all random, in the forms in which users have it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from random_mask2former import SMALL, random_model, save
from recipe.bench import model as bench_model
from recipe.data import scenes


@pytest.fixture(scope='session')
def model() -> Any:
    return random_model(bench_model.DEMO, SMALL)


@pytest.fixture(scope='session')
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('trained') / 'iter_500.pth'
    return save(model, path, bench_model.DEMO, SMALL)


@pytest.fixture(scope='session')
def facebook(model, tmp_path_factory) -> Path:
    """The model as facebookresearch publishes theirs: a pickle of numpy arrays, with tensors that ours computes."""
    from recipe.export import names

    arrays = {name: value.numpy() for name, value in names.to_foreign(model.state_dict(), names.FACEBOOK).items()}
    arrays['backbone.layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(16, 16).numpy()
    arrays['criterion.empty_weight'] = torch.ones(20).numpy()
    path = tmp_path_factory.mktemp('zoo') / 'model_final.pkl'
    path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'somebody', 'matching_heuristics': True}))
    return path


@pytest.fixture(scope='session')
def picture() -> Any:
    """RGB, uint8, (109, 154, 3): a size that needs padding."""
    return scenes.render(0, 'val', 7, 154, 109).image

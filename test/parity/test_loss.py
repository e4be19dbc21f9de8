"""Loss, gradients and predictions of the Mask2Former head equal those of the unpatched upstream.

The head computes all decoder layers and images at once; upstream does one after the other.
"""

import contextlib
from unittest import mock

import pytest

from recipe.bench import sides_model

CLASSES = {
    'mixed counts': [[0, 3, 7, 11, 18], [2]],
    'an empty image': [[], [4, 5, 6]],
    'nothing but empty images': [[], []],
    'one class': [[7], [7]],
    'all classes': [list(range(19)), list(range(19))],
    'batch of one': [[0, 2, 3, 13]],
    'batch of three': [[1, 2], [4, 5, 6, 8], [18]],
}
HEIGHT, WIDTH = 64, 128
# A larger backbone and larger pictures would only take longer.
OVERRIDES = {
    'backbone.depths': [1, 1, 1, 1],
    'decode_head.pixel_decoder.encoder.num_layers': 1,
    'data_preprocessor.size': (HEIGHT, WIDTH),
}


def build_pair(sides, **overrides):
    """Build the demo's model on both sides, with upstream's weights."""
    models = sides.keep(sides_model.build, sides_model.DEMO, {**OVERRIDES, **overrides}, seed=0)
    sides_model.same_weights(sides, models)
    return models


def batch_of(classes, seed=1):
    return sides_model.random_batch(len(classes), HEIGHT, WIDTH, classes=classes, seed=seed)


@contextlib.contextmanager
def double_precision():
    """Have everything computed in float64, where rounding is too small to move a point or a match.

    In float32 it does so now and then, by the processor's instructions; test_sides.py compares a step in float32.
    """
    import torch

    torch.set_default_dtype(torch.float64)
    try:
        # by which masks and images are turned into floats
        with mock.patch.object(torch.Tensor, 'float', torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def step_in_double(model, batch, seed):
    with double_precision():
        return sides_model.step(model.double(), batch, seed)


def predict_in_double(model, batch):
    with double_precision():
        return sides_model.predict(model.double(), batch)


def state_of_the_generator(model, batch, seed):
    """Return a random number drawn after a loss: the next one, if the loss drew as many as upstream's."""
    import torch

    step_in_double(model, batch, seed)
    return torch.rand(1).item()


def assert_equal_steps(sides, models, batch, seed=2):
    theirs, ours = sides.call(step_in_double, models, batch, seed)
    assert {k: v.shape for k, v in theirs['losses'].items()} == {k: v.shape for k, v in ours['losses'].items()}
    assert list(theirs['losses']) == list(ours['losses'])
    assert sides_model.relative_difference(theirs, ours) < 1e-10


@pytest.fixture(scope='module')
def models(sides):
    return build_pair(sides)


@pytest.mark.parametrize('case', CLASSES)
def test_losses_and_gradients(sides, models, case):
    assert_equal_steps(sides, models, batch_of(CLASSES[case]))


def test_the_random_stream_goes_on_from_the_same_place(sides, models):
    theirs, ours = sides.call(state_of_the_generator, models, batch_of([[0, 1, 2], [3]]), 5)
    assert theirs == ours


def test_predictions(sides, models):
    for height, width in ((128, 256), (160, 96)):
        batch = sides_model.random_batch(images=2, height=height, width=width, seed=3)
        theirs, ours = sides.call(predict_in_double, models, batch)
        assert sides_model.relative_difference(theirs, ours) < 1e-10


@pytest.mark.parametrize(
    'overrides',
    [
        {'decode_head.num_queries': 6},  # fewer than classes, so that some masks have no query
        {'decode_head.loss_dice.naive_dice': False, 'decode_head.loss_dice.eps': 0.5},
        {'decode_head.train_cfg.oversample_ratio': 2.0, 'decode_head.train_cfg.importance_sample_ratio': 1.0},
        {'decode_head.transformer_decoder.num_layers': 2},  # fewer than levels
    ],
    ids=['few queries', 'other dice', 'uncertain points only', 'few layers'],
)
def test_other_options(sides, overrides):
    assert_equal_steps(sides, build_pair(sides, **overrides), batch_of([list(range(9)), [4, 5]]))


@pytest.mark.parametrize(
    'overrides',
    [
        {'decode_head.loss_mask.class_weight': [2.0]},
        {'decode_head.loss_cls.avg_non_ignore': True},
        {'decode_head.train_cfg.assigner.match_costs.2.naive_dice': False},
        {'decode_head.transformer_decoder.layer_cfg.ffn_cfg.ffn_drop': 0.1},
    ],
    ids=['mask weight', 'average without ignored', 'other dice cost', 'dropout'],
)
def test_options_that_keep_the_path_of_upstream(sides, overrides):
    assert_equal_steps(sides, build_pair(sides, **overrides), batch_of([[0, 1, 2], [4, 5]]))

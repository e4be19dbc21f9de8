"""Loss, gradients and predictions of an accelerated model equal those of upstream's modules.

In float64: in float32, rounding decides which of two points is the less certain one, and on which side of the kink of a
ReLU a hidden unit lies, and rounding is not the same on all processors.
"""

import copy

import pytest
import torch

from recipe.bench import model as bench_model
from recipe.models import accelerate

CLASSES = {
    'mixed counts': [[0, 3, 7, 11, 18], [2]],
    'an empty image': [[], [4, 5, 6]],
    'nothing but empty images': [[], []],
    'one class': [[7], [7]],
    'all classes': [list(range(19)), list(range(19))],
    'batch of one': [[0, 2, 3, 13]],
    'batch of three': [[1, 2], [4, 5, 6, 8], [18]],
}
# A larger backbone would only take longer.
OVERRIDES = {'backbone.depths': [1, 1, 1, 1], 'decode_head.pixel_decoder.encoder.num_layers': 1}
CONFIGS = 'mmsegmentation/configs/mask2former'
# Configs of the checkout as they are, with fewer layers and points.
OF_UPSTREAM = {
    'R-50': f'{CONFIGS}/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    'Swin-T': f'{CONFIGS}/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py',
}
SMALLER = {
    'decode_head.pixel_decoder.encoder.num_layers': 1,
    'decode_head.transformer_decoder.num_layers': 2,
    'decode_head.train_cfg.num_points': 256,
    'data_preprocessor.size': (64, 128),
}


def state_of_the_generator(model, batch, seed):
    """Return a random number drawn after a loss: the next one, if the loss drew as many as upstream's."""
    bench_model.losses(model, batch, seed)
    return torch.rand(1).item()


pytestmark = pytest.mark.usefixtures('double_precision')


def pair(**overrides):
    """Upstream's model and the accelerated one."""
    return [model.double() for model in bench_model.build_pair(overrides={**OVERRIDES, **overrides})]


def batch_of(classes, seed=1, height=64, width=128):
    return bench_model.random_batch(images=len(classes), height=height, width=width, classes=classes, seed=seed)


def assert_equal_steps(models, batch, seed=2, losses=1e-10, gradients=1e-8):
    theirs, ours = (bench_model.step(model, batch, seed=seed) for model in models)
    assert {k: v.shape for k, v in theirs['losses'].items()} == {k: v.shape for k, v in ours['losses'].items()}
    assert list(theirs['losses']) == list(ours['losses'])
    assert bench_model.relative_difference(theirs['losses'], ours['losses']) < losses
    assert bench_model.relative_difference(theirs['gradients'], ours['gradients']) < gradients


@pytest.fixture(scope='module')
def models():
    return pair()


@pytest.mark.parametrize('case', CLASSES)
def test_losses_and_gradients(models, case):
    assert_equal_steps(models, batch_of(CLASSES[case]))


def test_a_wrong_weight_is_noticed(models):
    fast = models[1]
    kept = fast.decode_head.query_embed.weight.detach().clone()
    with torch.no_grad():
        fast.decode_head.query_embed.weight.mul_(1.001)
    try:
        with pytest.raises(AssertionError):
            assert_equal_steps(models, batch_of(CLASSES['mixed counts']))
    finally:
        with torch.no_grad():
            fast.decode_head.query_embed.weight.copy_(kept)


def test_the_random_stream_goes_on_from_the_same_place(models):
    theirs, ours = (state_of_the_generator(model, batch_of([[0, 1, 2], [3]]), 5) for model in models)
    assert theirs == ours


@pytest.mark.parametrize(('height', 'width'), [(64, 128), (160, 96)])
def test_predictions(models, height, width):
    batch = bench_model.random_batch(images=2, height=height, width=width, seed=3)
    theirs, ours = (bench_model.predict(model, batch) for model in models)
    assert bench_model.relative_difference(theirs, ours) < 1e-10


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.release) if name == 'Swin-T' else name for name in OF_UPSTREAM]
)
def test_configs_of_the_checkout(name):
    plain = bench_model.build(OF_UPSTREAM[name], SMALLER).double()
    for key, parameter in plain.named_parameters():
        if 'sampling_offsets' in key:
            # They begin at whole pixels. There the slope differs on both sides, and rounding chooses the side.
            parameter.data.add_(torch.rand_like(parameter) * 0.01 + 0.1)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert accelerate(fast) == {}  # all that can be replaced was
    for case in ('an empty image', 'batch of three'):
        assert_equal_steps((plain, fast), batch_of(CLASSES[case]))
    batch = batch_of(CLASSES['mixed counts'])
    theirs, ours = (bench_model.predict(model, batch) for model in (plain, fast))
    assert bench_model.relative_difference(theirs, ours) < 1e-10


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
def test_other_options(overrides):
    models = pair(**overrides)
    assert models[1].decode_head.batches_loss
    assert_equal_steps(models, batch_of([list(range(9)), [4, 5]]))


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
def test_options_that_keep_the_path_of_upstream(overrides):
    models = pair(**overrides)
    assert_equal_steps(models, batch_of([[0, 1, 2], [4, 5]]))

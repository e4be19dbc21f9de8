"""Swin and the pixel decoder give upstream's outputs, gradients and random stream, on shapes that divide and do not."""

import copy

import pytest
import torch
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmengine import ConfigDict
from mmseg.models.backbones import SwinTransformer

from recipe.bench.model import relative_difference
from recipe.models import accelerate

SWIN = {'embed_dims': 32, 'depths': [2, 2, 4, 2], 'num_heads': [1, 2, 4, 8], 'window_size': 6}


def build_swin(seed, options):
    torch.manual_seed(seed)
    model = SwinTransformer(**{**SWIN, **options})
    for name, parameter in model.named_parameters():
        # Biases and tables that are not 0, so that padding and position show.
        if parameter.ndim == 1 or 'table' in name:
            torch.nn.init.normal_(parameter, float(name.startswith('norm')), 0.2)
    return model


def build_pixel_decoder(seed):
    torch.manual_seed(seed)
    attention = {'embed_dims': 32, 'num_heads': 4, 'num_levels': 3, 'num_points': 4, 'dropout': 0.0}
    layer = {'self_attn_cfg': attention, 'ffn_cfg': {'embed_dims': 32, 'feedforward_channels': 64}}
    model = MSDeformAttnPixelDecoder(
        in_channels=[8, 16, 24, 32],
        feat_channels=32,
        out_channels=32,
        norm_cfg={'type': 'GN', 'num_groups': 8},
        encoder=ConfigDict(num_layers=2, layer_cfg=layer),
        positional_encoding={'num_feats': 16, 'normalize': True},
    )
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def pair(model):
    """Return a module of upstream and an accelerated copy."""
    fast = copy.deepcopy(model)
    assert accelerate(fast)
    return model, fast


def results(model, inputs, seed, train=True):
    """Return outputs, gradients by name, input gradients, and the next random number."""
    model.train(train)
    model.zero_grad()
    inputs = [value.clone().requires_grad_() for value in inputs]
    torch.manual_seed(seed)
    outputs = model(inputs[0] if len(inputs) == 1 else inputs)
    drawn = torch.rand(1)
    outputs = [outputs[0], *outputs[1]] if isinstance(outputs[1], (list, tuple)) else list(outputs)
    torch.manual_seed(seed + 1)
    sum((output * torch.randn(output.shape)).sum() for output in outputs).backward()
    return {
        'outputs': [output.detach() for output in outputs],
        'grads': {name: p.grad for name, p in model.named_parameters()},
        'input_grads': [value.grad for value in inputs],
        'drawn': drawn,
    }


def images(batch, height, width):
    return [torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(4))]


def assert_same(theirs, ours):
    assert torch.equal(theirs['drawn'], ours['drawn'])
    for one, other in zip(theirs['outputs'], ours['outputs']):
        assert relative_difference(one, other) < 1e-5
    assert theirs['grads'].keys() == ours['grads'].keys()
    for name, grad in theirs['grads'].items():
        assert (grad is None) == (ours['grads'][name] is None), name
        assert grad is None or (grad - ours['grads'][name]).norm() <= 1e-4 * grad.norm() + 1e-6, name
    for one, other in zip(theirs['input_grads'], ours['input_grads']):
        assert (one - other).norm() <= 1e-4 * one.norm()


def assert_same_results(models, inputs, **options):
    assert_same(*(results(model, inputs, **options) for model in models))


@pytest.mark.parametrize(
    ('batch', 'size', 'options'),
    [
        (1, (192, 192), {'drop_path_rate': 0.0}),
        (2, (100, 132), {'drop_path_rate': 0.5}),
        (3, (64, 80), {'drop_path_rate': 0.9}),
        (2, (52, 68), {'drop_path_rate': 0.3, 'qkv_bias': False}),
        (2, (52, 68), {'drop_path_rate': 0.5, 'with_cp': True}),
        (2, (52, 68), {'drop_rate': 0.1, 'attn_drop_rate': 0.1, 'drop_path_rate': 0.3}),
        (1, (52, 68), {'patch_norm': False, 'use_abs_pos_embed': False, 'out_indices': (1, 3)}),
    ],
    ids=['whole windows', 'padding', 'almost all dropped', 'no qkv bias', 'checkpointed', 'dropout', 'no norm'],
)
def test_swin_equals_upstream(batch, size, options):
    models = pair(build_swin(1, options))
    inputs = images(batch, *size)
    assert_same_results(models, inputs, seed=3)
    assert_same_results(models, inputs, seed=8)
    assert_same_results(models, inputs, seed=3, train=False)


def test_a_wrong_gradient_is_noticed():
    models = pair(build_swin(1, {'drop_path_rate': 0.0}))
    theirs, ours = (results(model, images(1, 52, 68), seed=3) for model in models)
    name = 'stages.0.blocks.1.attn.w_msa.relative_position_bias_table'
    ours['grads'][name] = ours['grads'][name].roll(1, 0)
    with pytest.raises(AssertionError, match='relative_position_bias_table'):
        assert_same(theirs, ours)


@pytest.mark.parametrize(('batch', 'size'), [(1, (8, 8)), (2, (7, 11)), (3, (4, 6))])
def test_pixel_decoder_equals_upstream(batch, size):
    models = pair(build_pixel_decoder(1))
    generator = torch.Generator().manual_seed(4)
    height, width = size
    inputs = [
        torch.randn(batch, channels, height * scale, width * scale, generator=generator)
        for channels, scale in zip((8, 16, 24, 32), (8, 4, 2, 1))
    ]
    # Twice: the second time from the kept geometry.
    assert_same_results(models, inputs, seed=3)
    assert_same_results(models, inputs, seed=3)
    assert_same_results(models, inputs, seed=3, train=False)

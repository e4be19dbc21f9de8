"""What runs on a CPU in eval mode without gradients: the same as upstream's modules, and never in a training."""

import copy
from unittest import mock

import pytest
import torch
from mmseg.structures import SegDataSample
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.bench import model as bench_model
from recipe.models import accelerate
from recipe.models.onednn_linear import onednn_linear, run_linear, takes_onednn


class OneDNNCalls(TorchDispatchMode):
    """Counts the calls of oneDNN's linear layers."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += '_linear_pointwise' in str(function)
        return function(*args, **(kwargs or {}))


with torch.no_grad():
    needs_onednn = pytest.mark.skipif(not takes_onednn(torch.zeros(1), False), reason='no oneDNN here')


@pytest.fixture(scope='module')
def plain():
    """Upstream's model with random weights, which has blocks with and without a shift."""
    torch.manual_seed(0)
    overrides = {'backbone.depths': [2, 2, 1, 1], 'decode_head.pixel_decoder.encoder.num_layers': 2}
    model = bench_model.build(overrides=overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.fixture
def fast(plain):
    model = copy.deepcopy(plain)
    accelerate(model)
    return model


@pytest.mark.parametrize('images', [1, 2])
@pytest.mark.parametrize('size', [(64, 128), (72, 100), (32, 32)], ids=str)
def test_features_and_scores_are_upstreams(plain, fast, size, images):
    x = torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(1))
    metas = [{'img_shape': size, 'pad_shape': size}] * images
    with torch.no_grad():
        ours, theirs = fast.extract_feat(x), plain.extract_feat(x)
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        (mask, memories), (their_mask, their_memories) = (m.decode_head.pixel_decoder(theirs) for m in (fast, plain))
        for one, other in zip((mask, *memories), (their_mask, *their_memories)):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        scores, expected = (m.decode_head.predict(theirs, metas, None) for m in (fast, plain))
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


@needs_onednn
def test_a_prediction_takes_onednns_layers_and_a_training_does_not(fast):
    x = torch.randn(1, 3, 64, 64)

    def calls(training, gradients):
        fast.train(training)
        with OneDNNCalls() as found, torch.set_grad_enabled(gradients):
            fast.decode_head(fast.extract_feat(x), [SegDataSample()])
        return found.count

    assert calls(training=False, gradients=False)
    assert not calls(training=True, gradients=False)  # the first pass of those whose activations are computed twice
    assert not calls(training=False, gradients=True)
    assert not calls(training=True, gradients=True)
    with torch.autocast('cpu', torch.bfloat16):
        # Only those of the places of the samples, which stay in float32.
        assert calls(training=False, gradients=False) == len(fast.decode_head.pixel_decoder.encoder.layers)


@needs_onednn
@pytest.mark.parametrize('shape', [(5, 8), (2, 3, 8), (0, 8), (2, 0, 8)], ids=str)
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
def test_a_linear_layer(shape, bias):
    layer, x = nn.Linear(8, 6, bias=bias).eval(), torch.randn(shape)
    apart = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]  # not contiguous
    with torch.no_grad():
        for rows in (x, apart):
            torch.testing.assert_close(onednn_linear(rows, layer.weight, layer.bias), layer(rows))
            relu = onednn_linear(rows, layer.weight, layer.bias, 'relu')
            torch.testing.assert_close(relu, layer(rows).relu())
            torch.testing.assert_close(run_linear(layer, rows), layer(rows))


def test_other_tensors_and_layers_with_hooks_take_the_module():
    layer, x = nn.Linear(4, 4).eval(), torch.randn(3, 4)
    with torch.no_grad():
        assert not takes_onednn(x.double(), False)
        assert not takes_onednn(x.bfloat16(), False)
        assert not takes_onednn(x.to('meta'), False)
        with mock.patch('platform.machine', return_value='aarch64'):
            assert not takes_onednn(x, False)
        with OneDNNCalls() as found:
            assert torch.equal(run_linear(layer.double(), x.double()), layer(x.double()))
            layer.float().register_forward_hook(lambda module, args, output: output + 1)
            assert torch.equal(run_linear(layer, x), layer(x))
    assert not found.count

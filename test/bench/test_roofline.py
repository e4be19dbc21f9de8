"""A training iteration on ``meta``: what it counts, what it refuses, and the kernels of the recipe's step.

Golden files written anew by: ROOFLINE_UPDATE=1 python -m pytest test/bench/test_roofline.py
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recipe.bench import cli, kernels, meta_step, roofline

pytestmark = pytest.mark.trains

GOLDEN = Path(__file__).resolve().parent / 'golden'
RELEASE = pytest.mark.release
STEPS = [
    ('cuda', 'bf16'),
    pytest.param('cuda', 'off', marks=RELEASE),
    ('npu', 'off'),
]


def trace(kind, amp='off', **options):
    args = cli.parse(['step'])
    return meta_step.trace(kind, *cli.model_options(args), cli.make_batch(args), amp, **options)


@pytest.mark.parametrize(('kind', 'amp'), STEPS)
def test_a_step_moves_the_bytes_of_the_golden_file(kind, amp, monkeypatch):
    """Fails if a part of the step moves more or fewer bytes: a review then sees where. No Triton is needed."""
    monkeypatch.setitem(sys.modules, 'triton', None)
    for name in [name for name in sys.modules if name.startswith('recipe.models.') and name.endswith('_triton')]:
        monkeypatch.delitem(sys.modules, name)
    found = roofline.text(trace(kind, amp))
    file = GOLDEN / f'roofline_{kind}_{amp}.txt'
    if 'ROOFLINE_UPDATE' in os.environ:
        file.write_text(found)
    lines = difflib.unified_diff(file.read_text().splitlines(), found.splitlines(), 'golden', 'now', lineterm='', n=0)
    assert not list(lines), '\n'.join(lines)


def test_a_step_of_graphs_has_no_operator_on_two_devices():
    assert trace('cuda', 'bf16', static=True).copies['to host'] <= 1


def test_operators_on_two_devices_are_refused_as_on_an_accelerator():
    x = torch.empty(2, device='meta')
    with meta_step.Answers({}):
        with pytest.raises(meta_step.TwoDevicesError, match=r'aten.cat.default got tensors on cpu and meta'):
            torch.cat([x, torch.ones(2)])
        assert (x + torch.tensor(1.0)).is_meta  # one number may come from the host
        assert x.cpu().device.type == 'cpu'
        x.copy_(torch.ones(2))


def test_a_value_from_the_host_in_the_loss_is_found(monkeypatch):
    from recipe.models import loss

    original = loss._class_loss
    monkeypatch.setattr(loss, '_class_loss', lambda *args: original(*args) + torch.zeros(1))
    with pytest.raises(meta_step.TwoDevicesError, match=r'aten.add.Tensor got tensors on cpu and meta'):
        trace('cuda')


@pytest.mark.release
def test_upstream_s_questions_are_answered():
    """Upstream reads values, and gets the shapes that an iteration on the CPU had."""
    found = trace('cuda', upstream=True)
    ours = trace('cuda')
    assert found.copies['read'] > 20 > ours.copies['read'] + ours.copies['to host']
    assert len(found.found) > 1.5 * len(ours.found)
    assert {one.phase for one in found.found} == set(roofline.PHASES)


def test_a_product_with_an_activation_has_the_flops_of_the_product():
    bias, left, right = (torch.empty(shape, device='meta') for shape in ((5,), (3, 4), (4, 5)))
    with kernels.Kernels({}) as record:
        torch.addmm(bias, left, right).relu_()
        torch.ops.aten._addmm_activation(bias, left, right)
    plain, _, both = record.found
    assert plain.flops == both.flops == 2 * 3 * 4 * 5 and plain.bytes == both.bytes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.decode_head = nn.Linear(8, 2)

    def forward(self, x):
        return self.decode_head(torch.relu(self.backbone(x)) * x.new_ones(1).expand(8))


def test_bytes_and_flops_of_a_small_net():
    net = Net().to('meta')
    names = {id(module): name for name, module in net.named_modules()}
    with kernels.Kernels(names) as record:
        out = net(torch.empty(16, 4, device='meta')).sum()
        record.phase = kernels.BACKWARD
        out.backward()
    forward = [one for one in record.found if one.phase == kernels.FORWARD]
    assert [one.name for one in forward] == ['addmm', 'relu', 'new_ones', 'mul', 'addmm', 'sum']
    first, relu, _, mul, *_ = forward
    assert (first.read, first.written, first.flops) == (4 * (8 + 16 * 4 + 4 * 8), 4 * 16 * 8, 2 * 16 * 4 * 8)
    assert (relu.read, relu.written, relu.flops) == (4 * 128, 4 * 128, 0)
    assert mul.read == 4 * (128 + 1)  # an expanded axis is read once
    products = [one for one in record.found if one.phase == kernels.BACKWARD and one.name == 'mm']
    assert sum(one.flops for one in products) == 2 * (2 * 16 * 8 * 2) + 2 * 16 * 4 * 8
    least = kernels.fused(record.found)
    assert len(least) < len(record.found)
    assert sum(one.bytes for one in least) < sum(one.bytes for one in record.found)
    assert sum(one.flops for one in least) == sum(one.flops for one in record.found)


def test_parts_of_the_model():
    assert kernels.part_of('backbone.stages.2.blocks.17.attn.w_msa.qkv') == 'Swin stage 3'
    assert kernels.part_of('decode_head.pixel_decoder.encoder.layers.0') == 'pixel encoder'
    assert kernels.part_of('decode_head.transformer_decoder') == 'transformer decoder'


def test_a_kernel_takes_the_longest_of_bytes_flops_and_launch():
    machine = roofline.Machine(bandwidth=100.0, half=20.0, single=10.0, launch=3.0, graph_launch=1.0, text='')
    one = kernels.Kernel('forward', '', '', 'mm', 100, 100, 0, torch.float32, 1)
    assert machine.seconds(one) == 3.0 and machine.seconds(one, graph=True) == 2.0
    one.flops = 100
    assert machine.seconds(one) == 10.0
    one.dtype = torch.bfloat16
    assert machine.seconds(one) == 5.0

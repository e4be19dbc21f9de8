"""NpuFusedAdamW, as the recipe builds it, against torch's AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from recipe.engine.optimizers.merged_adamw import MergedAdamW

HYPER = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def groups(net):
    return [dict(params=list(net[0].parameters())), dict(params=list(net[2].parameters()), lr=1e-3, weight_decay=0.0)]


def train(net, optimizer, device, steps, first=0):
    for number in range(first, first + steps):
        torch.manual_seed(number)
        x = torch.randn(4, 5)
        optimizer.zero_grad()
        net(x.to(device)).square().sum().backward()
        optimizer.step()
    return {name: value.detach().cpu() for name, value in net.state_dict().items()}


def assert_close(a, b):
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6), name


def test_steps_are_those_of_adamw():
    on_cpu, on_npu = network(), network().npu()
    fused = MergedAdamW(groups(on_npu), **HYPER)
    assert 'NpuFusedAdamW' in [one.__name__ for one in type(fused).__mro__]
    plain = torch.optim.AdamW(groups(on_cpu), **HYPER)
    assert_close(train(on_npu, fused, 'npu', 5), train(on_cpu, plain, 'cpu', 5))


def test_gradients_are_gathered_wherever_the_backward_pass_left_them():
    """Views of one buffer, as an average over ranks leaves them; added over two passes; and none at all."""
    on_cpu, on_npu = network(), network().npu()
    fused = MergedAdamW(groups(on_npu), **HYPER)
    plain = torch.optim.AdamW(groups(on_cpu), **HYPER)
    pairs = list(zip(on_npu.parameters(), on_cpu.parameters()))
    for step in range(4):
        fused.zero_grad()
        assert all(parameter.grad is None for parameter in on_npu.parameters())
        buffer = torch.empty(sum(parameter.numel() for parameter in on_npu.parameters()), device='npu')
        for (ours, theirs), place in zip(pairs, buffer.split([ours.numel() for ours, _ in pairs])):
            gradient = torch.randn(theirs.shape)
            ours.grad, theirs.grad = place.view_as(ours).copy_(gradient), gradient.clone()
            if step == 2:
                ours.grad.add_(gradient.npu())
                theirs.grad.add_(gradient)
        if step == 3:
            pairs[1][0].grad = None
            pairs[1][1].grad.zero_()
        expected = torch.cat([theirs.grad.flatten() for _, theirs in pairs])
        if step:  # a gradient scaler reads them here
            assert torch.equal(fused.grads_all_group_combined[0].cpu()[: len(expected)], expected)
        fused.step()
        plain.step()
        assert_close(*({name: x.detach().cpu() for name, x in net.state_dict().items()} for net in (on_npu, on_cpu)))


def test_a_saved_state_goes_on_in_the_same_way():
    net = network().npu()
    fused = MergedAdamW(groups(net), **HYPER)
    train(net, fused, 'npu', 3)
    saved = copy.deepcopy((net.state_dict(), fused.state_dict()))
    through = train(net, fused, 'npu', 3, first=3)
    other = network().npu()
    resumed = MergedAdamW(groups(other), **HYPER)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert_close(train(other, resumed, 'npu', 3, first=3), through)


def test_the_flag_leaves_out_a_step_and_changes_no_other():
    """Bit by bit; the flag is on the device, and the host has counted the step when it learns of it."""
    plain, flagged = network().npu(), network().npu()
    optimizers = [MergedAdamW(groups(net), **HYPER) for net in (plain, flagged)]
    optimizers[1].found_inf = torch.zeros((), device='npu')
    for first in (0, 3):
        for net, optimizer in zip((plain, flagged), optimizers):
            train(net, optimizer, 'npu', 3, first)
        if first:
            break
        before = copy.deepcopy((flagged.state_dict(), optimizers[1].state_dict()['state']))
        for parameter in flagged.parameters():
            parameter.grad.fill_(float('inf'))
        optimizers[1].found_inf.fill_(1)
        optimizers[1].step()
        optimizers[1].retract_step_count()
        optimizers[1].found_inf.fill_(0)
        after = (flagged.state_dict(), optimizers[1].state_dict()['state'])
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close(flagged.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(('first', 'then'), [('cpu', 'npu'), ('npu', 'cpu')])
def test_a_state_from_one_kind_of_device_goes_on_on_another(first, then):
    """torch's AdamW counts its steps in tensors, NpuFusedAdamW in numbers."""
    net = network().to(first)
    optimizer = MergedAdamW(groups(net), **HYPER)
    train(net, optimizer, first, 3)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    through = train(net, optimizer, first, 3, first=3)
    other = network().to(then)
    resumed = MergedAdamW(groups(other), **HYPER)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert_close(train(other, resumed, then, 3, first=3), through)
    assert {int(state['step']) for state in resumed.state.values()} == {6}


@pytest.mark.parametrize('bad', [dict(lr=-1.0), dict(eps=-1.0), dict(betas=(1.0, 0.9)), dict(weight_decay=-0.1)])
def test_what_the_real_optimizer_refuses_is_refused(bad):
    with pytest.raises(ValueError, match='Invalid'):
        MergedAdamW(groups(network().npu()), **{**HYPER, **bad})

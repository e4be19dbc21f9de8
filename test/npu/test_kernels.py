"""The kernels that stand for torch_npu's own, where torch's CPU has none of that name, and how arguments travel."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def both(function, *inputs):
    """Result and gradients on the NPU and on the CPU, as two lists of CPU tensors."""
    found = []
    for device in ('npu', 'cpu'):
        leaves = [x.detach().to(device).requires_grad_(x.is_floating_point()) for x in inputs]
        out = function(*leaves)
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(device))
        found.append([out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    return found


def assert_same(found):
    npu, cpu = found
    assert len(npu) == len(cpu)
    for a, b in zip(npu, cpu):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'left, right',
    [
        ((4,), (4,)),
        ((4,), (4, 3)),
        ((2, 4), (4,)),
        ((5, 2, 4), (4,)),
        ((4,), (5, 4, 3)),
        ((2, 4), (4, 3)),
        ((5, 2, 4), (5, 4, 3)),
        ((5, 2, 4), (4, 3)),
        ((6, 1, 2, 4), (5, 4, 3)),
    ],
)
def test_gradients_of_matmul(left, right):
    torch.manual_seed(0)
    assert_same(both(torch.matmul, torch.randn(left), torch.randn(right)))


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize('weight', [None, 'weight', 'pos_weight'])
def test_gradient_of_binary_cross_entropy(reduction, weight):
    torch.manual_seed(0)
    logits, targets, factors = torch.randn(3, 4), torch.rand(3, 4), torch.rand(4) + 0.5

    def loss(x):
        more = {weight: factors.to(x.device)} if weight else {}
        return binary_cross_entropy_with_logits(x, targets.to(x.device), reduction=reduction, **more)

    assert_same(both(loss, logits))


def test_broadcast_is_a_copy():
    import torch_npu

    x = torch.arange(3.0).npu()
    y = torch_npu.npu_broadcast(x, (2, 3))
    x.zero_()
    assert y.cpu().tolist() == [[0, 1, 2], [0, 1, 2]] and y.is_contiguous()


def test_loss_scaling():
    scale, steps, good, bad = (torch.tensor([v]).npu() for v in (8.0, 0, 0.0, 1.0))
    steps = steps.int()
    for found, expected in ((good, 8.0), (good, 16.0), (bad, 8.0)):
        torch._amp_update_scale_(scale, steps, found, 2.0, 0.5, 2)
        assert scale.item() == expected
    grads = [torch.tensor([4.0, 8.0]).npu(), torch.tensor([float('inf')]).npu()]
    found = torch.zeros(1).npu()
    torch._amp_foreach_non_finite_check_and_unscale_(grads, found, torch.tensor([0.5]).npu())
    assert grads[0].tolist() == [2.0, 4.0] and found.item() == 1


def test_half_precision_that_the_cpu_lacks():
    x = torch.randn(4, 5)
    half = x.half().npu()
    assert half.softmax(-1).dtype == torch.float16
    assert torch.allclose(half.softmax(-1).float().cpu(), x.half().float().softmax(-1), atol=1e-3)
    assert torch.allclose((half @ half.t()).float().cpu(), x.half().float() @ x.half().float().t(), atol=2e-2)


def test_gradient_of_a_softmax_in_half_precision():
    """The CPU of torch 2.1 has none, so the reference is its float32."""
    x = torch.randn(4, 5)
    weights = torch.linspace(-1, 1, 20).view(4, 5)
    found = []
    for leaf in (x.half().npu().requires_grad_(), x.half().float().requires_grad_()):
        out = leaf.softmax(-1)
        out.backward(weights.to(leaf.device, leaf.dtype))
        assert out.dtype == leaf.grad.dtype == leaf.dtype
        found.append([out.detach().float().cpu(), leaf.grad.float().cpu()])
    for npu, cpu in zip(*found):
        assert torch.allclose(npu, cpu, atol=2e-3)
    assert x.half().npu().sum(-1, dtype=torch.float32).dtype == torch.float32


def test_arguments_that_are_written_to():
    x = torch.arange(6.0).view(2, 3).npu()
    view = x[:, 1:]
    assert view.mul_(2) is view
    assert x.cpu().tolist() == [[0, 2, 4], [3, 8, 10]]
    out = torch.empty(0).npu()
    assert torch.add(x, 1, out=out) is out and out.cpu().tolist() == [[1, 3, 5], [4, 9, 11]]
    values, indices = torch.empty(2).npu(), torch.empty(2, dtype=torch.long).npu()
    torch.max(x, 1, out=(values, indices))
    assert values.tolist() == [4, 10] and indices.tolist() == [2, 2]
    x.index_put_((torch.tensor([0]).npu(), torch.tensor([0]).npu()), torch.tensor(-1.0).npu())
    assert x[0, 0].item() == -1


def test_shapes_that_change_in_place():
    x = torch.arange(6.0).view(1, 2, 3).npu()
    x.squeeze_(0).t_().unsqueeze_(1)
    assert x.shape == (3, 1, 2) and x[2, 0].tolist() == [2, 5]


def test_draws_are_those_of_the_cpu():
    torch.manual_seed(5)
    expected = torch.rand(3), torch.randperm(5)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3, device='npu').cpu(), expected[0])
    assert torch.equal(torch.randperm(5, device='npu').cpu(), expected[1])


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'whole'])
def test_attention_and_its_gradients(masked):
    """torch 2.7 takes torch_npu's fused operator for it, torch 2.1 composes it."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8) for length in (5, 7, 7))
    mask = (torch.rand(2, 1, 5, 7) > 0.4) if masked else None
    if masked:
        mask[..., 0] = True  # a query that sees nothing is outside of the operator's definition
    results = []
    for device in ('cpu', 'npu'):
        inputs = [tensor.to(device).requires_grad_() for tensor in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(
            *inputs, attn_mask=None if mask is None else mask.to(device)
        )
        grads = torch.autograd.grad(out, inputs, torch.ones_like(out) * torch.arange(8.0).to(device))
        results.append([tensor.detach().cpu() for tensor in (out, *grads)])
    torch.testing.assert_close(results[1], results[0])

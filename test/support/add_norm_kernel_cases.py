"""The Triton kernels of sum and norm; test_triton_kernels.py runs this with TRITON_INTERPRET=1."""

import copy

import pytest
import torch
from mmseg.models.backbones.swin import SwinTransformer
from torch import nn

import accelerator_path
from recipe.models import accelerate, add_norm, add_norm_triton

CPU = torch.device('cpu')
# Images, rows of each and channels: one row; less and more than a program holds; the most channels of a Swin.
SIZES = [(1, 1, 5), (2, 7, 48), (3, 43, 130), (2, 300, 8), (1, 3, 2048)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-5


def case(size, dtype, seed=0):
    """Tokens, branch, factors, weight, bias and both gradients; the second image drops its branch."""
    images, length, channels = size
    draw = torch.Generator().manual_seed(seed)
    x, grad_total = torch.randn(2, *size, generator=draw)
    branch, grad = torch.randn(2, images * length, channels, generator=draw).to(dtype)
    weight, bias = torch.randn(2, channels, generator=draw)
    drawn = torch.tensor([1.25, 0.0, 2.0])[:images].view(-1, 1, 1)
    return x, branch, drawn, weight, bias, grad, grad_total


def formula(x, branch, drawn, weight, bias, grad, grad_total):
    """Sum, norm and the gradients of x, branch, weight and bias, by autograd in float64."""
    inputs = [None if one is None else one.double().requires_grad_() for one in (x, branch, weight, bias)]
    x, branch, weight, bias = inputs
    total = x
    if branch is not None:
        total = x + branch.view_as(x) * (1 if drawn is None else drawn.double())
    rows = total.view(-1, x.shape[-1])
    normed = nn.functional.layer_norm(rows, rows.shape[1:], weight, bias, EPS)
    known = [one for one in inputs if one is not None]
    grads = torch.autograd.grad((normed, total), known, (grad.double(), grad_total.double()))
    return [total, normed, *grads]


def kernels(x, branch, drawn, weight, bias, grad, grad_total):
    """The same from the kernels."""
    norm = add_norm.Norm(weight, bias, EPS)
    added = add_norm._triton(x, branch, drawn, norm, grad.dtype)
    dtype = None if branch is None else branch.dtype
    grads = add_norm._triton_backward(grad, grad_total, added, norm, drawn, dtype)
    return [added.total, added.normed, *(one for one in grads if one is not None)]


@pytest.mark.parametrize(
    'size, dtype, has_branch, has_drawn',
    [
        *((SIZES[1], dtype, *given) for dtype in DTYPES for given in ((True, True), (True, False), (False, False))),
        *((size, torch.bfloat16, True, True) for size in SIZES),
    ],
    ids=str,
)
def test_results_and_gradients_are_those_of_the_formula(size, dtype, has_branch, has_drawn):
    x, branch, drawn, *rest = case(size, dtype)
    given = x, branch if has_branch else None, drawn if has_drawn else None, *rest
    found, wanted = kernels(*given), formula(*given)
    assert [one.dtype for one in found[:2]] == [torch.float32, dtype]
    assert len(found) == len(wanted) == (6 if has_branch else 5) and (not has_branch or found[3].dtype == dtype)
    for result, expected in zip(found, wanted):
        rounding = 1e-5 if result.dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), expected, rtol=rounding, atol=2e-5)


def test_a_row_far_from_zero_keeps_its_variance():
    """The variance is that of differences from the mean: squares of the numbers themselves would round it away."""
    x, *rest = case((1, 4, 100), torch.float32)
    x = (1000 + x).round(decimals=2)
    for result, expected in zip(kernels(x, None, None, *rest[2:]), formula(x, None, None, *rest[2:])):
        torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


def test_gradients_of_weights_are_the_same_each_time():
    first, second = (kernels(*case((2, 300, 8), torch.bfloat16)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_swin_with_the_kernels_has_the_values_and_gradients_of_upstream(monkeypatch):
    torch.manual_seed(0)
    plain = SwinTransformer(
        embed_dims=8,
        depths=(2, 2),
        num_heads=(1, 2),
        strides=(4, 2),
        out_indices=(0, 1),
        window_size=3,
        drop_path_rate=0.5,
    )
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    accelerator_path.take(monkeypatch, 'cuda')
    monkeypatch.setattr(add_norm, '_triton_works', lambda device: True)
    calls = []
    for name in ('run_forward', 'run_backward'):
        run = getattr(add_norm_triton, name)
        monkeypatch.setattr(add_norm_triton, name, lambda *args, run=run, name=name: calls.append(name) or run(*args))
    x = torch.randn(2, 3, 32, 40)
    results = []
    for model in (plain, fast):
        torch.manual_seed(5)  # drops some samples of some branches
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(parameter.grad for parameter in model.parameters())])
    assert calls == ['run_forward'] * 8 + ['run_backward'] * 8
    for expected, found in zip(*results):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_the_check_before_first_use_passes_and_catches_wrong_kernels(monkeypatch):
    assert add_norm._triton_works.__wrapped__(CPU)
    right = add_norm_triton.run_backward

    def wrong(inputs, outputs, *rest):
        right(inputs, outputs, *rest)
        outputs[1].mul_(1.2)

    monkeypatch.setattr(add_norm_triton, 'run_backward', wrong)
    with pytest.raises(AssertionError, match='the gradient of the branch is wrong'):
        add_norm.check(CPU)
    with pytest.warns(UserWarning, match='Swin does without its Triton kernels on cpu'):
        assert not add_norm._triton_works.__wrapped__(CPU)
    monkeypatch.setattr(add_norm_triton, 'run_forward', lambda inputs, outputs, *rest: outputs[1].fill_(float('nan')))
    with pytest.raises(AssertionError, match='is wrong'):
        add_norm.check(CPU)

"""Swin's window attention on CPU: one function equals the composition of operators, however it is cut into chunks."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from mmseg.models.backbones.swin import WindowMSA
from torch import nn

from recipe.models import adopt, window_attention_cpu, window_attention_eval
from recipe.models.swin import FastWindowMSA
from recipe.models.window_attention import window_attention

SIZE, WIDTH, HEADS = 3, 8, 2


def attention(qkv_bias=True):
    torch.manual_seed(0)
    attn = WindowMSA(WIDTH, HEADS, (SIZE, SIZE), qkv_bias=qkv_bias).double()
    for parameter in attn.parameters():
        nn.init.normal_(parameter)
    adopt(attn, FastWindowMSA)
    return attn


def composed(attn, norm, x, hw_shape, shift):
    """Upstream's order of operators, with ``window_attention`` as on other devices."""
    index = attn.relative_position_index.view(-1)
    bias = attn.relative_position_bias_table[index].view(SIZE**2, SIZE**2, HEADS).permute(2, 0, 1)
    out = window_attention(attn.qkv(norm(x)), attn.qkv.bias, bias, hw_shape, SIZE, shift, attn.scale)
    return attn.proj(out)


def gradients(output, tensors):
    torch.manual_seed(1)
    return torch.autograd.grad(output, tensors, torch.randn_like(output))


# In windows: of 3 x 4 padded ones an image, all of two images; one image; 5 and 7; 12 times one.
@pytest.mark.parametrize('room', [24, 12, 5, 1], ids=lambda room: f'{room} windows a chunk')
@pytest.mark.parametrize('shift', [0, 1])
@pytest.mark.parametrize('qkv_bias', [True, False], ids=['bias', 'no bias'])
def test_equals_the_composition_of_operators(room, shift, qkv_bias, monkeypatch):
    monkeypatch.setattr(window_attention_cpu, '_BUFFER_NUMEL', room * HEADS * SIZE**4)
    window_attention_cpu._chunks.cache_clear()
    attn, norm = attention(qkv_bias), nn.LayerNorm(WIDTH).double()
    x = torch.randn(2, 8 * 10, WIDTH, dtype=torch.double, requires_grad=True)
    ours = attn.attend(x, (8, 10), SIZE, shift, norm)
    assert 'CPUWindowMSA' in type(ours.grad_fn).__name__
    theirs = composed(attn, norm, x, (8, 10), shift)
    torch.testing.assert_close(ours, theirs)
    tensors = [x, *attn.parameters(), *norm.parameters()]
    torch.testing.assert_close(gradients(ours, tensors), gradients(theirs, tensors))
    window_attention_cpu._chunks.cache_clear()


@pytest.mark.parametrize('windows', [24, 5, 1], ids=lambda windows: f'{windows} windows at a time')
@pytest.mark.parametrize('shift', [0, 1])
@pytest.mark.parametrize('hw_shape', [(8, 10), (9, 9), (2, 4)], ids=str)
@pytest.mark.parametrize('qkv_bias', [True, False], ids=['bias', 'no bias'])
def test_without_gradients_it_is_the_same(windows, shift, hw_shape, qkv_bias, monkeypatch):
    monkeypatch.setattr(window_attention_eval, '_PAIRS', windows * HEADS)
    attn, norm = attention(qkv_bias).float(), nn.LayerNorm(WIDTH)
    x = torch.randn(2, hw_shape[0] * hw_shape[1], WIDTH)
    arguments = (x, hw_shape, SIZE, shift, norm)
    with_gradients = attn.eval().attend(*arguments)
    with torch.no_grad():
        tested, trained = attn.attend(*arguments), attn.train().attend(*arguments)
        bias = attn.position_bias(SIZE)
        parts = (attn.qkv, attn.proj, bias, (hw_shape, SIZE, shift), attn.scale, norm)
        with mock.patch.object(window_attention_eval, 'onednn_linear', nn.functional.linear):
            found = window_attention_eval.window_msa_without_gradients(x, *parts)
    assert torch.equal(trained, with_gradients)
    torch.testing.assert_close(tested, with_gradients, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, with_gradients, rtol=1e-4, atol=1e-4)


def test_chunks_are_whole_images_or_windows_of_one_image(monkeypatch):
    windows = window_attention_cpu.Windows((8, 10), SIZE, 1)
    for room in range(1, 40):
        monkeypatch.setattr(window_attention_cpu, '_BUFFER_NUMEL', room * HEADS * SIZE**4)
        window_attention_cpu._chunks.cache_clear()
        sizes, parts = window_attention_cpu._chunks(windows, 3 * 12 * HEADS, HEADS, SIZE**2)
        assert sum(sizes) == 3 * 12 * HEADS and max(sizes) <= room * HEADS
        for size, (first, last) in zip(sizes, parts):
            assert size // HEADS == last - first or ((first, last) == (0, 12) and size // HEADS % 12 == 0)
    window_attention_cpu._chunks.cache_clear()


def test_no_kept_sample_gives_zero_gradients():
    attn, norm = attention(), nn.LayerNorm(WIDTH).double()
    x = torch.randn(0, 81, WIDTH, dtype=torch.double, requires_grad=True)
    out = attn.attend(x, (9, 9), SIZE, 1, norm)
    grads = torch.autograd.grad(out.sum(), [*attn.parameters(), *norm.parameters()])
    assert all(not grad.any() for grad in grads)


def test_hooks_and_autocast_take_the_composition():
    attn = attention().float()
    x = torch.randn(1, 81, WIDTH, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        assert attn.attend(x, (9, 9), SIZE, 1).dtype == torch.bfloat16
    attn.proj.register_forward_hook(lambda module, args, output: output + 1)
    out = attn.attend(x, (9, 9), SIZE, 1)
    assert 'CPUWindowMSA' not in type(out.grad_fn).__name__

"""Stochastic depth on the emulated NPU: paths drawn before, scaled and added in one operator; the CPU's result."""

from __future__ import annotations

import torch
from mmseg.models.backbones.swin import SwinTransformer

import device_counts
from recipe.models import accelerate


def run(device, images, grad):
    """Features and gradients of a small Swin with the same weights on each device."""
    torch.manual_seed(0)
    swin = SwinTransformer(
        embed_dims=16, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), drop_path_rate=0.5
    )
    accelerate(swin)
    swin.to(device)
    torch.manual_seed(1)
    features = swin(images.to(device))
    loss = sum((feature * grad.to(device)[..., : feature.shape[-1]].mean()).sum() for feature in features)
    loss.backward()
    tensors = [*features, *(parameter.grad for parameter in swin.parameters())]
    return [tensor.detach().cpu() for tensor in tensors]


def test_dropped_paths_are_those_of_the_cpu(monkeypatch):
    def from_the_host(tensor, low=0.0, high=1.0, generator=None):  # torch 2.7 and later name the generator
        return tensor.copy_(low + (high - low) * torch.rand(tensor.shape, dtype=tensor.dtype))

    monkeypatch.setattr(torch.Tensor, 'uniform_', from_the_host)  # else each device has a random stream of its own
    torch.manual_seed(2)
    images, grad = torch.randn(3, 3, 64, 64), torch.randn(3, 1, 1, 64)
    theirs = run('cpu', images, grad)
    device_counts.reset()
    ours = run('npu', images, grad)
    counts = device_counts.read()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    # two branches of each block but the first, which drops nothing
    assert counts['aten::addcmul'] == 6

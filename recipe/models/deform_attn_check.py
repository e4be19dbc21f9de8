"""Compares the Triton kernel of deformable attention with the PyTorch implementation."""

from typing import Sequence, Tuple

import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from torch import Tensor

# (h, w) of the levels; odd sizes.
SHAPES = ((5, 3), (1, 7))


def small_case(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    shapes: Sequence[Tuple[int, int]] = SHAPES,
    heads: int = 2,
    dim: int = 32,
    queries: int = 37,
    points: int = 2,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Draw values, locations and weights for two images. Some samples lie outside of the maps.

    Args:
        device: Device of the tensors.
        dtype: Dtype of the values. The others are float64 if it is float64, else float32. Defaults to torch.float32.
        shapes: (h, w) of each level.
        heads: Number of heads. Defaults to 2.
        dim: Channels per head. Defaults to 32.
        queries: Number of queries. Defaults to 37.
        points: Samples per level. Defaults to 2.

    Returns:
        The arguments ``value``, ``sampling_locations`` and ``attention_weights`` of
        :func:`~recipe.models.deform_attn.multi_scale_deformable_attn`. They are the same at each call. torch's random
        state does not change.
    """
    draw = torch.Generator().manual_seed(0)
    other = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(2, sum(h * w for h, w in shapes), heads, dim, generator=draw)
    size = (2, queries, heads, len(shapes), points)
    locations = torch.rand(*size, 2, generator=draw) * 1.5 - 0.25
    weights = torch.rand(size, generator=draw)
    return (value.to(device, dtype), locations.to(device, other), weights.to(device, other))


def compare(device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Run the kernel forward and backward, and compare with the PyTorch implementation in float64.

    Args:
        device: A GPU, or a CPU with ``TRITON_INTERPRET=1``.
        dtype: Dtype of the values. Defaults to torch.float32.

    Raises:
        AssertionError: A result or gradient differs from that of ``multi_scale_deformable_attn_pytorch``.
        Exception: Triton cannot run; the error may be of any kind.
    """
    from recipe.models.deform_attn_triton import TritonDeformableAttention

    with torch.enable_grad():
        ours = [t.requires_grad_() for t in small_case(device, dtype)]
        exact = [t.double().requires_grad_() for t in small_case(device, dtype)]
        shapes = torch.tensor(SHAPES, device=device)
        sizes = shapes.prod(1)
        out = TritonDeformableAttention.apply(ours[0], shapes, sizes.cumsum(0) - sizes, *ours[1:])
        expected = multi_scale_deformable_attn_pytorch(exact[0], SHAPES, *exact[1:])
        direction = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape).to(dtype)
        results = (out, *torch.autograd.grad(out, ours, direction))
        wanted = (expected, *torch.autograd.grad(expected, exact, direction.double()))
    rounding = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
    names = ('result', 'gradient of value', 'gradient of locations', 'gradient of weights')
    for name, result, want in zip(names, results, wanted):
        error = (result.double() - want).norm() / want.norm()
        # Written with "not" so that NaN fails too.
        if not error <= rounding:
            raise AssertionError(f'{name} is off by {error:.1e}, relatively')

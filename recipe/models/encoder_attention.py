"""A layer's deformable attention with its projections as one function, for accelerators.

Its backward pass adds up gradients inside of products, and writes fewer intermediate tensors than autograd.
"""

from typing import Any, Callable, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable


class Sampling(NamedTuple):
    """What the attention needs besides its tensors.

    Attributes:
        attend: (value (B, keys, heads, D), locations (B, queries, heads, levels, points, 2), weights without the last
            axis) -> (B, queries, C), with gradient.
        sizes: Numbers of heads, levels and points.
        inverse: 1 / (w, h) of each level, shape (levels, 1, 2).
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    sizes: Tuple[int, int, int]
    inverse: Tensor


class EncoderAttention(Function):
    """x + output_proj(deformable attention of x + positions in x), (B, keys, C) -> (B, keys, C); no second derivative.

    Deformable DETR (arXiv:2010.04159), equation 3. The places of the samples are in the dtype of x; the other products
    are in that of the weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        positions: Tensor,
        reference_points: Tensor,
        value_weight: Tensor,
        value_bias: Tensor,
        offset_weight: Tensor,
        offset_bias: Tensor,
        weight_weight: Tensor,
        weight_bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        sampling: Sampling,
    ) -> Tensor:
        """``reference_points`` are (x, y) in [0, 1], shape (B, keys, levels, 2)."""
        heads, levels, points = sampling.sizes
        B, keys, C = x.shape
        dtype = value_weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            query = (x + positions).reshape(-1, C)
            rows, half_query = x.reshape(-1, C).to(dtype), query.to(dtype)
            value = torch.addmm(value_bias, rows, value_weight.t()).view(B, keys, heads, -1)
            offsets = torch.addmm(offset_bias, query, offset_weight.t()).view(B, keys, heads, levels, points, 2)
            locations = torch.addcmul(reference_points[:, :, None, :, None, :], offsets, sampling.inverse)
            del offsets
            logits = torch.addmm(weight_bias, half_query, weight_weight.t()).view(B, keys, heads, levels * points)
            weights = logits.to(x.dtype).softmax(-1)
            del logits
            with torch.enable_grad():
                leaves = [
                    leaf.detach().requires_grad_()
                    for leaf in (value, locations, weights.view(B, keys, heads, levels, points))
                ]
                out = sampling.attend(*leaves)
            sampled = out.detach().reshape(-1, C)
            ctx.save_for_backward(
                rows, query, half_query, weights, sampled, sampling.inverse, value_weight, offset_weight, weight_weight,
                out_weight,
            )  # fmt: skip
            ctx.attention = leaves, out
            return x + torch.addmm(out_bias, sampled, out_weight.t()).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """Return the gradients of x, of its positions and of the parameters."""
        (
            rows, query, half_query, weights, sampled, inverse, value_weight, offset_weight, weight_weight, out_weight,
        ) = ctx.saved_tensors  # fmt: skip
        leaves, out = ctx.attention
        dtype, C = rows.dtype, grad.shape[-1]
        with torch.autocast(grad.device.type, enabled=False):
            whole = grad.reshape(-1, C)
            out_grad = whole.to(dtype)
            grad_out_weight, grad_out_bias = out_grad.t() @ sampled, out_grad.sum(0)
            grads = torch.autograd.grad(out, leaves, (out_grad @ out_weight).view_as(out))
            ctx.attention = None
            value_grad = grads[0].reshape(-1, C)
            offset_grad = (grads[1] * inverse).view(len(query), -1)
            logit_grad = torch.ops.aten._softmax_backward_data(
                grads[2].view_as(weights), weights, -1, weights.dtype
            ).view(len(query), -1)
            logit_grad = logit_grad.to(dtype)
            query_grad = offset_grad @ offset_weight
            if dtype == query_grad.dtype:
                query_grad.addmm_(logit_grad, weight_weight)
                grad_x = torch.addmm(whole, value_grad, value_weight).add_(query_grad)
            else:
                query_grad.add_(logit_grad @ weight_weight)
                grad_x = torch.add(whole, value_grad @ value_weight).add_(query_grad)
            return (
                grad_x.view_as(grad),
                query_grad.view_as(grad),
                None,
                value_grad.t() @ rows,
                value_grad.sum(0),
                offset_grad.t() @ query,
                offset_grad.sum(0),
                logit_grad.t() @ half_query,
                logit_grad.sum(0),
                grad_out_weight,
                grad_out_bias,
                None,
            )

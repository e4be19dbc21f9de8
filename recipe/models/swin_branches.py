"""The two branches of a Swin block as one function each, for accelerators.

Single operators would write and read many intermediate tensors in device memory, which limits a step. The two functions
compute the same with fewer of them: the windows are read from the projected tokens by one gather, the gradients of q, k
and v are gathered into one tensor, and the bias and the mask are rounded before they are repeated.
"""

from typing import Any, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from recipe.models.add_norm import Added, Norm, add_norm, add_norm_backward, add_scaled, scaled
from recipe.models.attention import window_softmax
from recipe.models.execution import device_kind
from recipe.models.token_attention import TokenAttention, takes_triton
from recipe.models.window_rows import Rows, batch_rows, head_rows, mask_of


class Branch(NamedTuple):
    """What a branch needs besides its tensors.

    Attributes:
        eps: Of the norm.
        maps: ``WindowMaps`` of the attention; None for the MLP.
        scale: Of q k^T.
        dtype: Dtype of products: that of autocast, or of the tokens.
    """

    eps: float
    maps: Any
    scale: float
    dtype: torch.dtype


class _FusedAttention:
    """Attention in the windows by ``scaled_dot_product_attention``, and its backward pass.

    Args:
        qkv: Rows of tokens and of a padding token, (B * L + 1, 3 * C).
        position_bias: (heads, N, N).
        branch: The branch.
        batch_size: B.

    Attributes:
        attended: Result, (B * L, C).
    """

    def __init__(self, qkv: Tensor, position_bias: Tensor, branch: Branch, batch_size: int) -> None:
        maps = branch.maps
        heads, N = position_bias.shape[:2]
        C = qkv.shape[1] // 3
        self.maps, self.batch_size = maps, batch_size
        rows = batch_rows(maps, batch_size)
        windows = qkv.index_select(0, rows.to_windows)
        # Shifted windows have one mask for all images, so each image is attended alone: nothing is repeated.
        self.groups = 1 if maps.mask is None else batch_size
        # (3, groups, windows, heads, N, D)
        parts = windows.view(self.groups, -1, N, 3, heads, C // heads).permute(3, 0, 1, 4, 2, 5)
        with torch.enable_grad():
            self.bias = position_bias.detach().to(branch.dtype).requires_grad_()
            shown = self.bias[None] if maps.mask is None else self.bias[None] + mask_of(maps, branch.dtype)
            self.leaves = [[part[group].detach().requires_grad_() for part in parts] for group in range(self.groups)]
            self.outs = [
                F.scaled_dot_product_attention(q, k, v, attn_mask=shown.expand(len(q), -1, -1, -1), scale=branch.scale)
                for q, k, v in self.leaves
            ]
        self.attended = qkv.new_empty(len(qkv) - 1, C)
        for out, target in zip(self.outs, self.attended.view(self.groups, -1, C)):
            torch.index_select(out.detach().transpose(1, 2).reshape(-1, C), 0, self._to_tokens(rows), out=target)

    def _to_tokens(self, rows: Rows) -> Tensor:
        return rows.to_tokens if self.groups == 1 else self.maps.to_tokens

    def backward(self, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Compute gradients; once.

        Args:
            grad: Gradient of ``attended``, and a last row of zeros for padding, (B * L + 1, C).

        Returns:
            Gradients of the tokens' qkv, (B * L, 3 * C), of the qkv bias through padding and tokens, (3 * C, ), and of
            the position bias.
        """
        rows = batch_rows(self.maps, self.batch_size)
        C = grad.shape[1]
        heads, N = self.bias.shape[:2]
        window_grad = grad.index_select(0, rows.to_windows).view(self.groups, -1, N, heads, C // heads)
        *grads, bias_grad = torch.autograd.grad(
            self.outs,
            [leaf for leaves in self.leaves for leaf in leaves] + [self.bias],
            list(window_grad.transpose(2, 3).unbind()),
        )
        del window_grad, self.outs, self.leaves
        qkv_grad = grad.new_empty(len(grad) - 1, 3 * C)
        totals = grad.new_empty(self.groups, 3, C)
        for group, target in enumerate(qkv_grad.view(self.groups, -1, 3, C)):
            for part in range(3):
                flat = grads[3 * group + part].transpose(1, 2).reshape(-1, C)
                torch.index_select(flat, 0, self._to_tokens(rows), out=target[:, part])
                torch.sum(flat, 0, out=totals[group, part])
        total = totals[0] if self.groups == 1 else totals.sum(0)
        return qkv_grad, total.flatten(), bias_grad


class _ComposedAttention:
    """Attention in the windows from single operators, for an NPU; as :class:`_FusedAttention`.

    The fused attention of torch_npu takes a bias, but gives no gradient for it (docs/performance.md). Each head of each
    row is gathered to where the products of matrices need it, so that no tensor is transposed in memory.
    """

    def __init__(self, qkv: Tensor, position_bias: Tensor, branch: Branch, batch_size: int) -> None:
        maps = branch.maps
        heads, N = position_bias.shape[:2]
        C = qkv.shape[1] // 3
        self.index = head_rows(maps, batch_size, heads)
        self.scale, self.shape = branch.scale, (batch_size, -1, heads, N, N)
        # (3, G * heads, N, D)
        self.parts = qkv.view(-1, C // heads).index_select(0, self.index.qkv).view(3, -1, N, C // heads)
        q, k, v = self.parts
        mask = None if maps.mask is None else mask_of(maps, branch.dtype)
        scores = torch.bmm(q, k.transpose(1, 2)).view(self.shape)
        self.attn = window_softmax(scores, position_bias.to(branch.dtype), mask, branch.scale).view(-1, N, N)
        out = torch.bmm(self.attn, v).view(-1, C // heads)
        self.attended = out.index_select(0, self.index.out_tokens).view(-1, C)

    def backward(self, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """As that of :class:`_FusedAttention`."""
        q, k, v = self.parts
        N, D = q.shape[1:]
        out_grad = grad.view(-1, D).index_select(0, self.index.out).view_as(q)
        attn_grad = torch._softmax_backward_data(torch.bmm(out_grad, v.transpose(1, 2)), self.attn, -1, self.attn.dtype)
        bias_grad = attn_grad.view(self.shape).sum((0, 1))
        grads = torch.empty_like(self.parts)
        torch.bmm(attn_grad, k, out=grads[0])
        torch.bmm(attn_grad.transpose(1, 2), q, out=grads[1])
        grads[:2].mul_(self.scale)
        torch.bmm(self.attn.transpose(1, 2), out_grad, out=grads[2])
        del self.attn, self.parts
        heads = self.shape[2]
        sums = grads.view(3, -1, heads, N, D).sum((1, 3)).flatten()
        return grads.view(-1, D).index_select(0, self.index.qkv_tokens).view(-1, 3 * heads * D), sums, bias_grad


def _attention(qkv: Tensor, position_bias: Tensor) -> Any:
    """Choose one of the three kinds of attention, by device, dtype and size."""
    if takes_triton(qkv, position_bias):
        return TokenAttention
    return _ComposedAttention if device_kind(qkv.device) == 'npu' else _FusedAttention


class AddBranch(Function):
    """x + drawn * branch of (B, L, C), (B * L, C) and (B, 1, 1), in the dtype of x; no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, drawn: Optional[Tensor]) -> Tensor:
        """Add without casts by autocast."""
        ctx.save_for_backward(drawn)
        ctx.dtype = branch.dtype
        with torch.autocast(x.device.type, enabled=False):
            return add_scaled(x, branch, drawn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """Return the gradients of x and of the branch."""
        (drawn,) = ctx.saved_tensors
        return grad, scaled(grad, drawn, ctx.dtype), None


class AttentionBranch(Function):
    """proj(window attention(norm(sum))) of the sum x + drawn * previous; no second derivative.

    The next branch, or :class:`AddBranch`, adds the result to the sum: there one kernel adds and normalizes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        previous: Optional[Tensor],
        drawn: Optional[Tensor],
        norm_weight: Tensor,
        norm_bias: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        position_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        branch: Branch,
    ) -> Tuple[Tensor, Tensor]:
        """Run the branch.

        Args:
            ctx: Context of autograd.
            x: Tokens, (B, L, C).
            previous: Result of the branch before this one, (B * L, C); None to add nothing.
            drawn: Factor of ``previous`` for each image, (B, 1, 1); None for 1.
            norm_weight: Of the norm, (C, ).
            norm_bias: Of the norm, (C, ).
            qkv_weight: Of the projection to q, k and v, (3 * C, C).
            qkv_bias: (3 * C, ).
            position_bias: Bias of each pair of positions, (heads, N, N), in any dtype.
            proj_weight: Of the projection after the attention, (C, C).
            proj_bias: (C, ).
            branch: What else the branch needs.

        Returns:
            The sum, (B, L, C), and the result of the branch, (B * L, C), in the dtype of ``branch``.
        """
        with torch.autocast(x.device.type, enabled=False):
            B, L, C = x.shape
            added = add_norm(x, previous, drawn, Norm(norm_weight, norm_bias, branch.eps), branch.dtype)
            inner = added.normed
            # The extra last row is the qkv of a padding token: a token of zeros, so the bias.
            qkv = inner.new_empty(B * L + 1, 3 * C)
            torch.addmm(qkv_bias, inner, qkv_weight.t(), out=qkv[:-1])
            qkv[-1].copy_(qkv_bias)
            attention = _attention(qkv, position_bias)(qkv, position_bias, branch, B)
            del qkv
            attended = attention.attended
            result = torch.addmm(proj_bias, attended, proj_weight.t())
            ctx.save_for_backward(*added, attended, norm_weight, norm_bias, qkv_weight, proj_weight, drawn)
            ctx.attention = attention
            ctx.eps, ctx.previous_dtype = branch.eps, None if previous is None else previous.dtype
            ctx.position_dtype = position_bias.dtype
            return added.total, result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, out_grad: Tensor) -> tuple:
        """Return the gradients of x, of the branch before, of the parameters and of the position bias."""
        added = Added(*ctx.saved_tensors[:4])
        attended, norm_weight, norm_bias, qkv_weight, proj_weight, drawn = ctx.saved_tensors[4:]
        B, L, C = grad.shape
        with torch.autocast(grad.device.type, enabled=False):
            grad_proj_weight, grad_proj_bias = out_grad.t() @ attended, out_grad.sum(0)
            # The extra last row is the gradient of padding, 0.
            projected = out_grad.new_empty(B * L + 1, C)
            torch.mm(out_grad, proj_weight, out=projected[:-1])
            projected[-1].zero_()
            qkv_grad, grad_qkv_bias, grad_bias = ctx.attention.backward(projected)
            ctx.attention = None
            grad_qkv_weight, grad_inner = qkv_grad.t() @ added.normed, qkv_grad @ qkv_weight
            grad_x, grad_previous, grad_norm_weight, grad_norm_bias = add_norm_backward(
                grad_inner, grad, added, Norm(norm_weight, norm_bias, ctx.eps), drawn, ctx.previous_dtype
            )
        return (
            grad_x,
            grad_previous,
            None,
            grad_norm_weight,
            grad_norm_bias,
            grad_qkv_weight,
            grad_qkv_bias,
            grad_bias.to(ctx.position_dtype),
            grad_proj_weight,
            grad_proj_bias,
            None,
        )


class MLPBranch(Function):
    """gelu(norm(sum) W1^T + b1) W2^T + b2 of the sum x + drawn * previous, as :class:`AttentionBranch`.

    It keeps the result of the norm and both sides of GELU, which ``_FeedForward`` computes again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        previous: Optional[Tensor],
        drawn: Optional[Tensor],
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        branch: Branch,
    ) -> Tuple[Tensor, Tensor]:
        """Run the branch.

        Args:
            ctx: Context of autograd.
            x: As the next two and ``branch`` in :class:`AttentionBranch`.
            previous: See there.
            drawn: See there.
            norm_weight: Of the norm, (C, ).
            norm_bias: Of the norm, (C, ).
            weight1: Of the first linear layer, (H, C).
            bias1: (H, ).
            weight2: Of the second linear layer, (C, H).
            bias2: (C, ).
            branch: See there.

        Returns:
            As :class:`AttentionBranch`.
        """
        with torch.autocast(x.device.type, enabled=False):
            added = add_norm(x, previous, drawn, Norm(norm_weight, norm_bias, branch.eps), branch.dtype)
            hidden = torch.addmm(bias1, added.normed, weight1.t())
            active = F.gelu(hidden)
            result = torch.addmm(bias2, active, weight2.t())
            ctx.save_for_backward(*added, hidden, active, norm_weight, norm_bias, weight1, weight2, drawn)
            ctx.eps, ctx.previous_dtype = branch.eps, None if previous is None else previous.dtype
            return added.total, result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, out_grad: Tensor) -> tuple:
        """Return the gradients of x, of the branch before and of the parameters."""
        added = Added(*ctx.saved_tensors[:4])
        hidden, active, norm_weight, norm_bias, weight1, weight2, drawn = ctx.saved_tensors[4:]
        with torch.autocast(grad.device.type, enabled=False):
            grad_weight2, grad_bias2 = out_grad.t() @ active, out_grad.sum(0)
            hidden_grad = torch.ops.aten.gelu_backward(out_grad @ weight2, hidden)
            grad_weight1, grad_bias1 = hidden_grad.t() @ added.normed, hidden_grad.sum(0)
            grad_x, grad_previous, grad_norm_weight, grad_norm_bias = add_norm_backward(
                hidden_grad @ weight1, grad, added, Norm(norm_weight, norm_bias, ctx.eps), drawn, ctx.previous_dtype
            )
        return (
            grad_x,
            grad_previous,
            None,
            grad_norm_weight,
            grad_norm_bias,
            grad_weight1,
            grad_bias1,
            grad_weight2,
            grad_bias2,
            None,
        )

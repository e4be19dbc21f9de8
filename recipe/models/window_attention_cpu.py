"""Window attention on CPU; the gathers are its only copies, and it keeps no attention probabilities.

On a CPU new memory costs more than arithmetic: adding a number to the 48 MB of attention logits of one block takes ten
times as long into a new tensor as in place. So all blocks share two buffers for the logits. The backward pass computes
the probabilities again.
"""

import threading
from functools import lru_cache
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from recipe.models.execution import autocasts, is_plain, kept_constants
from recipe.models.feed_forward import is_layer_norm
from recipe.models.window_maps import window_maps

# Elements of a buffer: the logits of 1152 pairs of a window and a head, 144 x 144 each.
_BUFFER_NUMEL = 24 * 1024**2

_scratch = threading.local()


class Windows(NamedTuple):
    """Size, shift and map of shifted windows.

    Attributes:
        hw_shape: H and W of the feature map, in tokens.
        size: Height and width of a window.
        shift: Cyclic shift of the windows.
    """

    hw_shape: Tuple[int, int]
    size: int
    shift: int


class _Scratch(NamedTuple):
    """Shared memory for the logits of some windows and heads.

    Attributes:
        logits: Shape (rows, N, N).
        transposed: A view with the last two axes exchanged.
        blocks: A view of shape (rows // num_heads, num_heads, N, N).
    """

    logits: Tensor
    transposed: Tensor
    blocks: Tensor


class _RowMaps(NamedTuple):
    """The ``WindowMaps`` of a batch, as indices of rows. A row is the vector of one head, (head_dim,).

    Attributes:
        qkv_windows: For each row of (3, B * nW * num_heads, N) its row in (B * L + 1, 3, num_heads), int32. Padding
            points to the last token, which holds the bias.
        qkv_tokens: The inverse: for each row of (B, L, 3, num_heads) its row in the windows, 1-D, int32.
        out_windows: For each row of (B * nW * num_heads, N) its row in (B, L, num_heads), int32.
        out_tokens: The inverse: for each row of (B, L, num_heads) its row in the windows, 1-D, int32.
        out_padding: Rows of (B, nW, num_heads, N) that are padding, 1-D, int64.
    """

    qkv_windows: Tensor
    qkv_tokens: Tensor
    out_windows: Tensor
    out_tokens: Tensor
    out_padding: Tensor


def fits_cpu_window_msa(x: Tensor, qkv: nn.Module, proj: nn.Module, norm: Optional[nn.Module]) -> bool:
    """Return whether :class:`CPUWindowMSA` computes the same as these modules.

    Args:
        x: Tokens, (B, H*W, C).
        qkv: Projects tokens to q, k and v.
        proj: Output projection.
        norm: Norm before ``qkv``, or None.

    Returns:
        False on other devices, in other precisions, and if a module has hooks.
    """
    return (
        x.device.type == 'cpu'
        and x.dtype == qkv.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not autocasts('cpu')
        and all(type(m) is nn.Linear and is_plain(m) for m in (qkv, proj))
        and proj.bias is not None
        and (norm is None or is_layer_norm(norm, x))
    )


class CPUWindowMSA(Function):
    """The shifted window attention of Swin, from tokens to tokens.

    It computes the norm (if given), the qkv projection, the attention in each window and the output projection. For the
    backward pass it keeps only the tokens, the qkv and the output of the attention. It has no second derivative.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Optional[Tensor],
        bias_table: Tensor,
        bias_index: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        windows: Windows,
        scale: float,
        norm_weight: Optional[Tensor],
        norm_bias: Optional[Tensor],
        eps: float,
    ) -> Tensor:
        """Swin Transformer (arXiv:2103.14030), equation 4 and section 3.2.

        Args:
            ctx: Receives the tensors for the backward pass.
            x: Tokens, shape (B, H*W, C), float32 or float64.
            qkv_weight: Shape (3 * C, C); the rows are those of q, k and v, each as (num_heads, C // num_heads).
            qkv_bias: Shape (3 * C, ).
            bias_table: Relative position biases, shape ((2 * size - 1) ** 2, num_heads).
            bias_index: Row of the table for each pair of positions in a window, shape (size ** 4, ), int64.
            proj_weight: Shape (C, C).
            proj_bias: Shape (C, ).
            windows: Size, shift and map of the windows.
            scale: Scale of q k^T.
            norm_weight: Weight of a LayerNorm before the qkv projection, shape (C, ); None for no norm.
            norm_bias: Its bias, shape (C, ); None for no norm.
            eps: ``eps`` of that norm.

        Returns:
            Shape (B, H*W, C).
        """
        ctx.windows, ctx.scale, ctx.eps = windows, scale, eps
        mean = rstd = None
        tokens = x.reshape(-1, x.shape[-1])
        normed = tokens
        if norm_weight is not None:
            normed, mean, rstd = torch.native_layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps)
        # The extra last row is the qkv of a padding token, which is zero.
        qkv = x.new_empty(len(tokens) + 1, len(qkv_weight))
        if qkv_bias is None:
            torch.mm(normed, qkv_weight.t(), out=qkv[:-1])
            qkv[-1] = 0
        else:
            torch.addmm(qkv_bias, normed, qkv_weight.t(), out=qkv[:-1])
            qkv[-1] = qkv_bias
        N = windows.size**2
        position_bias = bias_table.t().index_select(1, bias_index).view(-1, N, N)
        batch = len(tokens) // (windows.hw_shape[0] * windows.hw_shape[1])
        rows = _row_maps(windows, batch, len(position_bias))
        head_dim = x.shape[-1] // len(position_bias)
        inside = torch.embedding(qkv.view(-1, head_dim), rows.qkv_windows)
        out = _attend(inside, position_bias, windows, scale)
        out = torch.embedding(out.view(-1, head_dim), rows.out_tokens)
        out = out.view(tokens.shape)
        ctx.save_for_backward(
            tokens,
            inside,
            out,
            position_bias,
            qkv_weight,
            bias_table,
            bias_index,
            proj_weight,
            mean,
            rstd,
            norm_weight,
            norm_bias,
        )
        return torch.addmm(proj_bias, out, proj_weight.t()).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        """Gradients of the tokens and all parameters."""
        (
            tokens,
            inside,
            out,
            position_bias,
            qkv_weight,
            bias_table,
            bias_index,
            proj_weight,
            mean,
            rstd,
            norm_weight,
            norm_bias,
        ) = ctx.saved_tensors
        num_heads, N = position_bias.shape[:2]
        head_dim = grad.shape[-1] // num_heads
        hw_shape = ctx.windows.hw_shape
        rows = _row_maps(ctx.windows, len(tokens) // (hw_shape[0] * hw_shape[1]), num_heads)
        shape = grad.shape
        grad = grad.reshape(-1, shape[-1])
        grad_proj_weight, grad_proj_bias = grad.t() @ out, grad.sum(0)
        grad = grad @ proj_weight
        grad = torch.embedding(grad.view(-1, head_dim), rows.out_windows)
        if len(rows.out_padding):
            grad.view(-1, head_dim).index_fill_(0, rows.out_padding, 0)
        grads, grad_bias = _attend_backward(grad, inside, position_bias, ctx.windows, ctx.scale)
        # Each token is in one window, and the qkv of padding is the bias. So the gradient of the bias is the sum over
        # all positions of all windows.
        grad_qkv_bias = (
            grads.view(3, -1, num_heads, N, head_dim).sum((1, 3)).flatten() if ctx.needs_input_grad[2] else None
        )
        grad_qkv = torch.embedding(grads.view(-1, head_dim), rows.qkv_tokens)
        grad_qkv = grad_qkv.view(len(tokens), len(qkv_weight))
        grad_table = bias_table.new_zeros(bias_table.shape).index_add_(0, bias_index, grad_bias.flatten(1).t())
        normed = tokens
        if norm_weight is not None:
            normed = torch.native_layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, ctx.eps)[0]
        grad_qkv_weight = grad_qkv.t() @ normed
        grad = grad_qkv @ qkv_weight
        grad_norm_weight = grad_norm_bias = None
        if norm_weight is not None:
            grad, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
                grad, tokens, tokens.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, True, True]
            )
        return (
            grad.view(shape),
            grad_qkv_weight,
            grad_qkv_bias,
            grad_table,
            None,
            grad_proj_weight,
            grad_proj_bias,
            None,
            None,
            grad_norm_weight,
            grad_norm_bias,
            None,
        )


def _attend(inside: Tensor, position_bias: Tensor, windows: Windows, scale: float) -> Tensor:
    """Attention of q, k and v, (3, B * nW * num_heads, N, head_dim) -> (B * nW * num_heads, N, head_dim)."""
    q, k, v = inside.unbind()
    out = torch.empty_like(v)
    sizes, parts = _chunks(windows, len(q), *position_bias.shape[:2])
    for tensors in zip(parts, *(_split(t, sizes) for t in (q, k.transpose(1, 2), v, out))):
        part, q_part, kt_part, v_part, out_part = tensors
        probs = _probabilities(part, q_part, kt_part, position_bias, windows, scale)
        torch.bmm(probs.logits, v_part, out=out_part)
    return out


def _attend_backward(
    grad: Tensor, inside: Tensor, position_bias: Tensor, windows: Windows, scale: float
) -> Tuple[Tensor, Tensor]:
    """Return the gradients of ``inside`` (q, k and v) and of the position bias."""
    q, k, v = inside.unbind()
    grads = torch.empty_like(inside)
    grad_bias = None
    sizes, parts = _chunks(windows, len(q), *position_bias.shape[:2])
    tensors = (q, k, k.transpose(1, 2), v.transpose(1, 2), grad, *grads.unbind())
    for chunk in zip(parts, *(_split(t, sizes) for t in tensors)):
        (part, q_part, k_part, kt_part, vt_part, grad_part, gq_part, gk_part, gv_part) = chunk
        probs = _probabilities(part, q_part, kt_part, position_bias, windows, scale)
        torch.bmm(probs.transposed, grad_part, out=gv_part)
        scratch = _buffers(1, q.dtype, len(q_part), position_bias)
        logits = scratch.logits
        torch.bmm(grad_part, vt_part, out=logits)
        # This works row by row, so it may overwrite its input.
        torch._softmax_backward_data(logits, probs.logits, -1, q.dtype, grad_input=logits)
        gq_part.baddbmm_(logits, k_part, beta=0, alpha=scale)
        gk_part.baddbmm_(scratch.transposed, q_part, beta=0, alpha=scale)
        summed = scratch.blocks.sum(0)
        grad_bias = summed if grad_bias is None else grad_bias.add_(summed)
    if grad_bias is None:  # the batch is empty
        grad_bias = torch.zeros_like(position_bias)
    return grads, grad_bias


@lru_cache(maxsize=16)
def _numpy_maps(windows: Windows) -> Tuple[np.ndarray, ...]:
    """Return ``to_windows``, ``to_tokens`` and ``is_padding`` of ``window_maps`` as arrays."""
    maps = window_maps(*windows, torch.device('cpu'))
    return tuple(tensor.numpy() for tensor in (maps.to_windows, maps.to_tokens, maps.is_padding))


@lru_cache(maxsize=64)
def _row_maps(windows: Windows, batch: int, num_heads: int) -> _RowMaps:
    """Return the maps of one image, expanded to the rows of a batch."""
    to_windows, to_tokens, is_padding = _numpy_maps(windows)
    nW, N = to_windows.shape
    L = len(to_tokens)
    head = np.arange(num_heads)
    image = np.arange(batch)
    part = np.arange(3)

    # Token of each position among the tokens of all images, (B, nW, num_heads, N).
    token = image[:, None, None, None] * L + np.broadcast_to(to_windows[:, None], (nW, num_heads, N))
    out_windows = token * num_heads + head[:, None]
    is_padding = np.broadcast_to(is_padding[:, None], token.shape)
    qkv_windows = (np.where(is_padding, batch * L, token) * 3 + part[:, None, None, None, None]) * num_heads + head[
        :, None
    ]

    # Position of each token in (B, nW, num_heads, N), (B, L, num_heads).
    window, offset = to_tokens[:, None] // N, to_tokens[:, None] % N
    out_tokens = ((image[:, None, None] * nW + window) * num_heads + head) * N + offset
    qkv_tokens = out_tokens[:, :, None] + part[:, None] * batch * nW * num_heads * N

    out_padding = is_padding.reshape(-1).nonzero()[0]

    def tensor(index: np.ndarray, *shape: int) -> Tensor:
        return torch.from_numpy(index.reshape(shape).astype(np.int32))

    return _RowMaps(
        tensor(qkv_windows, 3, -1, N),
        tensor(qkv_tokens, -1),
        tensor(out_windows, -1, N),
        tensor(out_tokens, -1),
        torch.from_numpy(out_padding.astype(np.int64)),
    )


@lru_cache(maxsize=64)
def _chunks(windows: Windows, total: int, num_heads: int, N: int) -> Tuple[List[int], List[Tuple[int, int]]]:
    """Cut the windows and heads of a batch into parts that fit into a buffer.

    Args:
        windows: Size, shift and map of the windows.
        total: B * nW * num_heads.
        num_heads: Heads of a window.
        N: Positions of a window.

    Returns:
        Sizes of the parts, with the sum ``total``; and for each part the range of windows in an image whose masks it
        needs, (first, last + 1). A part is several whole images, or windows of one image.
    """
    period = -(-windows.hw_shape[0] // windows.size) * -(-windows.hw_shape[1] // windows.size)
    room = max(1, _BUFFER_NUMEL // (num_heads * N * N))
    count, start, sizes, masks = total // num_heads, 0, [], []
    while start < count:
        first = start % period
        whole = room - room % period
        size = min(whole, count - start) if whole and not first else min(room, period - first)
        sizes.append(size * num_heads)
        masks.append((first, first + min(size, period)))
        start += size
    return sizes, masks


def _split(tensor: Tensor, sizes: List[int]) -> Tuple[Tensor, ...]:
    """Split a tensor along its first axis. A single part is the tensor itself, not a view."""
    return tensor.split(sizes) if len(sizes) > 1 else (tensor,) * len(sizes)


def _probabilities(
    part: Tuple[int, int], q: Tensor, k_transposed: Tensor, position_bias: Tensor, windows: Windows, scale: float
) -> _Scratch:
    """Compute the softmax of the logits of a part, in place.

    The result is in a shared buffer. It is valid until the next call.
    """
    scratch = _buffers(0, q.dtype, len(q), position_bias)
    if windows.shift == 0:
        scratch.blocks.copy_(position_bias)
    else:
        # The part is several whole images, or windows of one image.
        mask = _mask(windows, part, len(scratch.blocks), q.dtype)
        torch.add(position_bias, mask, out=scratch.blocks)
    scratch.logits.baddbmm_(q, k_transposed, alpha=scale)
    # This works row by row, so it may overwrite its input.
    torch.softmax(scratch.logits, -1, out=scratch.logits)
    return scratch


@lru_cache(maxsize=64)
def _mask(windows: Windows, part: Tuple[int, int], count: int, dtype: torch.dtype) -> Tensor:
    """Return the masks of ``count`` windows, sorted by image, (count, 1, N, N)."""
    first, last = part
    images = count // (last - first)
    with kept_constants():
        whole = window_maps(*windows, torch.device('cpu')).mask
        assert whole is not None, 'only shifted windows are masked'
        mask = whole[first:last, None].to(dtype)
        return mask if images == 1 else mask.repeat(images, 1, 1, 1)


def _buffers(which: int, dtype: torch.dtype, rows: int, position_bias: Tensor) -> _Scratch:
    """Return a shared buffer of this thread, which is kept between calls.

    Args:
        which: Number of the buffer, 0 or 1.
        dtype: Its dtype.
        rows: Number of pairs of a window and a head.
        position_bias: Gives the shape (num_heads, N, N).

    Returns:
        _Scratch: Views of the buffer for this number of rows.
    """
    num_heads, N = position_bias.shape[:2]
    of_thread: Dict[Any, Any] = _scratch.__dict__
    kept = of_thread.setdefault((which, dtype), {})
    numel = rows * N * N
    if not kept or kept['all'].numel() < numel:
        with kept_constants():
            kept.clear()
            kept['all'] = torch.empty(numel, dtype=dtype)
    key = (rows, num_heads, N)
    if key not in kept:
        flat = kept['all'][:numel].view(rows, N, N)
        kept[key] = _Scratch(flat, flat.transpose(1, 2), flat.view(-1, num_heads, N, N))
    return kept[key]

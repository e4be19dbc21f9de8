"""Attention in Swin's windows in Triton, from rows of tokens to rows of tokens.

Fused attention of libraries needs the windows as tensors of their own, and the position bias added to a mask. These
kernels read the rows of a window, the position bias and the regions of a shifted window from where they are, and write
the rows of tokens. Scores stay on the chip; the backward pass computes them again from the log-sum-exp of each row, as
FlashAttention-2 does (arXiv:2307.08691, algorithm 2).

Products are of the dtype of qkv, without TF32; sums and softmax are float32. No addition is atomic, so results do not
depend on the order of programs. The import of this module needs Triton.
"""

from typing import Any, Dict, Sequence, Tuple

import triton
import triton.language as tl
from torch import Tensor

from recipe.models.token_attention import block_sizes

# Numbers for which no kernel is compiled anew, so that the check before the first use runs what is used later.
_GENERAL = ('padding', 'windows', 'map_windows', 'heads')


@triton.jit
def _rows(rows_ptr, window, at, positions, padding):
    """Row of the token at each position of a window; that of padding also for positions past the last one."""
    return tl.load(rows_ptr + window * positions + at, mask=at < positions, other=padding)


@triton.jit
def _load(ptr, row, stride, dim, D: tl.constexpr):
    """Read ``dim`` numbers of each row, (rows, D)."""
    channel = tl.arange(0, D)
    return tl.load(ptr + row[:, None] * stride + channel[None, :], mask=(channel < dim)[None, :], other=0.0)


@triton.jit
def _load_qkv(qkv_ptr, query_row, key_row, channels, dim, D: tl.constexpr):
    """Read a head's q of some rows, and its k and v of others."""
    q = _load(qkv_ptr, query_row, 3 * channels, dim, D)
    k = _load(qkv_ptr + channels, key_row, 3 * channels, dim, D)
    v = _load(qkv_ptr + 2 * channels, key_row, 3 * channels, dim, D)
    return q, k, v


@triton.jit
def _own_part(positions, heads, BLOCK: tl.constexpr):
    """Window, head and BLOCK positions of a program, where programs have one axis."""
    number, blocks = tl.program_id(0), tl.cdiv(positions, BLOCK)
    return number // (blocks * heads), number // blocks % heads, number % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _store(ptr, row, stride, dim, padding, values, D: tl.constexpr):
    """Write ``dim`` numbers of each row that is a token."""
    channel = tl.arange(0, D)
    exists = (row < padding)[:, None] & (channel < dim)[None, :]
    tl.store(ptr + row[:, None] * stride + channel[None, :], values.to(ptr.dtype.element_ty), mask=exists)


@triton.jit
def _dot(left, right):
    return tl.dot(left, right, input_precision='ieee')


@triton.jit
def _scores(
    left,
    right,
    left_at,
    right_at,
    bias_ptr,
    left_stride,
    right_stride,
    regions_ptr,
    window,
    map_windows,
    positions,
    scale,
):
    """Scores of the positions ``left_at`` and ``right_at``, of queries and keys or the reverse; -inf past the last."""
    exists = (left_at < positions)[:, None] & (right_at < positions)[None, :]
    at = left_at[:, None] * left_stride + right_at[None, :] * right_stride
    scores = _dot(left, tl.trans(right)) * scale + tl.load(bias_ptr + at, mask=exists, other=0.0).to(tl.float32)
    if regions_ptr is not None:
        regions_ptr += window % map_windows * positions
        left_region = tl.load(regions_ptr + left_at, mask=left_at < positions, other=0)
        right_region = tl.load(regions_ptr + right_at, mask=right_at < positions, other=0)
        scores += tl.where(left_region[:, None] != right_region[None, :], -100.0, 0.0)
    return tl.where(exists, scores, float('-inf'))


@triton.jit(do_not_specialize=_GENERAL)
def _forward(
    qkv_ptr,
    bias_ptr,
    rows_ptr,
    regions_ptr,
    out_ptr,
    lse_ptr,
    padding,
    positions,
    map_windows,
    heads,
    dim,
    scale,
    BLOCK: tl.constexpr,
    ALL: tl.constexpr,
    D: tl.constexpr,
):
    """One program: BLOCK queries of one head of one window. ALL is at least the number of positions."""
    window, head, query = _own_part(positions, heads, BLOCK)
    key = tl.arange(0, ALL)
    channels = heads * dim
    query_row = _rows(rows_ptr, window, query, positions, padding)
    key_row = _rows(rows_ptr, window, key, positions, padding)
    q, k, v = _load_qkv(qkv_ptr + head * dim, query_row, key_row, channels, dim, D)
    bias_ptr += head * positions * positions
    scores = _scores(q, k, query, key, bias_ptr, positions, 1, regions_ptr, window, map_windows, positions, scale)
    # Rows past the last query hold -inf alone; 0 keeps their NaN away.
    most = tl.where(query < positions, tl.max(scores, 1), 0.0)
    weights = tl.exp(scores - most[:, None])
    total = tl.where(query < positions, tl.sum(weights, 1), 1.0)
    out = _dot(weights.to(v.dtype), v) / total[:, None]
    _store(out_ptr + head * dim, query_row, channels, dim, padding, out, D)
    lse_ptr += (window * heads + head) * positions
    tl.store(lse_ptr + query, most + tl.log(total), mask=query < positions)


@triton.jit(do_not_specialize=_GENERAL)
def _backward_queries(
    qkv_ptr,
    bias_ptr,
    rows_ptr,
    regions_ptr,
    lse_ptr,
    grad_ptr,
    q_grad_ptr,
    delta_ptr,
    bias_sums_ptr,
    column_sums_ptr,
    padding,
    windows,
    positions,
    map_windows,
    heads,
    dim,
    scale,
    BLOCK: tl.constexpr,
    ALL: tl.constexpr,
    D: tl.constexpr,
):
    """One program: BLOCK queries of one head of every n-th window, where n is the number of programs on axis 2."""
    head = tl.program_id(1)
    channels = heads * dim
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.arange(0, ALL)
    bias_ptr += head * positions * positions
    bias_sums = tl.zeros((BLOCK, ALL), dtype=tl.float32)
    q_sums = tl.zeros((BLOCK, D), dtype=tl.float32)
    v_sums = tl.zeros((BLOCK, D), dtype=tl.float32)
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        query_row = _rows(rows_ptr, window, query, positions, padding)
        key_row = _rows(rows_ptr, window, key, positions, padding)
        q, k, v = _load_qkv(qkv_ptr + head * dim, query_row, key_row, channels, dim, D)
        grad = _load(grad_ptr + head * dim, query_row, channels, dim, D)
        scores = _scores(q, k, query, key, bias_ptr, positions, 1, regions_ptr, window, map_windows, positions, scale)
        numbers = (window * heads + head) * positions + query
        lse = tl.load(lse_ptr + numbers, mask=query < positions, other=0.0)
        weights = tl.exp(scores - lse[:, None])
        weight_grad = _dot(grad, tl.trans(v))
        delta = tl.sum(weights * weight_grad, 1)
        score_grad = weights * (weight_grad - delta[:, None])
        q_grad = _dot(score_grad.to(k.dtype), k) * scale
        _store(q_grad_ptr + head * dim, query_row, 3 * channels, dim, padding, q_grad, D)
        tl.store(delta_ptr + numbers, delta, mask=query < positions)
        bias_sums += score_grad
        q_sums += q_grad
        v_sums += grad.to(tl.float32)
    bias_sums_ptr += (tl.program_id(2) * heads + head) * positions * positions
    at = query[:, None] * positions + key[None, :]
    tl.store(bias_sums_ptr + at, bias_sums, mask=(query < positions)[:, None] & (key < positions)[None, :])
    channel = tl.arange(0, D)
    column_sums_ptr += (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * 3 * channels + head * dim
    q_sum = tl.sum(q_sums, 0)
    tl.store(column_sums_ptr + channel, q_sum, mask=channel < dim)
    tl.store(column_sums_ptr + channels + channel, tl.zeros_like(q_sum), mask=channel < dim)
    tl.store(column_sums_ptr + 2 * channels + channel, tl.sum(v_sums, 0), mask=channel < dim)


@triton.jit(do_not_specialize=_GENERAL)
def _backward_keys(
    qkv_ptr,
    bias_ptr,
    rows_ptr,
    regions_ptr,
    lse_ptr,
    grad_ptr,
    delta_ptr,
    kv_grad_ptr,
    padding,
    positions,
    map_windows,
    heads,
    dim,
    scale,
    BLOCK: tl.constexpr,
    ALL: tl.constexpr,
    D: tl.constexpr,
):
    """One program: BLOCK keys of one head of one window."""
    window, head, key = _own_part(positions, heads, BLOCK)
    query = tl.arange(0, ALL)
    channels = heads * dim
    query_row = _rows(rows_ptr, window, query, positions, padding)
    key_row = _rows(rows_ptr, window, key, positions, padding)
    q, k, v = _load_qkv(qkv_ptr + head * dim, query_row, key_row, channels, dim, D)
    grad = _load(grad_ptr + head * dim, query_row, channels, dim, D)
    bias_ptr += head * positions * positions
    scores = _scores(k, q, key, query, bias_ptr, 1, positions, regions_ptr, window, map_windows, positions, scale)
    numbers = (window * heads + head) * positions + query
    lse = tl.load(lse_ptr + numbers, mask=query < positions, other=0.0)
    delta = tl.load(delta_ptr + numbers, mask=query < positions, other=0.0)
    weights = tl.exp(scores - lse[None, :])
    v_grad = _dot(weights.to(grad.dtype), grad)
    score_grad = weights * (_dot(v, tl.trans(grad)) - delta[None, :])
    k_grad = _dot(score_grad.to(q.dtype), q) * scale
    kv_grad_ptr += head * dim
    _store(kv_grad_ptr, key_row, 3 * channels, dim, padding, k_grad, D)
    _store(kv_grad_ptr + channels, key_row, 3 * channels, dim, padding, v_grad, D)


def run_forward(inputs: Sequence[Any], outputs: Sequence[Any], scale: float) -> None:
    """Compute softmax(scale * q k^T + bias + mask) v in each window (Swin Transformer, arXiv:2103.14030, equation 4).

    Args:
        inputs: qkv, (T + 1, 3 * C) of float32 or a half type, with a padding token as the last row; position bias,
            (heads, N, N) of any floating dtype; row of each position, (G * N, ) of int64, where padding has the row T;
            region of each position, (nW, N) of int32, or None. Scores between two regions get -100 more. Window g has
            the regions g % nW. All contiguous.
        outputs: Result, (T, C) in the dtype of qkv; log-sum-exp of the scores, (G, heads, N) of float32.
        scale: Of q k^T.
    """
    blocks, sizes, constants = _sizes(*inputs)
    _forward[(outputs[1].shape[0] * outputs[1].shape[1] * blocks,)](*inputs, *outputs, *sizes, scale, **constants)


def run_backward_queries(inputs: Sequence[Any], outputs: Sequence[Any], scale: float) -> None:
    """Compute the gradients of queries, and partial sums of those of both biases.

    The bias of k gets none: it adds the same number to all scores of a query. That of v gets the sum of the gradients
    of the result, since the weights of a query sum to 1.

    Args:
        inputs: Those of :func:`run_forward`; its log-sum-exp; gradient of its result, (T + 1, C) in the dtype of qkv,
            with zeros as the last row. All contiguous.
        outputs: Gradient of q, (T, C), a part of rows of 3 * C numbers; the sum of attention weights times their
            gradients for each query, as the log-sum-exp; P partial sums of the gradient of the position bias, (P,
            heads, N, N) of float32, for any P; partial sums of that of the qkv bias, (P, blocks of queries, 3 * C) of
            float32.
        scale: Of q k^T.
    """
    blocks, (padding, *sizes), constants = _sizes(*inputs[:4])
    windows, heads, _ = inputs[4].shape
    grid = (blocks, heads, len(outputs[2]))
    _backward_queries[grid](*inputs, *outputs, padding, windows, *sizes, scale, **constants)


def run_backward_keys(inputs: Sequence[Any], outputs: Sequence[Any], scale: float) -> None:
    """Compute the gradients of keys and values.

    Args:
        inputs: As in :func:`run_backward_queries`, and after them its second output.
        outputs: Gradient of k and v, (T, 2 * C), a part of rows of 3 * C numbers.
        scale: Of q k^T.
    """
    blocks, sizes, constants = _sizes(*inputs[:4])
    windows, heads, _ = inputs[4].shape
    _backward_keys[(windows * heads * blocks,)](*inputs, *outputs, *sizes, scale, **constants)


def _sizes(qkv: Tensor, bias: Tensor, rows: Tensor, regions: Any) -> Tuple[int, tuple, Dict[str, int]]:
    """Return blocks of queries or keys of a window, sizes and constants of all kernels."""
    heads, positions = bias.shape[:2]
    dim = qkv.shape[1] // 3 // heads
    block, whole = block_sizes(positions)
    map_windows = 1 if regions is None else len(regions)
    # A product takes at least 16 numbers.
    constants = {'BLOCK': block, 'ALL': whole, 'D': max(16, triton.next_power_of_2(dim)), 'num_warps': 8}
    return triton.cdiv(positions, block), (len(qkv) - 1, positions, map_windows, heads, dim), constants

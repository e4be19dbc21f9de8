"""Multi-scale deformable attention for every device and precision (Deformable DETR, arXiv:2010.04159)."""

import os
import warnings
from functools import lru_cache
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
    mx_driving_deformable_attn,
)
from mmcv.utils.ext_loader import check_ops_exist
from torch import Tensor, nn

from recipe.models.deform_attn_rows import sum_of_rows
from recipe.models.encoder_attention import EncoderAttention, Sampling
from recipe.models.execution import autocast_dtype, device_kind, is_compiling, is_plain, kept_constants
from recipe.models.half_parameters import in_dtype
from recipe.models.onednn_linear import run_linear

# Dtypes of the compiled operator on each kind of device. Other dtypes are computed in float32 and cast back. On CUDA
# the operator takes float16 too, but its coordinates are then float16 as well, with steps of 1/16 of a pixel at the end
# of a map of 128 pixels.
_COMPILED_DTYPES = {
    'cuda': (torch.float32, torch.float64),
    'mlu': (torch.float16, torch.float32),
    'musa': (torch.float16, torch.float32, torch.float64),
}
_HALF = (torch.bfloat16, torch.float16)
# Environment variable that chooses the implementation on CUDA, for measurements or if one fails.
CHOICE = 'MMCV_DEFORM_ATTN'
CHOICES = ('auto', 'triton', 'compiled', 'pytorch')
# Whether the Triton kernel gave the right result, by device.
_triton_passed: Dict[torch.device, bool] = {}
Shapes = Sequence[Tuple[int, int]]


class FastMultiScaleDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's module; chooses the implementation by device and dtype."""

    def forward(
        self,
        query: Tensor,
        key: Optional[Tensor] = None,
        value: Optional[Tensor] = None,
        identity: Optional[Tensor] = None,
        query_pos: Optional[Tensor] = None,
        key_padding_mask: Optional[Tensor] = None,
        reference_points: Optional[Tensor] = None,
        spatial_shapes: Optional[Tensor] = None,
        level_start_index: Optional[Tensor] = None,
        host_shapes: Optional[Shapes] = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute the same as upstream's method.

        Args:
            query: Shape (queries, B, C), or (B, queries, C) if ``batch_first``.
            key: Not used, as upstream.
            value: Shape (keys, B, C), or (B, keys, C) if ``batch_first``. Default: ``query``.
            identity: Added to the result. Default: ``query``.
            query_pos: Added to ``query`` first.
            key_padding_mask: Bool, (B, keys); True if a key is padding.
            reference_points: (x, y) in [0, 1] or boxes (x, y, w, h), shape (B, queries, levels, 2 or 4).
            spatial_shapes: (h, w) of each level, shape (levels, 2), integer.
            level_start_index: First key of each level, shape (levels,), integer.
            host_shapes: ``spatial_shapes`` as numbers, so that nothing reads the tensor on the host.
            kwargs: Not used, as upstream.

        Returns:
            Shape of ``query``.
        """
        assert reference_points is not None and spatial_shapes is not None and level_start_index is not None
        value = query if value is None else value
        identity = query if identity is None else identity
        if (
            value is query
            and identity is query
            and query_pos is not None
            and key_padding_mask is None
            and host_shapes is not None
            and reference_points.shape[-1] == 2
            and self._is_one_function(query)
        ):
            return self._encode(query, query_pos, reference_points, spatial_shapes, level_start_index, host_shapes)
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.permute(1, 0, 2), value.permute(1, 0, 2)
        bs, num_query, _ = query.shape
        num_value = value.shape[1]
        if host_shapes is not None:
            assert sum(h * w for h, w in host_shapes) == num_value
        else:
            assert (spatial_shapes[:, 0] * spatial_shapes[:, 1]).sum() == num_value

        # A linear layer turns other shapes into a matrix first, which takes more operators.
        value = run_linear(self.value_proj, value.flatten(0, 1))
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask.reshape(-1, 1), 0.0)
        value = value.view(bs, num_value, self.num_heads, -1)
        rows = query.flatten(0, 1)
        sizes = (bs, num_query, self.num_heads, self.num_levels, self.num_points)
        # Autocast would round the positions of the samples to half precision.
        with torch.autocast(rows.device.type, enabled=False):
            offsets = run_linear(self.sampling_offsets, rows.to(self.sampling_offsets.weight.dtype)).view(*sizes, 2)
        weights = run_linear(self.attention_weights, rows).view(*sizes[:3], -1).softmax(-1).view(sizes)
        if self._sums_rows(value, reference_points):
            shapes = host_shapes or [(int(h), int(w)) for h, w in spatial_shapes]
            output = _rows_attn(value, shapes, reference_points, offsets, weights)
        else:
            locations = _locations(reference_points, offsets, spatial_shapes)
            output = multi_scale_deformable_attn(
                value, spatial_shapes, level_start_index, locations, weights, self.im2col_step, host_shapes
            )
        output = run_linear(self.output_proj, output)
        if not self.batch_first:
            output = output.permute(1, 0, 2)
        return self.dropout(output) + identity

    def _sums_rows(self, value: Tensor, reference_points: Tensor) -> bool:
        """Whether :func:`sum_of_rows` takes over: on a CPU in eval mode, without gradients.

        A training whose activations are computed twice needs the same numbers with and without gradients.
        """
        return (
            value.device.type == 'cpu'
            and reference_points.shape[-1] == 2
            and not (self.training or torch.is_grad_enabled() or is_compiling())
        )

    def _is_one_function(self, query: Tensor) -> bool:
        """Whether :class:`EncoderAttention` computes the same for a self attention, on an accelerator."""
        projections = (self.value_proj, self.sampling_offsets, self.attention_weights, self.output_proj)
        return (
            device_kind(query.device) != 'cpu'
            and torch.is_grad_enabled()
            and not is_compiling()
            and self.batch_first
            and not (self.training and self.dropout.p > 0)
            and query.dtype == self.value_proj.weight.dtype
            and all(type(one) is nn.Linear and one.bias is not None and is_plain(one) for one in projections)
            and is_plain(self.dropout)
        )

    def _encode(
        self, query: Tensor, query_pos: Tensor, points: Tensor, shapes: Tensor, starts: Tensor, host_shapes: Shapes
    ) -> Tensor:
        """Run the attention and its projections as one function."""
        dtype = autocast_dtype(query.device.type) or query.dtype

        def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return multi_scale_deformable_attn(value, shapes, starts, locations, weights, self.im2col_step, host_shapes)

        def parameters(layer: Any, kind: torch.dtype) -> Tuple[Tensor, Tensor]:
            return in_dtype(layer.weight, kind), in_dtype(layer.bias, kind)

        return EncoderAttention.apply(
            query,
            query_pos,
            points,
            *parameters(self.value_proj, dtype),
            # Half precision would move the places of the samples.
            *parameters(self.sampling_offsets, query.dtype),
            *parameters(self.attention_weights, dtype),
            *parameters(self.output_proj, dtype),
            Sampling(
                attend,
                (self.num_heads, self.num_levels, self.num_points),
                _inverse_sizes(tuple(map(tuple, host_shapes)), query.dtype, query.device),
            ),
        )


@lru_cache(maxsize=16)
def _inverse_sizes(shapes: Tuple[Tuple[int, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 1 / (w, h) of each level, (levels, 1, 2)."""
    with kept_constants():
        return torch.tensor([[[1 / w, 1 / h]] for h, w in shapes], dtype=dtype).to(device)


def _locations(reference_points: Tensor, offsets: Tensor, spatial_shapes: Tensor) -> Tensor:
    """Return the sampling locations, (x, y) in [0, 1], shape (B, queries, heads, levels, points, 2)."""
    if reference_points.shape[-1] == 2:
        # Offsets are in pixels of their level; (levels, 1, 2).
        size = spatial_shapes.flip(-1).unsqueeze(-2)
        return reference_points[:, :, None, :, None, :] + offsets / size
    if reference_points.shape[-1] == 4:
        centres, sizes = reference_points[:, :, None, :, None].split(2, dim=-1)
        return centres + offsets / offsets.shape[-2] * sizes * 0.5
    raise ValueError(f'Last dim of reference_points must be 2 or 4, but get {reference_points.shape[-1]} instead.')


def multi_scale_deformable_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
    host_shapes: Optional[Shapes] = None,
) -> Tensor:
    """Sample, weight and sum (Deformable DETR, equation 3).

    The device of ``value`` chooses the implementation:

    - NPU: ``mx_driving.multi_scale_deformable_attn``.
    - CUDA, MLU and MUSA: mmcv's compiled operator, if it was built.
    - CUDA in half precision, or without that operator: the Triton kernel of ``deform_attn_triton``, if Triton is
      installed and its result in a small case is right on the device. The environment variable ``MMCV_DEFORM_ATTN``
      (auto, triton, compiled, pytorch) overrides this.
    - Everything else: ``multi_scale_deformable_attn_pytorch``.

    In float32 the compiled operator is preferred, because upstream trains with it.

    With coordinates in half precision, samples near coordinate 1 are off by whole pixels. So a ``value`` in half
    precision is cast to float32. Only the Triton kernel reads it as it is, with coordinates in float32.

    Args:
        value: Shape (B, keys, heads, C / heads), of any floating dtype.
        spatial_shapes: (h, w) of each level, shape (levels, 2), integer.
        level_start_index: First key of each level, shape (levels,), integer.
        sampling_locations: (x, y) in [0, 1], shape (B, queries, heads, levels, points, 2).
        attention_weights: Shape (B, queries, heads, levels, points).
        im2col_step: Images per step of the compiled operator.
        host_shapes: ``spatial_shapes`` as numbers. With them no implementation reads that tensor on the host, which
            would wait for the device.

    Returns:
        Shape (B, queries, C), with the dtype of ``value``.

    Raises:
        ImportError: ``value`` is on an NPU and mx_driving is not installed.
    """
    if device_kind(value.device) == 'cuda' and _takes_triton(value):
        # Autocast would cast the float32 operands down again.
        with torch.autocast(value.device.type, enabled=False):
            return _triton_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    attention, dtypes = _implementation(device_kind(value.device))
    shapes: Union[Tensor, Shapes] = spatial_shapes
    if attention is _pytorch_attn and host_shapes is not None:
        shapes = host_shapes
    out_dtype = value.dtype
    compute_dtype = out_dtype if out_dtype in dtypes else torch.float32
    value = value.to(compute_dtype)
    sampling_locations = sampling_locations.to(compute_dtype)
    attention_weights = attention_weights.to(compute_dtype)
    # Autocast would cast the float32 operands down again.
    with torch.autocast(value.device.type, enabled=False):
        output = attention(value, shapes, level_start_index, sampling_locations, attention_weights, im2col_step)
    return output.to(out_dtype)


@lru_cache(maxsize=None)
def _implementation(device_type: str) -> Tuple[Callable[..., Tensor], Tuple[torch.dtype, ...]]:
    """Choose the implementation for a kind of device.

    Returns:
        A function of the first six arguments of :func:`multi_scale_deformable_attn`, and the dtypes it takes.
    """
    if device_type == 'npu':
        return _npu_attn, (torch.float32,)
    if device_type in _COMPILED_DTYPES and _choice() != 'pytorch' and check_ops_exist():
        return MultiScaleDeformableAttnFunction.apply, _COMPILED_DTYPES[device_type]
    return _pytorch_attn, (torch.float32, torch.float64)


def _choice() -> str:
    """Read the environment variable that names an implementation."""
    choice = os.environ.get(CHOICE, 'auto')
    if choice not in CHOICES:
        raise ValueError(f'{CHOICE}={choice} is not one of {", ".join(CHOICES)}')
    return choice


def _takes_triton(value: Tensor) -> bool:
    """Return whether the Triton kernel is used for these values on CUDA."""
    choice = _choice()
    if choice in ('compiled', 'pytorch'):
        return False
    if choice == 'auto' and value.dtype not in _HALF and check_ops_exist():
        return False
    if value.device not in _triton_passed:
        _triton_passed[value.device] = _try_triton(value.device)
    return _triton_passed[value.device]


def _try_triton(device: torch.device) -> bool:
    """Compare the Triton kernel with the PyTorch implementation in a small case; return whether they agree.

    Triton may be missing, find no C compiler for its launcher, or not support the GPU. No model must be trained with
    wrong results.
    """
    try:
        from recipe.models.deform_attn_check import compare

        compare(device)
    except Exception as error:  # Triton and its drivers raise exceptions of many kinds
        warnings.warn(
            f'Deformable attention does without its Triton kernel on {device}: {type(error).__name__}: {error}',
            stacklevel=2,
        )
        return False
    return True


def _triton_attn(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Call the Triton kernel, with coordinates and weights in the dtype that it takes."""
    from recipe.models.deform_attn_triton import TritonDeformableAttention

    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return TritonDeformableAttention.apply(value, shapes, starts, locations.to(dtype), weights.to(dtype))


def _pytorch_attn(
    value: Tensor, shapes: Union[Tensor, Shapes], starts: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def _rows_attn(value: Tensor, shapes: Shapes, points: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Call :func:`sum_of_rows`, in float32 if the values are in half precision."""
    dtype = value.dtype if value.dtype == torch.float64 else torch.float32
    tensors = [tensor.to(dtype) for tensor in (value, points, offsets, weights)]
    with torch.autocast(value.device.type, enabled=False):
        return sum_of_rows(tensors[0], shapes, *tensors[1:]).to(value.dtype)


def _npu_attn(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    return mx_driving_deformable_attn(value, shapes, starts, locations, weights)

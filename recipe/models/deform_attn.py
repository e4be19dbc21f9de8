"""One multi-scale deformable attention for every device and precision."""

import os
import warnings
from functools import lru_cache
from typing import Callable, Dict, Optional, Sequence, Tuple

import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmcv.utils.ext_loader import check_ops_exist
from mmcv.utils.mx_driving_import import import_mx_driving

from recipe.models.deform_attn_cpu import CPUDeformableAttention
from recipe.models.execution import is_compiling

# What the compiled operator is instantiated for on each kind of device;
# everything else is computed in float32 and cast back. On CUDA it has float16
# too, but with coordinates of that precision, which has 1/16 of a pixel to
# offer at the far end of a map of 128.
_COMPILED_DTYPES = {
    'cuda': (torch.float32, torch.float64),
    'mlu': (torch.float16, torch.float32),
    'musa': (torch.float16, torch.float32, torch.float64),
}
_HALF = (torch.bfloat16, torch.float16)
# Names an implementation for CUDA; for measuring, and where one fails.
CHOICE = 'MMCV_DEFORM_ATTN'
CHOICES = ('auto', 'triton', 'compiled', 'pytorch')
# Whether the Triton kernel gave the right result, by device.
_triton_passed: Dict[torch.device, bool] = {}


def multi_scale_deformable_attn(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    im2col_step: int = 64,
    host_shapes: Optional[Sequence[Tuple[int, int]]] = None,
) -> torch.Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3).

    The implementation follows from the device of ``value``:

    - NPU: ``mx_driving.multi_scale_deformable_attn``;
    - CUDA, MLU and MUSA: mmcv's compiled operator where it was built;
    - CUDA, in half precision or without that operator: the Triton kernel of
      ``deform_attn_triton``, if Triton is there and a small case comes out
      right on the device; the environment variable ``MMCV_DEFORM_ATTN``
      (auto, triton, compiled, pytorch) decides otherwise;
    - CPU: ``CPUDeformableAttention``, unless torch.compile is tracing;
    - everything else: ``multi_scale_deformable_attn_pytorch``.

    The compiled operator comes first in float32, since it is what upstream
    trains with and nothing was measured that speaks against it.

    Bilinear sampling in half precision loses whole pixels at coordinates near
    1, so a half-precision ``value`` is sampled in float32 wherever the
    implementation has no half-precision kernel of its own, and the Triton
    kernel takes coordinates in float32.

    Args:
        value (torch.Tensor): Shape (bs, num_keys, num_heads, head_dim), of
            any floating dtype.
        spatial_shapes (torch.Tensor): (h, w) of each level, shape
            (num_levels, 2), integer.
        level_start_index (torch.Tensor): First key of each level, shape
            (num_levels, ), integer.
        sampling_locations (torch.Tensor): (x, y) in [0, 1], shape
            (bs, num_queries, num_heads, num_levels, num_points, 2).
        attention_weights (torch.Tensor): Shape
            (bs, num_queries, num_heads, num_levels, num_points).
        im2col_step (int): Images per step of the compiled operator.
        host_shapes (Sequence[tuple[int, int]] | None): ``spatial_shapes`` as
            numbers. With them no implementation reads the tensor on the
            host, which on a device would wait for all work before it.

    Returns:
        torch.Tensor: Shape (bs, num_queries, num_heads * head_dim), with the
        dtype of ``value``.

    Raises:
        ImportError: If ``value`` is on an NPU and mx_driving is not
            installed.
    """
    if value.device.type == 'cuda' and _takes_triton(value):
        # Autocast would cast the float32 operands down again.
        with torch.autocast('cuda', enabled=False):
            return _triton_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    attention, dtypes = _implementation(value.device.type)
    if attention in (_cpu_attn, _pytorch_attn) and host_shapes is not None:
        spatial_shapes = host_shapes
    out_dtype = value.dtype
    compute_dtype = out_dtype if out_dtype in dtypes else torch.float32
    value = value.to(compute_dtype)
    sampling_locations = sampling_locations.to(compute_dtype)
    attention_weights = attention_weights.to(compute_dtype)
    # Autocast would cast the float32 operands down again.
    with torch.autocast(value.device.type, enabled=False):
        output = attention(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step)
    return output.to(out_dtype)


@lru_cache(maxsize=None)
def _implementation(device_type: str) -> Tuple[Callable, tuple]:
    """Pick the implementation and the dtypes it takes.

    Args:
        device_type (str): ``torch.device.type`` of the tensors.

    Returns:
        tuple[Callable, tuple[torch.dtype, ...]]: A function of the arguments
        of :func:`multi_scale_deformable_attn`, and its dtypes.
    """
    if device_type == 'npu':
        return _mx_driving_attn, (torch.float32,)
    if device_type in _COMPILED_DTYPES and _choice() != 'pytorch' and check_ops_exist():
        # Its own `apply` is the way into this module.
        compiled = super(MultiScaleDeformableAttnFunction, MultiScaleDeformableAttnFunction).apply
        return compiled, _COMPILED_DTYPES[device_type]
    attention = _cpu_attn if device_type == 'cpu' else _pytorch_attn
    return attention, (torch.float32, torch.float64)


def _choice() -> str:
    """Read the environment variable that names an implementation."""
    choice = os.environ.get(CHOICE, 'auto')
    if choice not in CHOICES:
        raise ValueError(f'{CHOICE}={choice} is not one of {", ".join(CHOICES)}')
    return choice


def _takes_triton(value: torch.Tensor) -> bool:
    """Say whether the Triton kernel computes with these values on CUDA."""
    choice = _choice()
    if choice in ('compiled', 'pytorch'):
        return False
    if choice == 'auto' and value.dtype not in _HALF and check_ops_exist():
        return False
    if value.device not in _triton_passed:
        _triton_passed[value.device] = _try_triton(value.device)
    return _triton_passed[value.device]


def _try_triton(device: torch.device) -> bool:
    """Compare the Triton kernel with the PyTorch form in a small case.

    It may be missing, find no C compiler for its launcher, or not know the
    GPU; a wrong result must not train a model.
    """
    try:
        from recipe.models.deform_attn_check import compare

        compare(device)
    except Exception as error:  # whatever Triton and its drivers raise
        warnings.warn(
            f'Deformable attention does without its Triton kernel on {device}: {type(error).__name__}: {error}',
            stacklevel=2,
        )
        return False
    return True


def _triton_attn(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Call the Triton kernel with coordinates and weights as it takes them.

    ``attention_weights`` are in [0, 1] and may have any precision.
    """
    from recipe.models.deform_attn_triton import TritonDeformableAttention

    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return TritonDeformableAttention.apply(
        value, spatial_shapes, level_start_index, sampling_locations.to(dtype), attention_weights.to(dtype)
    )


def _cpu_attn(value, spatial_shapes, _, locations, weights, __):
    """Give ``CPUDeformableAttention`` its shapes as numbers."""
    if is_compiling():
        return _pytorch_attn(value, spatial_shapes, _, locations, weights, __)
    if isinstance(spatial_shapes, torch.Tensor):
        spatial_shapes = spatial_shapes.tolist()
    return CPUDeformableAttention.apply(value, locations, weights, spatial_shapes)


def _pytorch_attn(value, spatial_shapes, _, locations, weights, __):
    """Take the arguments of the compiled operator."""
    return multi_scale_deformable_attn_pytorch(value, spatial_shapes, locations, weights)


def _mx_driving_attn(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    im2col_step: int,
) -> torch.Tensor:
    """Call Ascend's operator, which knows no ``im2col_step``."""
    mx_driving = import_mx_driving()
    return mx_driving.multi_scale_deformable_attn(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )

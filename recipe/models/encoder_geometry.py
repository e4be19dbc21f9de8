"""Tensors of a multi-scale encoder that depend on feature shapes alone; made once per set of shapes."""

from typing import Any, Callable, Hashable, NamedTuple, Sequence, Tuple

import torch
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from torch import Tensor, nn

from recipe.models.execution import kept_constants

# Training has one set of shapes. Testing of whole images has one for each image size.
_MAX_GEOMETRIES = 16


class EncoderGeometry(NamedTuple):
    """Tensors that depend on shapes alone, for images without padding.

    Attributes:
        positional_encodings: For each level (1, h * w, c).
        reference_points: Normalised (x, y) of each key on each level, shape (1, num_keys, num_levels, 2).
        spatial_shapes: (h, w) of each level, shape (num_levels, 2), int64.
        level_start_index: First key of each level, shape (num_levels, ), int64.
    """

    positional_encodings: Tuple[Tensor, ...]
    reference_points: Tensor
    spatial_shapes: Tensor
    level_start_index: Tensor


def encoder_geometry(
    positional_encoding: nn.Module,
    point_generator: MlvlPointGenerator,
    levels: Sequence[int],
    shapes: Tuple[Tuple[int, int], ...],
    device: torch.device,
) -> EncoderGeometry:
    """Return the geometry of these shapes, which is kept for later calls.

    Args:
        positional_encoding: A module without parameters. The geometries are kept in it.
        point_generator: Computes the centre of each cell.
        levels: Index of each level in ``point_generator``.
        shapes: (h, w) of each level.
        device: Device of the tensors.

    Returns:
        The geometry. It is shared: do not change it in place.
    """
    return _kept(
        positional_encoding,
        (shapes, device),
        lambda: _geometry(positional_encoding, point_generator, levels, shapes, device),
    )


def unpadded_encoding(positional_encoding: nn.Module, feature: Tensor) -> Tensor:
    """Return the encoding of a feature map without padding.

    Args:
        positional_encoding: A ``SinePositionalEncoding``. The encodings are kept in it.
        feature: The feature map, (B, C, h, w).

    Returns:
        (1, h * w, c), float32. It is shared: do not change it in place.
    """
    shape = tuple(feature.shape[-2:])
    return _kept(
        positional_encoding,
        (shape, feature.device),
        lambda: positional_encoding(None, feature[:1]).flatten(2).transpose(1, 2),
    )


def _kept(module: nn.Module, key: Hashable, make: Callable[[], Any]) -> Any:
    """Return the value that a module keeps for a key; make it first if there is none."""
    kept = module.__dict__.setdefault('_geometries', {})
    if key not in kept:
        with kept_constants():
            made = make()
        if len(kept) >= _MAX_GEOMETRIES:
            kept.pop(next(iter(kept)))
        kept[key] = made
    return kept[key]


def _geometry(
    positional_encoding: nn.Module,
    point_generator: MlvlPointGenerator,
    levels: Sequence[int],
    shapes: Tuple[Tuple[int, int], ...],
    device: torch.device,
) -> EncoderGeometry:
    """Compute the geometry as upstream's MSDeformAttnPixelDecoder does."""
    encodings, points, starts = [], [], [0]
    for level, (h, w) in zip(levels, shapes):
        unpadded = torch.zeros((1, h, w), dtype=torch.bool, device=device)
        encodings.append(positional_encoding(unpadded).flatten(2).transpose(1, 2))
        centres = point_generator.single_level_grid_priors((h, w), level, device=device)
        stride_w, stride_h = point_generator.strides[level]
        size = torch.tensor([w * stride_w, h * stride_h], device=device)
        points.append(centres / size)
        starts.append(starts[-1] + h * w)
    reference_points = torch.cat(points)[None, :, None].repeat(1, 1, len(shapes), 1)
    return EncoderGeometry(
        tuple(encodings),
        reference_points,
        torch.tensor(shapes, device=device),
        torch.tensor(starts[:-1], device=device),
    )

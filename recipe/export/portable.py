"""The model in plain operators with free batch, height and width, for torch.export and ONNX.

``make_portable()`` puts these classes into a built model of upstream's classes, as ``recipe.models.accelerate()`` does
with the fast ones. Sizes stay symbolic, so nothing here branches on one or reads one from a tensor. Images come in
multiples of 32 pixels, so no layer has to pad its input to whole patches.
"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiScaleDeformableAttention
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmseg.models.backbones.swin import ShiftWindowMSA
from mmseg.models.utils.embed import AdaptivePadding, PatchMerging
from torch import Tensor, nn

from recipe.models import adopt

STRIDE = 32  # of the last stage


class PortableAdaptivePadding(AdaptivePadding):
    """Padding to whole patches, of which multiples of 32 pixels need none."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, (B, C, H, W)."""
        return x


class PortablePatchMerging(PatchMerging):
    """Patch merging with views in place of ``nn.Unfold``."""

    def forward(self, x: Tensor, input_size: Tuple[int, int]) -> Tuple[Tensor, Tuple[int, int]]:
        """Merge patches of 2 x 2 tokens.

        Args:
            x: (B, H * W, C).
            input_size: H and W, both even.

        Returns:
            (B, H * W / 4, C_out), H / 2 and W / 2.
        """
        height, width = input_size[0] // 2, input_size[1] // 2
        B, _, C = x.shape
        x = x.view(B, height, 2, width, 2, C).permute(0, 1, 3, 5, 2, 4).reshape(B, height * width, 4 * C)
        return self.reduction(self.norm(x) if self.norm else x), (height, width)


class PortableShiftWindowMSA(ShiftWindowMSA):
    """Shifted window attention whose padding and mask follow from symbolic sizes."""

    def forward(self, query: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
        """Compute the same as upstream's method.

        Args:
            query: (B, H * W, C).
            hw_shape: H and W.

        Returns:
            (B, H * W, C).
        """
        B, _, C = query.shape
        (H, W), size, shift = hw_shape, self.window_size, self.shift_size
        rows, columns = (H + size - 1) // size, (W + size - 1) // size
        x = F.pad(query.view(B, H, W, C), (0, 0, 0, columns * size - W, 0, rows * size - H))
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        x = x.reshape(B, rows, size, columns, size, C).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(B * rows * columns, size * size, C)
        x = self.w_msa(x, self._mask(rows, columns, query) if shift else None)
        x = x.reshape(B, rows, columns, size, size, C).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(B, rows * size, columns * size, C)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return self.drop(x[:, :H, :W].reshape(B, H * W, C))

    def _mask(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """-100 between tokens of a window that the shift brought together, else 0; (windows, N, N)."""
        size, shift = self.window_size, self.shift_size

        def regions(count: int) -> Tensor:
            place = torch.arange(count * size, device=like.device)
            return (place >= count * size - size).long() + (place >= count * size - shift).long()

        regions_HW = 3 * regions(rows)[:, None] + regions(columns)[None, :]
        windows = regions_HW.reshape(rows, size, columns, size).permute(0, 2, 1, 3)
        windows = windows.reshape(rows * columns, size * size)
        return (windows[:, :, None] != windows[:, None, :]).to(like.dtype) * -100.0


class PortableDeformableAttention(MultiScaleDeformableAttention):
    """Multi-scale deformable attention by ``grid_sample``, which ONNX has since opset 16."""

    def forward(
        self,
        query: Tensor,
        value: Optional[Tensor] = None,
        identity: Optional[Tensor] = None,
        query_pos: Optional[Tensor] = None,
        reference_points: Optional[Tensor] = None,
        host_shapes: Sequence[Tuple[int, int]] = (),
        **kwargs: Any,
    ) -> Tensor:
        """Compute the same as upstream's method for ``batch_first`` and points without boxes.

        Args:
            query: (B, queries, C).
            value: (B, keys, C). Default: ``query``.
            identity: Added to the result. Default: ``query``.
            query_pos: Added to ``query`` first.
            reference_points: (x, y) in [0, 1], (1, queries, 2).
            host_shapes: (h, w) of each level.
            kwargs: Not used.

        Returns:
            (B, queries, C).
        """
        assert reference_points is not None and self.batch_first
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        B, queries, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        values = _levels(self.value_proj(value).view(B, -1, heads, self.embed_dims // heads), host_shapes)
        offsets = self.sampling_offsets(query).view(B, queries, heads, levels, points, 2)
        weights = self.attention_weights(query).view(B, queries, heads, levels * points).softmax(-1)
        sampled: List[Tensor] = []
        for level, (h, w) in enumerate(host_shapes):
            scale = torch.stack([offsets[..., level, :, 0] / w, offsets[..., level, :, 1] / h], -1)
            grid = 2 * (reference_points[:, :, None, None] + scale) - 1  # (B, queries, heads, points, 2)
            maps = values[level].permute(0, 2, 3, 1).reshape(B * heads, self.embed_dims // heads, h, w)
            grid = grid.transpose(1, 2).reshape(B * heads, queries, points, 2)
            sampled.append(F.grid_sample(maps, grid, 'bilinear', 'zeros', align_corners=False))
        weights = weights.transpose(1, 2).reshape(B * heads, 1, queries, levels * points)
        output = (torch.cat(sampled, -1) * weights).sum(-1).view(B, self.embed_dims, queries).transpose(1, 2)
        return self.output_proj(output) + identity


class PortablePixelDecoder(MSDeformAttnPixelDecoder):
    """The pixel decoder without shapes in tensors and without a padding mask, in which nothing is padded."""

    def forward(self, feats: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        """Compute the same as upstream's method.

        Args:
            feats: Features of the backbone from high to low resolution, each (B, c, h, w).

        Returns:
            The mask features, (B, C, h, w), and features from low to high resolution, each (B, C, h, w).
        """
        levels = feats[::-1][: self.num_encoder_levels]
        shapes = [(x.shape[-2], x.shape[-1]) for x in levels]
        query = torch.cat([conv(x).flatten(2).transpose(1, 2) for conv, x in zip(self.input_convs, levels)], 1)
        positions = [self.postional_encoding(None, x[:1]).flatten(2).transpose(1, 2) for x in levels]
        embeds = self.level_encoding.weight.unbind()
        memory = self.encoder(
            query=query,
            query_pos=torch.cat([position + embed for position, embed in zip(positions, embeds)], 1),
            reference_points=torch.cat([_centres(h, w, query) for h, w in shapes])[None],
            host_shapes=shapes,
            key_padding_mask=None,
            spatial_shapes=None,
            level_start_index=None,
            valid_ratios=None,
        )
        B, _, C = memory.shape
        outs = [part.transpose(1, 2).reshape(B, C, h, w) for part, (h, w) in zip(_levels(memory, shapes), shapes)]
        for level in range(self.num_input_levels - self.num_encoder_levels - 1, -1, -1):
            lateral = self.lateral_convs[level](feats[level])
            above = F.interpolate(outs[-1], lateral.shape[-2:], mode='bilinear', align_corners=False)
            outs.append(self.output_convs[level](lateral + above))
        return self.mask_feature(outs[-1]), outs[: self.num_outs]


def _levels(x: Tensor, shapes: Sequence[Tuple[int, int]]) -> List[Tensor]:
    """Cut (B, keys, ...) into the levels. ONNX's tracer cannot split by free sizes."""
    parts, begin = [], 0
    for h, w in shapes:
        parts.append(x[:, begin : begin + h * w])
        begin = begin + h * w
    return parts


def _centres(h: int, w: int, like: Tensor) -> Tensor:
    """(x, y) in [0, 1] of the centre of each cell, (h * w, 2)."""
    y, x = ((torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size for size in (h, w))
    return torch.stack([x[None, :].expand(h, w), y[:, None].expand(h, w)], -1).reshape(h * w, 2)


# The first base of each class is the upstream class that it replaces.
PORTABLE_CLASSES: Tuple[Type[nn.Module], ...] = (
    PortableAdaptivePadding,
    PortablePatchMerging,
    PortableShiftWindowMSA,
    PortableDeformableAttention,
    PortablePixelDecoder,
)


def make_portable(model: nn.Module) -> None:
    """Replace the parts of a model of upstream's classes that cannot be exported, in place."""
    portable = {cls.__bases__[0]: cls for cls in PORTABLE_CLASSES}
    for module in list(model.modules()):
        if type(module) in portable:
            adopt(module, portable[type(module)])


class Segmentor(nn.Module):
    """A model from images to class scores and labels, as it is exported.

    Args:
        model: mmseg's segmentor of upstream's classes; it is made portable.
        preprocess: Whether normalisation and padding are part of it.
        postprocess: Whether the choice of the labels is part of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, preprocess: bool, postprocess: bool) -> None:
        super().__init__()
        make_portable(model)
        self.backbone: Any = model.backbone
        self.head: Any = model.decode_head
        self.flips_channels = not model.data_preprocessor.channel_conversion  # the model was trained on BGR
        self.preprocess, self.postprocess = preprocess, postprocess
        self.register_buffer('mean', model.data_preprocessor.mean.clone(), persistent=False)
        self.register_buffer('std', model.data_preprocessor.std.clone(), persistent=False)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Compute the scores.

        Args:
            images: With preprocessing RGB, uint8, (B, H, W, 3) of any size; without it normalised RGB, float32,
                (B, 3, H, W), H and W multiples of 32.

        Returns:
            Class scores, float32, (B, C, H, W); and with postprocessing labels, uint8, (B, H, W).
        """
        x = images
        if self.preprocess:
            H, W = images.shape[1:3]
            x = images.permute(0, 3, 1, 2).float()
            x = ((x.flip(1) if self.flips_channels else x) - self.mean) / self.std
            x = F.pad(x, (0, (W + STRIDE - 1) // STRIDE * STRIDE - W, 0, (H + STRIDE - 1) // STRIDE * STRIDE - H))
        logits, masks = (layers[-1] for layers in self.head(self.backbone(x), None))
        masks = F.interpolate(masks, x.shape[-2:], mode='bilinear', align_corners=False).sigmoid()
        scores = torch.einsum('bqc,bqhw->bchw', logits.softmax(-1)[..., :-1], masks)
        if self.preprocess:
            scores = scores[:, :, :H, :W]
        return (scores, scores.argmax(1).to(torch.uint8)) if self.postprocess else (scores,)

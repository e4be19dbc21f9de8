"""The pixel decoder of Mask2Former; its geometry is computed once, and its shapes are known on the host."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from mmdet.models.layers import MSDeformAttnPixelDecoder
from torch import Tensor, nn

from recipe.models.encoder_geometry import encoder_geometry
from recipe.models.half_parameters import half_type, parameters_cast
from recipe.models.onednn_linear import takes_onednn


class FastMSDeformAttnPixelDecoder(MSDeformAttnPixelDecoder):
    """mmdet's pixel decoder without reads of shapes from the device and without a padding mask.

    Upstream makes a padding mask in which nothing is padded.
    """

    def forward(self, feats: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        """Compute the same as upstream's method.

        Args:
            feats: Features of the backbone from high to low resolution, each of shape (B, c, h, w).

        Returns:
            The mask features, (B, C, h, w), and the features for the transformer decoder from low to high resolution,
            each of shape (B, C, h, w).
        """
        batch_size = feats[0].shape[0]
        # Rows of channels need no copies between convolutions, resizing and the linear layers of the encoder.
        channels_last = takes_onednn(feats[0], self.training)
        if channels_last:
            feats = [feat.contiguous(memory_format=torch.channels_last) for feat in feats]
        # From low to high resolution.
        levels = [self.num_input_levels - i - 1 for i in range(self.num_encoder_levels)]
        shapes = tuple(tuple(feats[level].shape[-2:]) for level in levels)
        geometry = encoder_geometry(self.postional_encoding, self.point_generator, levels, shapes, feats[0].device)
        # (B, c, h, w) -> (B, h * w, c)
        inputs = [conv(feats[level]).flatten(2).transpose(1, 2) for conv, level in zip(self.input_convs, levels)]
        query = torch.cat(inputs, dim=1)
        embeds = self.level_encoding.weight.unbind()
        query_pos = torch.cat([position + embed for position, embed in zip(geometry.positional_encodings, embeds)], 1)
        # Those of sampling_offsets stay as they are: the places of the samples are never in half precision.
        cast = [
            one
            for name, layer in self.encoder.named_modules()
            if isinstance(layer, nn.Linear) and not name.endswith('sampling_offsets')
            for one in layer.parameters()
        ]
        with parameters_cast([cast], half_type(query.device)):
            memory = self.encoder(
                query=query,
                query_pos=query_pos.expand(batch_size, -1, -1),
                key_padding_mask=None,
                spatial_shapes=geometry.spatial_shapes,
                reference_points=geometry.reference_points.expand(batch_size, -1, -1, -1),
                level_start_index=geometry.level_start_index,
                valid_ratios=query.new_ones((batch_size, self.num_encoder_levels, 2)),
                host_shapes=shapes,
            )
        # (B, keys, c) -> (B, c, h, w) for each level
        parts = memory.permute(0, 2, 1).split([h * w for h, w in shapes], dim=-1)
        outs = [part.reshape(batch_size, -1, h, w) for part, (h, w) in zip(parts, shapes)]
        if channels_last:
            outs = [out.contiguous(memory_format=torch.channels_last) for out in outs]
        for i in range(self.num_input_levels - self.num_encoder_levels - 1, -1, -1):
            lateral = self.lateral_convs[i](feats[i])
            above = F.interpolate(outs[-1], size=lateral.shape[-2:], mode='bilinear', align_corners=False)
            outs.append(self.output_convs[i](lateral + above))
        return self.mask_feature(outs[-1]), outs[: self.num_outs]

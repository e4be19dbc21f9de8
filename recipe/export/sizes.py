"""Sizes of a Mask2Former with Swin, from the shapes of its tensors."""

from __future__ import annotations

import math
import re
from typing import Any, Dict, Mapping, Tuple

LEVELS, POINTS = 3, 4  # of deformable attention, in all three code bases


def of_weights(weights: Mapping[str, Any], heads: int) -> Dict[str, Any]:
    """Settings of a model, by dotted key, that follow from the shapes of its tensors.

    Args:
        weights: State dict with our names.
        heads: Of the transformer decoder, which no shape tells.

    Raises:
        KeyError: A tensor that each such model has is missing.
    """

    def shape(name: str) -> Tuple[int, ...]:
        return tuple(weights[name].shape)

    def count(pattern: str) -> int:
        return len({found[1] for found in (re.match(pattern, name) for name in weights) if found})

    stages = range(count(r'backbone\.stages\.(\d+)\.'))
    block = 'backbone.stages.{}.blocks.0.'
    tables = [shape(block.format(stage) + 'attn.w_msa.relative_position_bias_table') for stage in stages]
    embed_dims = shape('backbone.patch_embed.projection.weight')[0]
    pixel, decoder = 'decode_head.pixel_decoder.', 'decode_head.transformer_decoder.'
    channels = shape(f'{pixel}level_encoding.weight')[1]
    queries, width = shape('decode_head.query_feat.weight')
    classes = shape('decode_head.cls_embed.weight')[0] - 1
    deformable = shape(f'{pixel}encoder.layers.0.self_attn.attention_weights.weight')[0] // (LEVELS * POINTS)
    encoding = {'num_feats': width // 2}
    return {
        'backbone.init_cfg': None,
        'backbone.embed_dims': embed_dims,
        'backbone.depths': [count(rf'backbone\.stages\.{stage}\.blocks\.(\d+)\.') for stage in stages],
        'backbone.num_heads': [table[1] for table in tables],
        'backbone.window_size': (math.isqrt(tables[0][0]) + 1) // 2,
        'backbone.mlp_ratio': shape(block.format(0) + 'ffn.layers.0.0.weight')[0] // embed_dims,
        'decode_head.in_channels': [embed_dims * 2**stage for stage in stages],
        'decode_head.feat_channels': width,
        'decode_head.out_channels': shape(f'{pixel}mask_feature.weight')[0],
        'decode_head.num_classes': classes,
        'decode_head.num_queries': queries,
        'decode_head.enforce_decoder_input_project': 'decode_head.decoder_input_projs.0.weight' in weights,
        'decode_head.positional_encoding': encoding,
        'decode_head.loss_cls.class_weight': [1.0] * classes + [0.1],
        'decode_head.pixel_decoder.positional_encoding': {'num_feats': channels // 2},
        'decode_head.pixel_decoder.encoder.num_layers': count(r'decode_head\.pixel_decoder\.encoder\.layers\.(\d+)\.'),
        'decode_head.pixel_decoder.encoder.layer_cfg': {
            'self_attn_cfg': {'embed_dims': channels, 'num_heads': deformable},
            'ffn_cfg': {
                'embed_dims': channels,
                'feedforward_channels': shape(f'{pixel}encoder.layers.0.ffn.layers.0.0.weight')[0],
            },
        },
        'decode_head.transformer_decoder.num_layers': count(r'decode_head\.transformer_decoder\.layers\.(\d+)\.'),
        'decode_head.transformer_decoder.layer_cfg': {
            'self_attn_cfg': {'embed_dims': width, 'num_heads': heads},
            'cross_attn_cfg': {'embed_dims': width, 'num_heads': heads},
            'ffn_cfg': {
                'embed_dims': width,
                'feedforward_channels': shape(f'{decoder}layers.0.ffn.layers.0.0.weight')[0],
            },
        },
    }

"""Makes Mask2Formers whose weights are all random."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import torch
from mmengine.config import Config

from recipe.bench import model as bench_model
from recipe.core.paths import ROOT

SMALL = {  # one block with a shifted window is left
    'backbone.depths': [2, 1, 1, 1],
    'decode_head.pixel_decoder.encoder.num_layers': 1,
    'decode_head.transformer_decoder.num_layers': 2,
}

TINY = {  # few queries and points, one layer; windows with and without a shift
    'decode_head.num_queries': 20,
    'decode_head.train_cfg.num_points': 64,
    'decode_head.transformer_decoder.num_layers': 1,
    'decode_head.pixel_decoder.encoder.num_layers': 1,
    'backbone.depths': [2, 1, 1, 1],
}


def random_model(config: str, overrides: Dict[str, Any]) -> Any:
    """A model in eval mode. A freshly made one has zeros, ones and equal biases, which would hide a wrong name."""
    model = bench_model.build(config, overrides)
    drawn = torch.Generator().manual_seed(0)
    head = model.eval().requires_grad_(False).decode_head
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.02)
    # Classes and masks without what all queries and pixels share: then several classes win somewhere.
    found: Dict[str, Any] = {}
    hooks = [
        head.cls_embed.register_forward_hook(lambda _, given, made: found.update(queries=given[0])),
        head.pixel_decoder.mask_feature.register_forward_hook(lambda _, given, made: found.update(masks=made)),
    ]
    for name in ('masks', 'queries'):
        head(model.backbone(torch.randn(1, 3, 128, 256, generator=drawn)), None)
        if name == 'masks':
            head.pixel_decoder.mask_feature.bias.sub_(found['masks'].mean((0, 2, 3)))
            head.mask_embed[4].weight.mul_(4)
        else:
            head.cls_embed.weight.mul_(20)
            head.cls_embed.bias.copy_(-head.cls_embed.weight @ found['queries'].mean((0, 1)))
    for hook in hooks:
        hook.remove()
    return model


def save(model: Any, path: Path, config: str, overrides: Dict[str, Any]) -> Path:
    """Write a checkpoint as a training leaves it, without the optimizer."""
    cfg = Config.fromfile(ROOT / config)
    cfg.merge_from_dict({f'model.{key}': value for key, value in overrides.items()})
    torch.save({'meta': {'cfg': cfg.pretty_text}, 'state_dict': model.state_dict()}, path)
    return path

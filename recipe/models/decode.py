"""The forward pass of the Mask2Former head, without full-size masks.

The mask of a query is the product of its embedding with the mask features. It is computed only when it is needed.
Resizing is linear. So the mask features are resized once per level, and the attention masks between the layers are
computed from them.
"""

import contextlib
from typing import Any, Callable, ContextManager, List, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from mmdet.models.layers import Mask2FormerTransformerDecoderLayer, SinePositionalEncoding
from torch import Tensor, nn
from torch.func import functional_call

from recipe.models.encoder_geometry import unpadded_encoding
from recipe.models.execution import autocasts, device_kind
from recipe.models.masked_attention import Keys, decoder_layer, is_fusible, is_plain, project_keys, self_positions


class QueryPredictions(NamedTuple):
    """Predictions for the learned queries and for the queries after each decoder layer.

    Attributes:
        cls_logits: (L, B, Q, num_classes + 1). L is the number of decoder layers plus one.
        mask_embeds: (L, B, Q, C).
        mask_features: (B, C, h, w).
    """

    cls_logits: Tensor
    mask_embeds: Tensor
    mask_features: Tensor

    def masks(self, layer: int) -> Tensor:
        """Return the mask logits of one layer, (B, Q, h, w)."""
        return torch.einsum('bqc,bchw->bqhw', self.mask_embeds[layer], self.mask_features)

    def masks_of(self, image: int) -> Tensor:
        """Return the mask logits of one image, (L, Q, h, w)."""
        features = self.mask_features[image]
        return torch.matmul(self.mask_embeds[:, image], features.flatten(1)).unflatten(-1, features.shape[-2:])


def can_decode(head: nn.Module) -> bool:
    """Return whether :func:`decode` computes the same as a head's modules.

    Args:
        head: A ``Mask2FormerHead``.

    Returns:
        False if a part of the decoder is of another kind.
    """
    return (
        type(head.decoder_positional_encoding) is SinePositionalEncoding
        and type(head.mask_embed) is nn.Sequential
        and is_plain(head.mask_embed)
        and is_fusible(head.transformer_decoder, Mask2FormerTransformerDecoderLayer)
    )


def _detached(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes the same as a module, with detached parameters.

    Autocast caches its casts of parameters. If it cached a cast that was made without gradients, these parameters would
    get no gradient in the rest of the forward pass. The weight of a linear layer is transposed once here.
    """
    if type(module) is nn.Linear and module.bias is not None and is_plain(module):
        weight, bias = module.weight.detach().t(), module.bias.detach()
        return lambda x: torch.addmm(bias, x, weight)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return lambda x: functional_call(module, parameters, (x,))


class _AttentionMasks:
    """Finds the pixels that each query may attend to in the next layer."""

    def __init__(self, head: nn.Module, mask_features: Tensor, sizes: List[torch.Size]):
        mask_embed: Any = head.mask_embed
        self.steps = [_detached(module) for module in (head.transformer_decoder.post_norm, *mask_embed)]
        mask_features = mask_features.detach()
        if not autocasts(mask_features.device.type):
            mask_features = mask_features.to(head.query_feat.weight.dtype)
        # (B, C, h * w) for each level
        self.features = [
            F.interpolate(mask_features, size, mode='bilinear', align_corners=False).flatten(2) for size in sizes
        ]

    def __call__(self, query: Tensor, level: int) -> Tensor:
        """Threshold the masks of queries at the size of a level.

        Args:
            query: (B * Q, C).
            level: Index of the level.

        Returns:
            Bool, (B, Q, h * w), True if the query may attend to the pixel.
        """
        # As a decorator, no_grad would break the graph of torch.compile.
        with torch.no_grad():
            for step in self.steps:
                query = step(query)
            features = self.features[level]
            embeds = query.view(features.shape[0], -1, query.shape[-1])
            # The same as sigmoid(logit) >= 0.5.
            allowed = torch.bmm(embeds, features) >= 0
            # If a query may attend to no pixel, it attends to all of them.
            return allowed == allowed.any(-1, keepdim=True)


def _level_keys(head: nn.Module, memories: Sequence[Tensor]) -> List[Keys]:
    """Project keys and values for all layers.

    Args:
        head: A ``Mask2FormerHead``.
        memories: Outputs of the pixel decoder from low to high resolution, each (B, C, h, w).

    Returns:
        The keys of each layer.
    """
    layers = head.transformer_decoder.layers
    num_levels: Any = head.num_transformer_feat_level
    level_embeds = head.level_embed.weight.unbind()
    keys: List[Any] = [None] * len(layers)
    for i in range(min(num_levels, len(layers))):
        memory = head.decoder_input_projs[i](memories[i])
        position = unpadded_encoding(head.decoder_positional_encoding, memory)
        # (B, c, h, w) -> (B, h * w, c)
        value = memory.flatten(2).transpose(1, 2) + level_embeds[i]
        key = value + position
        keys[i::num_levels] = project_keys(
            [layer.cross_attn for layer in layers[i::num_levels]],
            key.flatten(0, 1),
            value.flatten(0, 1),
            memory.shape[0],
        )
    return keys


def _rows_in_float32(device: torch.device) -> ContextManager[None]:
    """Context in which the products of the queries are in float32, on an accelerator.

    The queries of a batch are few hundred rows. Their products cost nothing, and the casts that autocast makes for each
    of them are several hundred kernels. Keys, values and their attention stay in half precision.
    """
    if device_kind(device) == 'cpu' or not autocasts(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def decode(head: nn.Module, x: Sequence[Tensor]) -> QueryPredictions:
    """Run pixel decoder and transformer decoder.

    Args:
        head: A ``Mask2FormerHead`` for which :func:`can_decode` holds.
        x: Features of the backbone, each (B, C, h, w).

    Returns:
        The predictions.
    """
    batch_size = x[0].shape[0]
    mask_features, memories = head.pixel_decoder(x)
    keys = _level_keys(head, memories)
    num_levels = head.num_transformer_feat_level
    with _rows_in_float32(mask_features.device):
        attention_masks = _AttentionMasks(head, mask_features, [m.shape[-2:] for m in memories[:num_levels]])

        query = head.query_feat.weight.repeat(batch_size, 1)
        query_pos = head.query_embed.weight.repeat(batch_size, 1)
        positions = self_positions(query_pos)
        queries = [query]
        for i, layer in enumerate(head.transformer_decoder.layers):
            allowed = attention_masks(query, i % num_levels)
            query = decoder_layer(layer, query, query_pos, positions, keys[i], allowed)
            queries.append(query)

        # (L * B * Q, C): all layers at once
        stacked = head.transformer_decoder.post_norm(torch.cat(queries))
        shape = (len(queries), batch_size, -1)
        cls_logits = head.cls_embed(stacked)
        mask_embeds = head.mask_embed(stacked)
    return QueryPredictions(
        cls_logits.view(*shape, cls_logits.shape[-1]), mask_embeds.view(*shape, mask_embeds.shape[-1]), mask_features
    )

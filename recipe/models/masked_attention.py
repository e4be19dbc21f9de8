"""The masked decoder of Mask2Former with fused attention.

The modules hold the parameters. The functions compute the same as the modules' forward methods, for all layers at once
if they share an input. The queries of all images are rows of one matrix, (B * Q, C).
"""

from typing import List, NamedTuple, Type

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmengine.model import BaseModule
from torch import Tensor, nn

from recipe.models.attention import attention as fused_attention
from recipe.models.execution import is_plain
from recipe.models.onednn_linear import onednn_linear, takes_onednn


class Keys(NamedTuple):
    """The inputs of a cross attention besides its queries.

    Attributes:
        query_weight: Projects the queries, (C, C).
        query_bias: Bias of that projection, (C, ).
        key: Projected keys, (B, heads, K, C / heads).
        value: Projected values, (B, heads, K, C / heads).
    """

    query_weight: Tensor
    query_bias: Tensor
    key: Tensor
    value: Tensor


def _drops(module: nn.Module) -> bool:
    """Return whether a module drops anything at random in its present mode."""
    if not module.training:
        return False
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout > 0
    if isinstance(module, DropPath):
        return module.drop_prob > 0
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _fusible_attention(attention: nn.Module) -> bool:
    """Return whether these functions compute the same as an attention module."""
    if type(attention) is not MultiheadAttention:
        return False
    inner = attention.attn
    return (
        type(inner) is nn.MultiheadAttention
        and inner._qkv_same_embed_dim
        and inner.in_proj_bias is not None
        and inner.bias_k is None
        and not inner.add_zero_attn
        and is_plain(attention)
        and is_plain(inner)
    )


def is_fusible(decoder: BaseModule, layer_type: Type[nn.Module]) -> bool:
    """Return whether these functions compute the same as a decoder's layers.

    Args:
        decoder: A ``Mask2FormerTransformerDecoder``.
        layer_type: The class of its layers; a subclass may compute something else.

    Returns:
        False if a layer, an attention or one of its options differs, or if a layer has hooks. Also False if dropout is
        active, because its random numbers depend on the layout of the tensors.
    """
    return not any(_drops(m) for m in decoder.modules()) and all(
        type(layer) is layer_type
        and is_plain(layer)
        and _fusible_attention(layer.cross_attn)
        and _fusible_attention(layer.self_attn)
        for layer in decoder.layers
    )


def _heads(x: Tensor, batch_size: int, num_heads: int) -> Tensor:
    """Reshape (B * K, C) into (B, heads, K, C / heads)."""
    return x.view(batch_size, -1, num_heads, x.shape[-1] // num_heads).transpose(1, 2)


def _project_out(attention: nn.Module, x: Tensor, query: Tensor) -> Tensor:
    """Merge heads (B, heads, Q, D), project, add to the query (B * Q, C)."""
    out = attention.attn.out_proj(x.transpose(1, 2).reshape(query.shape))
    return query + attention.dropout_layer(attention.proj_drop(out))


def project_keys(attentions: List[nn.Module], key: Tensor, value: Tensor, batch_size: int) -> List[Keys]:
    """Project keys and values for all attentions that read the same input.

    Args:
        attentions: Cross attentions.
        key: Input with its position encoding, (B * K, C).
        value: Input, (B * K, C).
        batch_size: B.

    Returns:
        The inputs of each attention.
    """
    weights = [a.attn.in_proj_weight.chunk(3) for a in attentions]
    biases = [a.attn.in_proj_bias.chunk(3) for a in attentions]
    linear = onednn_linear if takes_onednn(key, attentions[0].training) else F.linear
    keys, values = (
        linear(source, torch.cat([w[i] for w in weights]), torch.cat([b[i] for b in biases])).chunk(
            len(attentions), dim=-1
        )
        for i, source in ((1, key), (2, value))
    )
    return [
        Keys(w[0], b[0], _heads(k, batch_size, a.num_heads), _heads(v, batch_size, a.num_heads))
        for a, w, b, k, v in zip(attentions, weights, biases, keys, values)
    ]


def cross_attention(attention: nn.Module, query: Tensor, query_pos: Tensor, keys: Keys, allowed: Tensor) -> Tensor:
    """Let queries attend to the pixels that they are allowed to see.

    Args:
        attention: The cross attention of a layer.
        query: (B * Q, C).
        query_pos: Position encoding of the queries, (B * Q, C).
        keys: Keys of this attention.
        allowed: Bool, (B, Q, K); True if a query sees a key. Each query sees at least one.

    Returns:
        Queries plus the output of the attention, (B * Q, C).
    """
    # With autocast off, the queries may be in float32 and the keys in half precision.
    q = F.linear(query + query_pos, keys.query_weight, keys.query_bias)
    rows = _heads(q.to(keys.key.dtype), len(allowed), attention.num_heads)
    out = fused_attention(rows, keys.key, keys.value, allowed.unsqueeze(1))
    return _project_out(attention, out.to(q.dtype), query)


def self_attention(attention: nn.Module, query: Tensor, positions: Tensor, batch_size: int) -> Tensor:
    """Let the queries of an image attend to each other.

    Args:
        attention: The self attention of a layer.
        query: (B * Q, C).
        positions: Added to the queries before they are projected to q, k and v, (3, B * Q, C).
        batch_size: B.

    Returns:
        Queries plus the output of the attention, (B * Q, C).
    """
    inner = attention.attn
    dim, num_heads = inner.embed_dim, inner.num_heads
    # One batched product of three matrices instead of two products with parts of a parameter.
    qkv = torch.baddbmm(
        inner.in_proj_bias.view(3, 1, dim), query + positions, inner.in_proj_weight.view(3, dim, dim).transpose(1, 2)
    )
    qkv = qkv.view(3, batch_size, -1, num_heads, dim // num_heads)
    q, k, v = qkv.transpose(2, 3).unbind()
    out = fused_attention(q, k, v)
    return _project_out(attention, out, query)


def self_positions(query_pos: Tensor) -> Tensor:
    """Return the positions that :func:`self_attention` adds for q, k and v.

    Args:
        query_pos: Position encoding of the queries, (B * Q, C).

    Returns:
        (3, B * Q, C); zeros for v.
    """
    return torch.stack((query_pos, query_pos, torch.zeros_like(query_pos)))


def decoder_layer(
    layer: nn.Module, query: Tensor, query_pos: Tensor, positions: Tensor, keys: Keys, allowed: Tensor
) -> Tensor:
    """Run a ``Mask2FormerTransformerDecoderLayer`` with fused attention.

    Args:
        layer: The layer.
        query: (B * Q, C).
        query_pos: Position encoding of the queries, (B * Q, C).
        positions: Positions for its self attention, (3, B * Q, C).
        keys: Keys of its cross attention.
        allowed: Bool, (B, Q, K); True if a query sees a key.

    Returns:
        (B * Q, C).
    """
    query = cross_attention(layer.cross_attn, query, query_pos, keys, allowed)
    query = layer.norms[0](query)
    query = self_attention(layer.self_attn, query, positions, len(allowed))
    query = layer.norms[1](query)
    return layer.norms[2](layer.ffn(query))

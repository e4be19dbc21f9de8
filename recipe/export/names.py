"""Names of Mask2Former's tensors in three code bases: mmsegmentation (ours), facebookresearch and Hugging Face.

The three models compute the same. They differ in names, in the order of Swin's merged patches, and in whether the
projections of query, key and value are one tensor.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Pattern, Tuple

import torch
from torch import Tensor

FACEBOOK, HUGGINGFACE = 'facebook', 'huggingface'
_HF_SWIN, _HF_PIXELS = 'model.pixel_level_module.encoder.', 'model.pixel_level_module.decoder.'

# {i} and {j} are numbers, * is weight or bias, @ is * or a statistic of a batch norm, and [q|k|v] are tensors that are
# joined along their first axis. Each section has the prefixes of its names in our, facebookresearch's and Hugging
# Face's code, then the names.
# fmt: off
_SECTIONS: Tuple[Tuple[Tuple[str, str, str], Tuple[Tuple[str, str, str], ...]], ...] = (
    (('backbone.', 'backbone.', _HF_SWIN), (
        ('patch_embed.projection.*', 'patch_embed.proj.*', 'embeddings.patch_embeddings.projection.*'),
        ('patch_embed.norm.*', 'patch_embed.norm.*', 'embeddings.norm.*'),
        ('norm0.*', 'norm0.*', 'hidden_states_norms.stage1.*'),
        ('norm1.*', 'norm1.*', 'hidden_states_norms.stage2.*'),
        ('norm2.*', 'norm2.*', 'hidden_states_norms.stage3.*'),
        ('norm3.*', 'norm3.*', 'hidden_states_norms.stage4.*'),
    )),
    (('backbone.stages.{i}.', 'backbone.layers.{i}.', _HF_SWIN + 'encoder.layers.{i}.'), (
        ('blocks.{j}.norm1.*', 'blocks.{j}.norm1.*', 'blocks.{j}.layernorm_before.*'),
        ('blocks.{j}.norm2.*', 'blocks.{j}.norm2.*', 'blocks.{j}.layernorm_after.*'),
        ('blocks.{j}.attn.w_msa.relative_position_bias_table', 'blocks.{j}.attn.relative_position_bias_table',
         'blocks.{j}.attention.self.relative_position_bias_table'),
        ('blocks.{j}.attn.w_msa.qkv.*', 'blocks.{j}.attn.qkv.*', 'blocks.{j}.attention.self.[query|key|value].*'),
        ('blocks.{j}.attn.w_msa.proj.*', 'blocks.{j}.attn.proj.*', 'blocks.{j}.attention.output.dense.*'),
        ('blocks.{j}.ffn.layers.0.0.*', 'blocks.{j}.mlp.fc1.*', 'blocks.{j}.intermediate.dense.*'),
        ('blocks.{j}.ffn.layers.1.*', 'blocks.{j}.mlp.fc2.*', 'blocks.{j}.output.dense.*'),
        ('downsample.norm.*', 'downsample.norm.*', 'downsample.norm.*'),
        ('downsample.reduction.weight', 'downsample.reduction.weight', 'downsample.reduction.weight'),
    )),
    (('decode_head.pixel_decoder.', 'sem_seg_head.pixel_decoder.', _HF_PIXELS), (
        ('input_convs.{i}.conv.*', 'input_proj.{i}.0.*', 'input_projections.{i}.0.*'),
        ('input_convs.{i}.gn.*', 'input_proj.{i}.1.*', 'input_projections.{i}.1.*'),
        ('level_encoding.weight', 'transformer.level_embed', 'level_embed'),
        ('lateral_convs.0.conv.weight', 'adapter_1.weight', 'adapter_1.0.weight'),
        ('lateral_convs.0.gn.*', 'adapter_1.norm.*', 'adapter_1.1.*'),
        ('output_convs.0.conv.weight', 'layer_1.weight', 'layer_1.0.weight'),
        ('output_convs.0.gn.*', 'layer_1.norm.*', 'layer_1.1.*'),
        ('mask_feature.*', 'mask_features.*', 'mask_projection.*'),
    )),
    (('decode_head.pixel_decoder.encoder.layers.{i}.', 'sem_seg_head.pixel_decoder.transformer.encoder.layers.{i}.',
      _HF_PIXELS + 'encoder.layers.{i}.'), (
        ('self_attn.sampling_offsets.*', 'self_attn.sampling_offsets.*', 'self_attn.sampling_offsets.*'),
        ('self_attn.attention_weights.*', 'self_attn.attention_weights.*', 'self_attn.attention_weights.*'),
        ('self_attn.value_proj.*', 'self_attn.value_proj.*', 'self_attn.value_proj.*'),
        ('self_attn.output_proj.*', 'self_attn.output_proj.*', 'self_attn.output_proj.*'),
        ('norms.0.*', 'norm1.*', 'self_attn_layer_norm.*'),
        ('norms.1.*', 'norm2.*', 'final_layer_norm.*'),
        ('ffn.layers.0.0.*', 'linear1.*', 'fc1.*'),
        ('ffn.layers.1.*', 'linear2.*', 'fc2.*'),
    )),
    (('decode_head.transformer_decoder.layers.{i}.', 'sem_seg_head.predictor.transformer_',
      'model.transformer_module.decoder.layers.{i}.'), (
        ('cross_attn.attn.in_proj_*', 'cross_attention_layers.{i}.multihead_attn.in_proj_*', 'cross_attn.in_proj_*'),
        ('cross_attn.attn.out_proj.*', 'cross_attention_layers.{i}.multihead_attn.out_proj.*', 'cross_attn.out_proj.*'),
        ('self_attn.attn.in_proj_*', 'self_attention_layers.{i}.self_attn.in_proj_*', 'self_attn.[q|k|v]_proj.*'),
        ('self_attn.attn.out_proj.*', 'self_attention_layers.{i}.self_attn.out_proj.*', 'self_attn.out_proj.*'),
        ('norms.0.*', 'cross_attention_layers.{i}.norm.*', 'cross_attn_layer_norm.*'),
        ('norms.1.*', 'self_attention_layers.{i}.norm.*', 'self_attn_layer_norm.*'),
        ('norms.2.*', 'ffn_layers.{i}.norm.*', 'final_layer_norm.*'),
        ('ffn.layers.0.0.*', 'ffn_layers.{i}.linear1.*', 'fc1.*'),
        ('ffn.layers.1.*', 'ffn_layers.{i}.linear2.*', 'fc2.*'),
    )),
    (('decode_head.', 'sem_seg_head.predictor.', 'model.transformer_module.'), (
        ('transformer_decoder.post_norm.*', 'decoder_norm.*', 'decoder.layernorm.*'),
        ('decoder_input_projs.{i}.*', 'input_proj.{i}.*', 'input_projections.{i}.*'),
        ('query_feat.weight', 'query_feat.weight', 'queries_features.weight'),
        ('query_embed.weight', 'query_embed.weight', 'queries_embedder.weight'),
        ('level_embed.weight', 'level_embed.weight', 'level_embed.weight'),
        ('mask_embed.0.*', 'mask_embed.layers.0.*', 'decoder.mask_predictor.mask_embedder.0.0.*'),
        ('mask_embed.2.*', 'mask_embed.layers.1.*', 'decoder.mask_predictor.mask_embedder.1.0.*'),
        ('mask_embed.4.*', 'mask_embed.layers.2.*', 'decoder.mask_predictor.mask_embedder.2.0.*'),
    )),
    (('decode_head.', 'sem_seg_head.predictor.', ''), (
        ('cls_embed.*', 'class_embed.*', 'class_predictor.*'),
    )),
)
# Sections of two columns: Hugging Face's Mask2Former has no ResNet. The names of facebookresearch's are detectron2's.
_RESNET: Tuple[Tuple[Tuple[str, str], Tuple[Tuple[str, str], ...]], ...] = (
    (('backbone.', 'backbone.stem.'), (
        ('conv1.weight', 'conv1.weight'),
        ('bn1.@', 'conv1.norm.@'),
    )),
    *(((f'backbone.layer{stage}.{{i}}.', f'backbone.res{stage + 1}.{{i}}.'), (
        ('conv{j}.weight', 'conv{j}.weight'),
        ('bn{j}.@', 'conv{j}.norm.@'),
        ('downsample.0.weight', 'shortcut.weight'),
        ('downsample.1.@', 'shortcut.norm.@'),
    )) for stage in (1, 2, 3, 4)),
)
# fmt: on
# The norm after Swin's last stage, which Hugging Face's backbone has and does not use.
UNUSED = r'.*\.encoder\.(swin\.)?layernorm\.(weight|bias)'
# Tensors that each code base computes from its settings: window indices, class weights, mean and deviation of images.
# The number of batches that a batch norm has seen is not used, as its momentum is fixed.
_COMPUTED = re.compile(
    rf'.*\.relative_position_index|criterion\.empty_weight|pixel_mean|pixel_std|.*\.num_batches_tracked|{UNUSED}'
)
# Tensors that only one code base has under this name, for its older files.
_OLD_NAMES = {'sem_seg_head.predictor.static_query.weight': 'sem_seg_head.predictor.query_feat.weight'}


class _Rule(NamedTuple):
    """How one kind of tensor is called.

    Attributes:
        ours: Template of our name.
        theirs: Templates of the other names. If there are several, ours is these tensors joined.
    """

    ours: str
    theirs: Tuple[str, ...]


class Renamed(NamedTuple):
    """Tensors with our names.

    Attributes:
        weights: By our name.
        unknown: Names of the other tensors, which have no counterpart.
    """

    weights: Dict[str, Tensor]
    unknown: List[str]


def style_of(names: Mapping[str, Tensor]) -> Optional[str]:
    """Tell from the names of tensors whose they are: ``facebook``, ``huggingface`` or None."""
    for start, style in (('sem_seg_head.', FACEBOOK), ('model.pixel_level_module.', HUGGINGFACE)):
        if any(name.startswith(start) for name in names):
            return style
    return None


def to_foreign(weights: Mapping[str, Tensor], style: str) -> Dict[str, Tensor]:
    """Rename our tensors.

    Args:
        weights: Our state dict.
        style: ``facebook`` or ``huggingface``.

    Returns:
        All tensors but those that each code base computes itself.

    Raises:
        KeyError: A tensor has no counterpart; holds its name.
    """
    rules = [(_pattern(rule.ours), rule) for rule in _rules(style)]
    made: Dict[str, Tensor] = {}
    for name, value in weights.items():
        if _COMPUTED.fullmatch(name):
            continue
        for pattern, rule in rules:
            found = pattern.fullmatch(name)
            if found:
                parts = _reordered(name, value, ours=False).chunk(len(rule.theirs))
                made.update(zip((_fill(template, found) for template in rule.theirs), parts))
                break
        else:
            raise KeyError(name)
    return made


def from_foreign(weights: Mapping[str, Tensor], style: str) -> Renamed:
    """Give tensors of another code base our names.

    Args:
        weights: Its state dict.
        style: ``facebook`` or ``huggingface``.
    """
    rules = [(_pattern(template), rule) for rule in _rules(style) for template in rule.theirs]
    made: Dict[str, Tensor] = {}
    unknown: List[str] = []
    for name, value in weights.items():
        if _COMPUTED.fullmatch(name):
            continue
        for pattern, rule in rules:
            found = pattern.fullmatch(_OLD_NAMES.get(name, name))
            if not found:
                continue
            parts = [value]
            if len(rule.theirs) > 1:
                parts = [weights[one] for one in (_fill(part, found) for part in rule.theirs) if one in weights]
            if len(parts) == len(rule.theirs) and len({part.shape[1:] for part in parts}) == 1 and value.dim():
                ours = _fill(rule.ours, found)
                if ours not in made:
                    made[ours] = _reordered(ours, torch.cat(parts) if len(parts) > 1 else value, ours=True)
                break
        else:
            unknown.append(name)
    return Renamed(made, unknown)


def _rules(style: str) -> Iterator[_Rule]:
    column = 1 if style == FACEBOOK else 2
    sections: Tuple[Any, ...] = (*_SECTIONS, *_RESNET) if style == FACEBOOK else _SECTIONS
    for prefixes, rows in sections:
        for row in rows:
            theirs = prefixes[column] + row[column]
            joined = re.search(r'\[(.+)\]', theirs)
            parts = [theirs.replace(joined[0], part) for part in joined[1].split('|')] if joined else [theirs]
            yield _Rule(prefixes[0] + row[0], tuple(parts))


def _pattern(template: str) -> Pattern[str]:
    text = re.escape(template).replace(r'\*', '(?P<kind>weight|bias)')
    text = text.replace('@', '(?P<kind>weight|bias|running_mean|running_var)')
    return re.compile(re.sub(r'\\\{(\w)\\\}', r'(?P<\1>[0-9]+)', text))


def _fill(template: str, found: re.Match) -> str:
    parts = found.groupdict()
    return re.sub('[*@]', parts.pop('kind', ''), template).format(**parts)


def _reordered(name: str, value: Tensor, ours: bool) -> Tensor:
    """Bring the four merged patches of Swin's downsampling into our order, or into that of the others.

    Ours is channel, row, column, as ``nn.Unfold`` has it. Theirs is column, row, channel.
    """
    if not re.match(r'backbone\.stages\..*\.downsample\.', name) or value.shape[-1] % 4:
        return value
    channels = value.shape[-1] // 4
    return value.unflatten(-1, (2, 2, channels) if ours else (channels, 2, 2)).transpose(-1, -3).flatten(-3)

"""Makes a checkpoint of ours from a model of Hugging Face's or facebookresearch's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.core import console, files
from recipe.export import foreign, sizes
from recipe.export.foreign import TITLES, ForeignWeights

_HEADS = 8  # of the transformer decoder, unless Hugging Face's config says otherwise
_SOME = 5  # names in a message
# Settings of Hugging Face's config and the only value that our model has.
_FIXED = {'pre_norm': False, 'activation_function': 'relu', 'common_stride': 4, 'feature_strides': [4, 8, 16, 32]}


def convert(source: Path, style: str, out: Path) -> str:
    """Write a checkpoint.

    Args:
        source: Folder of Hugging Face's ``save_pretrained``, or facebookresearch's ``.pkl`` or ``.pth`` file.
        style: ``huggingface`` or ``facebook``.
        out: The checkpoint; holds weights and config, no optimizer.

    Returns:
        How many tensors were taken, in words.

    Raises:
        console.UserError: It is of another trainer or another model; names the tensors that do not fit.
    """
    import torch

    from recipe.engine.checkpoint import misfit
    from recipe.engine.config import build_model

    found = foreign.read(source)
    if found.style != style:
        raise console.UserError(f"{source} has {TITLES[found.style]}'s names of tensors, not {TITLES[style]}'s")
    if found.unknown:
        raise console.UserError(
            f'{source} is of another model: {len(found.unknown)} tensors have no counterpart: {some(found.unknown)}'
        )
    config, classes = _config(found)
    model = build_model(config)
    wrong = misfit({'state_dict': found.weights}, model)
    if wrong is not None:
        raise console.UserError(f'{source} {wrong}')
    model.load_state_dict(found.weights, strict=False)
    meta: Dict[str, Any] = {'cfg': config.pretty_text, 'converted_from': TITLES[style]}
    if classes is not None:
        meta['dataset_meta'] = classes
    with files.whole(out, to_disk=True) as partial:
        torch.save({'meta': meta, 'state_dict': model.state_dict()}, str(partial))
    computed = len(model.state_dict()) - len(found.weights)
    return f'{len(found.weights)} tensors taken, {computed} computed from the settings, none left over'


def some(names: List[str]) -> str:
    """The first names of a list, for a message."""
    return ', '.join(names[:_SOME]) + (', ...' if len(names) > _SOME else '')


def _config(found: ForeignWeights) -> Tuple[Any, Optional[Dict[str, Any]]]:
    """The recipe's config with the sizes of these weights, and the classes that Hugging Face's config names."""
    from recipe.engine import config as run_config

    for name, value in _FIXED.items():
        if found.config.get(name, value) != value:
            raise console.UserError(f'{found.path}: {name} is {found.config[name]}, and our model has {value}')
    config = run_config.load(run_config.RECIPE)
    try:
        found_sizes = sizes.of_weights(found.weights, int(found.config.get('num_attention_heads', _HEADS)))
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise console.UserError(f'{found.path} lacks {error}, which each Mask2Former with Swin has') from None
    config.merge_from_dict({f'model.{key}': value for key, value in found_sizes.items()})
    labels = found.config.get('id2label')
    count = found_sizes['decode_head.num_classes']
    if not isinstance(labels, dict) or len(labels) != count:
        return config, None
    return config, {'classes': [str(labels.get(str(number), number)) for number in range(count)]}

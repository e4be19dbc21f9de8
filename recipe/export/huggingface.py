"""Writes a model as a folder of Hugging Face's transformers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import torch

from recipe.core import console
from recipe.export import full_size_processor, names, sizes
from recipe.export.parity import Predict

_PROCESSOR = Path(full_size_processor.__file__)


def write(trained: Any, folder: Path, _: Any) -> None:
    """Write config, weights and image processor.

    Args:
        trained: A ``TrainedModel`` of upstream's classes.
        folder: An empty folder.

    Raises:
        console.UserError: The model has parts that Hugging Face's Mask2Former has not.
    """
    from safetensors.torch import save_file

    model = trained.model
    if not model.data_preprocessor.channel_conversion:
        raise console.UserError('--format=huggingface: the model takes BGR images, and its processor gives RGB')
    weights = model.state_dict()
    try:
        tensors = names.to_foreign(weights, names.HUGGINGFACE)
        found = sizes.of_weights(weights, model.decode_head.num_heads)
    except KeyError as error:
        raise console.UserError(f"--format=huggingface: Hugging Face's Mask2Former has no {error}") from None
    tensors['criterion.empty_weight'] = torch.tensor(model.decode_head.class_weight)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, str(folder / 'model.safetensors'), {'format': 'pt'})
    _config(found, trained.classes).save_pretrained(str(folder))
    (folder / 'preprocessor_config.json').write_text(json.dumps(_processor(model), indent=2) + '\n', encoding='utf-8')
    shutil.copyfile(str(_PROCESSOR), str(folder / _PROCESSOR.name))


def _config(found: Dict[str, Any], classes: Tuple[str, ...]) -> Any:
    from transformers import Mask2FormerConfig, SwinConfig

    backbone, head = ({key.partition('.')[2]: value for key, value in found.items() if key.startswith(part)}
                      for part in ('backbone.', 'decode_head.'))  # fmt: skip
    pixel, decoder = head['pixel_decoder.encoder.layer_cfg'], head['transformer_decoder.layer_cfg']
    return Mask2FormerConfig(
        architectures=['Mask2FormerForUniversalSegmentation'],
        backbone_config=SwinConfig(
            embed_dim=backbone['embed_dims'],
            depths=backbone['depths'],
            num_heads=backbone['num_heads'],
            window_size=backbone['window_size'],
            mlp_ratio=float(backbone['mlp_ratio']),
            drop_path_rate=0.0,
            out_features=['stage1', 'stage2', 'stage3', 'stage4'],
        ),
        feature_size=pixel['self_attn_cfg']['embed_dims'],
        mask_feature_size=head['out_channels'],
        hidden_dim=head['feat_channels'],
        encoder_feedforward_dim=pixel['ffn_cfg']['feedforward_channels'],
        encoder_layers=head['pixel_decoder.encoder.num_layers'],
        decoder_layers=head['transformer_decoder.num_layers'] + 1,  # it counts the learned queries
        num_attention_heads=decoder['cross_attn_cfg']['num_heads'],
        dim_feedforward=decoder['ffn_cfg']['feedforward_channels'],
        enforce_input_projection=head['enforce_decoder_input_project'],
        num_queries=head['num_queries'],
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )


def _processor(model: Any) -> Dict[str, Any]:
    """Content of preprocessor_config.json: images are normalised and not resized."""
    preprocessor = model.data_preprocessor
    name = _PROCESSOR.stem
    return {
        'image_processor_type': 'Mask2FormerImageProcessor',
        'auto_map': {'AutoImageProcessor': f'{name}.{full_size_processor.FullSizeMask2FormerImageProcessor.__name__}'},
        'do_resize': False,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': (preprocessor.mean.flatten().double() / 255).tolist(),
        'image_std': (preprocessor.std.flatten().double() / 255).tolist(),
        'size_divisor': 32,
        'ignore_index': model.decode_head.ignore_index,
        'do_reduce_labels': False,
    }


def read(_: Any, folder: Path, __: Any) -> Predict:
    """Load a folder with transformers.

    Raises:
        console.UserError: transformers does not take all of its tensors.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    model, info = Mask2FormerForUniversalSegmentation.from_pretrained(
        str(folder), local_files_only=True, output_loading_info=True
    )
    wrong = [str(name) for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys') for name in info[key]]
    wrong = [name for name in wrong if not re.fullmatch(names.UNUSED, name)]
    if wrong:
        raise console.UserError(f'transformers does not take {wrong[0]} ({len(wrong)} tensors)')
    processor = full_size_processor.FullSizeMask2FormerImageProcessor.from_pretrained(str(folder))
    model.eval()

    def predict(picture: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        height, width = picture.shape[:2]
        with torch.no_grad():
            outputs = model(pixel_values=processor(picture, return_tensors='pt')['pixel_values'])
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(height, width)])[0]
        return processor.semantic_scores(outputs)[0, :, :height, :width].numpy(), labels.numpy()

    return predict

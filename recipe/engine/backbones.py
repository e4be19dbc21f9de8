"""The backbones of Mask2Former that ``--backbone`` knows. Each has a config that inherits upstream's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipe.core import console
from recipe.core.paths import CONFIGS


def config_file(name: str) -> Path:
    """The config of a backbone on Cityscapes.

    Args:
        name: One of ``recipe.core.run_options.BACKBONES``.
    """
    return CONFIGS / f'mask2former_{name}_cityscapes.py'


def exchange(config: Any, other: Any) -> None:
    """Give a config the backbone of another one.

    Upstream's configs of one data set differ in these settings only: the backbone with its pretrained weights and its
    drop path, the channels that the head takes, and the multipliers of learning rate and weight decay.

    Args:
        config: ``mmengine.Config``; changed in place.
        other: ``mmengine.Config`` of ``config_file``.

    Raises:
        console.UserError: The config is no Mask2Former.
    """
    head = config.model.get('decode_head')
    if not isinstance(head, dict) or 'Mask2FormerHead' not in str(head.get('type')):
        raise console.UserError(
            '--backbone: the model of --config is no Mask2Former', 'leave out --backbone, and change the config'
        )
    config.model['backbone'] = other.model.backbone
    head['in_channels'] = other.model.decode_head.in_channels
    config.optim_wrapper['paramwise_cfg'] = other.optim_wrapper.paramwise_cfg

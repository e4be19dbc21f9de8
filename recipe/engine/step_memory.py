"""Measures the peak memory of one training step: ``python recipe memory CONFIG DEVICE``.

The model, the precision, the optimizer and the number of images are those of the config. The images are noise, and each
holds all classes, so the losses take as much memory as they can. Prints one line of JSON.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from typing import Any, Dict, Iterable, Tuple

import torch
from torch import Tensor

from recipe.engine import peak_memory


def measure(config: Any, device: str) -> Dict[str, int]:
    """Measure a step.

    Args:
        config: Resolved ``mmengine.Config``.
        device: ``npu``, ``cuda`` or ``cpu``.

    Returns:
        Bytes: ``weights`` (with buffers), ``average`` (of --ema, else 0), ``gradients``, ``optimizer``, ``step``
        (activations and what else a step takes for a while, beside the gradients) and ``peak``, which is their sum, on
        a CPU with the process itself. On an accelerator also ``card``, the memory of the card.
    """
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from recipe.data.random_batch import random_batch, samples
    from recipe.engine import accumulation, classes, components, size  # noqa: F401  components registers the optimizer
    from recipe.engine.runner import adapt_model

    init_default_scope(config.get('default_scope', 'mmseg'))
    config.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model: Any = adapt_model(MODELS.build(config.model), config)[0]
    model.init_weights()
    model.to(device).train()
    average = copy.deepcopy(model) if config.default_hooks.get('ema') else None
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = min(2, config.train_cfg.get('accumulate', 1))  # from the second on, a part adds nothing
    images = config.train_dataloader['batch_size'] // config.train_cfg.get('accumulate', 1)
    height, width = size.crop(config)
    block = math.gcd(math.gcd(height, width), 16)
    drawn = random_batch(images * parts, height, width, classes=classes.require(config), block=block)
    batch = samples(drawn)

    for parameter in trained:  # a step with zero gradients makes the optimizer's state, and leaves it small
        parameter.grad = torch.zeros_like(parameter)
    wrapper.optimizer.step()
    wrapper.optimizer.zero_grad()

    def step() -> None:
        accumulation.forward_and_backward(model, wrapper, batch, parts)
        wrapper.step()
        wrapper.zero_grad()

    found = peak_memory.peak(device, step)
    gradients = _bytes(trained)
    result = {
        'weights': _bytes(_tensors(model)),
        'average': _bytes(_tensors(average)) if average is not None else 0,
        'gradients': gradients,
        'optimizer': _bytes(value for state in wrapper.optimizer.state.values() for value in state.values()),
        'step': max(0, found['above_before_bytes'] - gradients),
        'peak': found['peak_bytes'],
    }
    if device != 'cpu':
        result['card'] = int(getattr(torch, device).get_device_properties(0).total_memory)
    return result


def _tensors(model: Any) -> Iterable[Tensor]:
    return (*model.parameters(), *model.buffers())


def _bytes(values: Iterable[Any]) -> int:
    """Bytes of tensors; those that share their memory count once."""
    by_place: Dict[Tuple[Any, int], int] = {}
    for value in values:
        if isinstance(value, Tensor):
            by_place[value.device, value.data_ptr()] = value.numel() * value.element_size()
    return sum(by_place.values())


def main() -> None:
    """Entry point; see the module's docstring."""
    from mmengine.config import Config
    from mmseg.engine.device import prepare_device

    from recipe.engine.precision import make_sums_repeatable, set_tf32

    config = Config.fromfile(sys.argv[1])
    device = prepare_device(config, sys.argv[2])
    if device == 'cpu':
        make_sums_repeatable()
    if config.get('allow_tf32') is not None:
        set_tf32(device, config.allow_tf32)
    print(json.dumps(measure(config, device)))

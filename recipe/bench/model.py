"""Builds the model of a config, and compares the results of two models."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, Dict, List, Optional, Tuple

import torch

from recipe.core.paths import ROOT
from recipe.data.random_batch import random_batch, samples

__all__ = [
    'build',
    'build_pair',
    'losses',
    'predict',
    'random_batch',
    'relative_difference',
    'samples',
    'step',
]
DEMO = 'configs/demo.py'
RECIPE = 'configs/mask2former_swin-b_cityscapes.py'


def build(config: str = DEMO, overrides: Optional[Dict[str, Any]] = None, seed: int = 0, device: str = 'cpu') -> Any:
    """Build the model of a config, from scratch and in training mode.

    Args:
        config: Path, relative to the repository or absolute.
        overrides: Of the model, by dotted key: ``{'decode_head.num_queries': 20}``.
        seed: Seed of its weights.
        device: Device to put it on.

    Returns:
        The segmentor (nn.Module).
    """
    from mmengine.config import Config
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    cfg = Config.fromfile(ROOT / config)
    cfg.model.backbone.init_cfg = None  # the pretrained weights may be out of reach
    cfg.merge_from_dict({f'model.{key}': value for key, value in (overrides or {}).items()})
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.to(device).train()


def build_pair(*args: Any, **kwargs: Any) -> Tuple[Any, Any]:
    """Build upstream's model, and an accelerated copy of it; takes the arguments of ``build``."""
    from recipe.models import accelerate

    plain = build(*args, **kwargs)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    return plain, fast


def losses(
    model: Any, batch: Dict[str, List[torch.Tensor]], seed: int = 0, amp: str = 'off'
) -> Dict[str, torch.Tensor]:
    """Loss terms of a batch, with gradient.

    Args:
        model: The segmentor.
        batch: From ``random_batch`` or of that form.
        seed: Seed of torch's random state before the forward pass.
        amp: ``off``, ``bf16`` or ``fp16``.
    """
    data = model.data_preprocessor(samples(batch), True)
    torch.manual_seed(seed)
    device = next(model.parameters()).device.type
    dtype = {'off': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}[amp]
    with torch.autocast(device, dtype=dtype) if dtype else contextlib.nullcontext():
        return model(**data, mode='loss')


def step(
    model: Any, batch: Dict[str, List[torch.Tensor]], seed: int = 0, amp: str = 'off', gradients: bool = True
) -> Dict[str, Any]:
    """Run one forward and backward pass; the weights stay as they are.

    Args:
        model: The segmentor.
        batch: See ``losses``.
        seed: See ``losses``.
        amp: See ``losses``.
        gradients: Whether to return them.

    Returns:
        ``losses``: terms by name, without gradient; ``gradients``: by parameter name, for those that got one.
    """
    model.zero_grad(set_to_none=True)
    terms = losses(model, batch, seed, amp)
    total: Any = sum(value for name, value in terms.items() if 'loss' in name)
    total.backward()
    result = {'losses': {name: value.detach().cpu() for name, value in terms.items()}}
    if gradients:
        result['gradients'] = {
            name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None
        }
    return result


def predict(model: Any, batch: Dict[str, List[torch.Tensor]]) -> List[torch.Tensor]:
    """Logits of each image in evaluation mode, (classes, height, width); the mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            data = model.data_preprocessor(samples(batch), False)
            return [sample.seg_logits.data.cpu() for sample in model(**data, mode='predict')]
    finally:
        model.train(was_training)


def relative_difference(theirs: Any, ours: Any) -> float:
    """The largest relative difference between two results.

    Args:
        theirs: A tensor, a number, or a dict or sequence of them; the reference.
        ours: The same structure.

    Returns:
        Largest ``norm(ours - theirs) / norm(theirs)`` over the tensors, with 0 / 0 as 0; infinite if one is not finite.

    Raises:
        AssertionError: The structures differ.
    """
    if isinstance(theirs, dict):
        assert theirs.keys() == ours.keys(), sorted(theirs.keys() ^ ours.keys())
        return max((relative_difference(theirs[key], ours[key]) for key in theirs), default=0.0)
    if isinstance(theirs, (list, tuple)):
        assert len(theirs) == len(ours), (len(theirs), len(ours))
        return max((relative_difference(*pair) for pair in zip(theirs, ours)), default=0.0)
    one, other = (torch.as_tensor(value, dtype=torch.float64) for value in (theirs, ours))
    assert one.shape == other.shape, (one.shape, other.shape)
    difference, scale = (other - one).norm().item(), one.norm().item()
    if difference == 0:
        return 0.0
    return difference / scale if scale and difference < float('inf') else float('inf')

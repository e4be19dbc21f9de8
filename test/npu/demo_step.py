"""One training step of the demo's model, as the recipe trains it, on any device: same weights, images and draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch

from recipe.bench import model as bench_model
from recipe.engine import config as run_config
from recipe.launch import options
from recipe.models import accelerate

SEED = 7
SIZE = (64, 128)  # height, width


def config(device: str, amp: str = 'off') -> Any:
    """The demo's config for a device.

    Args:
        device: ``npu`` or ``cpu``.
        amp: ``off``, ``bf16`` or ``fp16``.
    """
    cfg = run_config.make(options.read('full', ['--demo', f'--amp={amp}']), device, Path('no_data'))
    cfg.model.data_preprocessor.size = SIZE
    return cfg


def model(cfg: Any, device: str) -> torch.nn.Module:
    """The model, in training mode, with weights that depend on nothing but SEED."""
    import mmseg.engine  # noqa: F401  registers what the config names
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    MMLogger.get_instance('demo_step', log_level='WARNING')  # a line for each parameter otherwise
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    built = MODELS.build(cfg.model)
    built.init_weights()
    if cfg.fast:
        accelerate(built)
    for name, parameter in built.named_parameters():
        if 'sampling_offsets' in name:
            # They begin at whole pixels, where the slope of the bilinear map is another on each side.
            parameter.data.add_(torch.rand_like(parameter) * 0.01 + 0.1)
    return built.train().to(device)


def batch(size: int = 2, first: int = 0, shape: Tuple[int, int] = SIZE) -> Dict[str, List[Any]]:
    """Images and labels as the loader gives them: blocks of some classes, a border that is ignored.

    Args:
        size: Images.
        first: Number of the first image; the same number is the same image.
        shape: Height and width.
    """
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    inputs, samples = [], []
    for number in range(first, first + size):
        random = np.random.RandomState(number)
        label = np.kron(random.randint(0, 19, (4, 8)), np.ones((shape[0] // 4, shape[1] // 8), np.int64))
        label[:4] = 255
        image = random.randint(0, 256, (3, *shape)).astype(np.uint8)
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(label)[None].long()))
        sample.set_metainfo(dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
        inputs.append(torch.from_numpy(image))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def optimizer_of(cfg: Any, built: torch.nn.Module) -> Any:
    """The optimizer wrapper of the config."""
    from mmengine.optim import build_optim_wrapper

    return build_optim_wrapper(built, cfg.optim_wrapper)


def clear_gradients(built: torch.nn.Module) -> None:
    """Set all gradients to zero, as ``run`` leaves them in place."""
    for parameter in built.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def run(built: torch.nn.Module, wrapper: Any, data: Dict[str, List[Any]], seed: int = SEED) -> Dict[str, float]:
    """Train one step; the random points are the same on every device.

    Args:
        built: The model.
        wrapper: Its optimizer wrapper.
        data: From ``batch``.
        seed: Of the random points.

    Returns:
        The losses, as logged. The gradients, clipped, are left in the parameters.
    """
    wrapper.zero_grad = lambda **_: None
    torch.manual_seed(seed)
    np.random.seed(seed)
    logged = built.train_step(data, wrapper)
    return {name: float(value) for name, value in logged.items()}


def step(device: str, amp: str = 'off', **settings: Any) -> Tuple[Dict[str, float], torch.nn.Module, Any]:
    """Build everything and train one step.

    Args:
        device: ``npu`` or ``cpu``.
        amp: ``off``, ``bf16`` or ``fp16``.
        settings: Of the optimizer wrapper.

    Returns:
        Losses, the model after the step and the optimizer wrapper.
    """
    cfg = config(device, amp)
    cfg.optim_wrapper.update(settings)
    built = model(cfg, device)
    wrapper = optimizer_of(cfg, built)
    return run(built, wrapper, batch()), built, wrapper


def gradients(built: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """The gradients of all parameters, on the CPU."""
    return {name: parameter.grad.cpu() for name, parameter in built.named_parameters()}


def relative_difference(grads: Dict[str, torch.Tensor], expected: Dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients together, over the norm of the expected ones."""
    return bench_model.relative_difference(
        *(torch.cat([one[name].flatten() for name in expected]) for one in (expected, grads))
    )


def check_same(
    losses: Dict[str, float],
    grads: Dict[str, torch.Tensor],
    expected_losses: Dict[str, float],
    expected_grads: Dict[str, torch.Tensor],
) -> None:
    """Check that two devices computed the same step up to rounding.

    Raises:
        AssertionError: Names the loss or parameter that differs.
    """
    assert losses.keys() == expected_losses.keys() and grads.keys() == expected_grads.keys()
    for name, expected in expected_losses.items():
        assert math.isclose(losses[name], expected, rel_tol=1e-4), f'{name} is {losses[name]}, expected {expected}'
    largest = max(float(grad.abs().max()) for grad in expected_grads.values())
    for name, expected in expected_grads.items():
        difference = float((grads[name] - expected).abs().max())
        allowed = 3e-3 * float(expected.abs().max()) + 1e-4 * largest
        assert difference <= allowed, f'gradient of {name} differs by {difference}, allowed is {allowed}'

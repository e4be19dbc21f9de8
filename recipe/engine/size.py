"""Disk space, shared memory and loader processes that a training needs."""

from __future__ import annotations

import math
from typing import Any, Tuple

# A checkpoint holds each parameter and AdamW's two moments in float32.
CHECKPOINT_BYTES_PER_PARAMETER = 12
AVERAGE_BYTES_PER_PARAMETER = 4  # the moving average of --ema, beside the parameter
LOG_BYTES = 64 << 20
# An image has three bytes per pixel. Its label map has one, or eight (int64) with upstream's own transforms.
SAMPLE_BYTES_PER_PIXEL = 3 + 8
CROP = (512, 1024)  # (H, W) if the config names none
# Seconds of one core to load a training image, from PNG and from the decoded cache: bench.py loader on the machine of
# docs/performance.md.
PNG_S, CACHE_S = 0.027, 0.009
# Share of its time that a loader process may be busy, so that a slow image does not stop the card.
BUSY = 0.8


def disk_bytes(config: Any, model: Any, existing: int = 0) -> int:
    """Upper bound of a run's further checkpoints and logs, in bytes.

    Args:
        config: ``mmengine.Config``; without a checkpoint hook, as in a performance run, it writes none.
        model: ``torch.nn.Module``.
        existing: Checkpoints that the run has already.
    """
    hook = config.default_hooks.get('checkpoint')
    if not hook:
        return LOG_BYTES
    max_iters = config.train_cfg['max_iters']
    interval, kept = hook.get('interval', max_iters), hook.get('max_keep_ckpts', -1)
    # A checkpoint is written beside the one that it replaces, and the best one is kept too.
    most = -(-max_iters // interval) + 1 if interval > 0 else 2
    if kept > 0:
        most = min(most, kept + 2)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    average = AVERAGE_BYTES_PER_PARAMETER if config.default_hooks.get('ema') else 0
    return max(1, most - existing) * (CHECKPOINT_BYTES_PER_PARAMETER + average) * parameters + LOG_BYTES


def shared_memory_bytes(config: Any, batch_size: int, num_workers: int, prefetch_factor: int) -> int:
    """Bytes of /dev/shm that one rank's batches take between its loader processes and the training process.

    Args:
        config: ``mmengine.Config`` or None. A sample has the size that its data preprocessor names.
        batch_size: Images per card.
        num_workers: Loader processes per card.
        prefetch_factor: Batches that each process prepares ahead.
    """
    height, width = crop(config)
    # The training reads one more batch while the others wait.
    batches = num_workers * prefetch_factor + min(num_workers, 1)
    return batches * batch_size * height * width * SAMPLE_BYTES_PER_PIXEL


def loader_processes(images_per_s: float, image_s: float) -> int:
    """Loader processes that a card needs.

    Args:
        images_per_s: Images that the card trains on in a second.
        image_s: Seconds of one core to load an image.
    """
    return max(1, math.ceil(images_per_s * image_s / BUSY))


def crop(config: Any) -> Tuple[int, int]:
    """Height and width of the images that the model trains on."""
    model = (config or {}).get('model') or {}
    size = (model.get('data_preprocessor') or {}).get('size')
    return tuple(size) if size else CROP

"""Disk space and shared memory that a training needs."""

from __future__ import annotations

from typing import Any, Tuple

# A checkpoint holds each parameter and AdamW's two moments in float32. Two are kept while a third is written.
CHECKPOINT_BYTES_PER_PARAMETER = 12
CHECKPOINTS = 3
LOG_BYTES = 64 << 20
# An image has three bytes per pixel. Its label map has one, or eight (int64) with upstream's own transforms.
SAMPLE_BYTES_PER_PIXEL = 3 + 8
CROP = (512, 1024)  # (H, W) if the config names none


def disk_bytes(writes_checkpoints: bool, model: Any) -> int:
    """Upper bound of a run's checkpoints and logs, in bytes.

    Args:
        writes_checkpoints: Whether the run writes checkpoints; a performance run writes none.
        model: ``torch.nn.Module``.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    checkpoints = CHECKPOINTS * CHECKPOINT_BYTES_PER_PARAMETER * parameters
    return (checkpoints if writes_checkpoints else 0) + LOG_BYTES


def shared_memory_bytes(config: Any, batch_size: int, num_workers: int, prefetch_factor: int) -> int:
    """Bytes of /dev/shm that one rank's batches take between its loader processes and the training process.

    Args:
        config: ``mmengine.Config`` or None. A sample has the size that its data preprocessor names.
        batch_size: Images per card.
        num_workers: Loader processes per card.
        prefetch_factor: Batches that each process prepares ahead.
    """
    height, width = _crop(config)
    # The training reads one more batch while the others wait.
    batches = num_workers * prefetch_factor + min(num_workers, 1)
    return batches * batch_size * height * width * SAMPLE_BYTES_PER_PIXEL


def _crop(config: Any) -> Tuple[int, int]:
    model = (config or {}).get('model') or {}
    size = (model.get('data_preprocessor') or {}).get('size')
    return tuple(size) if size else CROP

"""How much a training takes: on disk, and in shared memory."""

from __future__ import annotations

from typing import Any, Tuple

# A checkpoint holds each parameter and AdamW's two moments in float32; two are kept, a third is being written.
CHECKPOINT_BYTES_PER_PARAMETER = 12
CHECKPOINTS = 3
LOG_BYTES = 64 << 20
# A picture is three bytes a pixel; its label map is one, or eight (int64) with upstream's own transforms.
SAMPLE_BYTES_PER_PIXEL = 3 + 8
CROP = (512, 1024)  # where the config names none


def disk_bytes(writes_checkpoints: bool, model: Any) -> int:
    """Bytes that checkpoints and logs of a run take at most.

    Args:
        writes_checkpoints: A performance run keeps none.
        model: ``torch.nn.Module``.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    checkpoints = CHECKPOINTS * CHECKPOINT_BYTES_PER_PARAMETER * parameters
    return (checkpoints if writes_checkpoints else 0) + LOG_BYTES


def shared_memory_bytes(config: Any, batch_size: int, num_workers: int, prefetch_factor: int) -> int:
    """Bytes of /dev/shm that the batches of one rank take on their way from its loader processes.

    Args:
        config: ``mmengine.Config`` or None; the data preprocessor's size is that of a sample.
        batch_size: Images per card.
        num_workers: Loader processes per card.
        prefetch_factor: Batches that each prepares ahead.
    """
    height, width = _crop(config)
    # One more is being read while the others wait.
    batches = num_workers * prefetch_factor + min(num_workers, 1)
    return batches * batch_size * height * width * SAMPLE_BYTES_PER_PIXEL


def _crop(config: Any) -> Tuple[int, int]:
    model = (config or {}).get('model') or {}
    size = (model.get('data_preprocessor') or {}).get('size')
    return tuple(size) if size else CROP

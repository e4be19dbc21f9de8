"""One rank of a distributed training step of the demo's model, started by torchrun.

    torchrun --nproc_per_node=2 two_ranks_job.py FOLDER npu|cpu right|no_all_reduce ...

Rank 0 writes its losses and gradients to FOLDER/right.pt and so on, each of a step of its own.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Dict, Tuple
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import distributed as dist

import demo_step


def step(device: str, rank: int, all_reduce: bool) -> Tuple[Dict[str, float], Dict[str, torch.Tensor]]:
    """Train one step; every rank has other images.

    Args:
        device: ``npu`` or ``cpu``.
        rank: Of this process.
        all_reduce: False is a fault: each rank keeps its own gradients.

    Returns:
        Losses and gradients of this rank.
    """
    cfg = demo_step.config(device)
    wrapped = MMDistributedDataParallel(
        demo_step.model(cfg, device), device_ids=[rank] if device == 'npu' else None, broadcast_buffers=False
    )
    with contextlib.ExitStack() as faults:
        if not all_reduce:
            faults.enter_context(wrapped.no_sync())
            faults.enter_context(mock.patch.object(dist, 'all_reduce', lambda *_, **__: None))
        losses = demo_step.run(wrapped, demo_step.optimizer_of(cfg, wrapped), demo_step.batch(first=2 * rank))
    return losses, demo_step.gradients(wrapped)


def main() -> None:
    """Entry point; see the module's docstring."""
    folder, device, outs = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if device == 'npu':
        import torch_npu  # noqa: F401
    from mmseg.engine.device import BACKENDS, prepare_device

    prepare_device(Config(dict(env_cfg=dict(dist_cfg=dict()))), device)
    dist.init_process_group(BACKENDS[device])
    rank = dist.get_rank()
    if device == 'npu':
        torch.npu.set_device(rank)
    for name in outs:
        result = step(device, rank, all_reduce=name != 'no_all_reduce')
        if rank == 0:
            torch.save(result, folder / f'{name}.pt')
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main()

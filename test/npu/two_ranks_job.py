"""One rank of a distributed training step of the demo's model, started by torchrun.

    torchrun --nproc_per_node=2 two_ranks_job.py FOLDER

Rank 0 writes its losses and gradients to FOLDER/gloo.pt, hccl.pt and no_all_reduce.pt, each of a step of its own.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Dict, Tuple
from unittest import mock

import torch
from mmengine.config import Config
from torch import distributed as dist

import demo_step
from recipe.engine.data_parallel import BucketedDataParallel


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
    wrapped = BucketedDataParallel(demo_step.model(cfg, device))
    with contextlib.ExitStack() as faults:
        if not all_reduce:
            faults.enter_context(wrapped.no_sync())
            faults.enter_context(mock.patch.object(dist, 'all_reduce', lambda *_, **__: None))
        losses = demo_step.run(wrapped, demo_step.optimizer_of(cfg, wrapped), demo_step.batch(first=2 * rank))
    return losses, demo_step.gradients(wrapped)


def main() -> None:
    """Entry point; see the module's docstring."""
    import torch_npu  # noqa: F401
    from mmseg.engine.device import prepare_device

    folder = Path(sys.argv[1])
    prepare_device(Config(dict(env_cfg=dict(dist_cfg=dict()))), 'npu')
    dist.init_process_group('cpu:gloo,npu:hccl')
    rank = dist.get_rank()
    torch.npu.set_device(rank)
    for name, device in (('gloo', 'cpu'), ('hccl', 'npu'), ('no_all_reduce', 'npu')):
        result = step(device, rank, all_reduce=name != 'no_all_reduce')
        if rank == 0:
            torch.save(result, folder / f'{name}.pt')
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main()

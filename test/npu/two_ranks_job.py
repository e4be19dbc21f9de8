"""One rank of a distributed training step of the demo's model, started by torchrun.

    torchrun --nproc_per_node=2 two_ranks_job.py OUT.pt npu|cpu [no_all_reduce]

Rank 0 writes its losses and gradients.
"""

import sys
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import distributed as dist

import demo_step


def main() -> None:
    """Entry point; see the module's docstring."""
    out, device = sys.argv[1:3]
    if device == 'npu':
        import torch_npu  # noqa: F401
    from mmseg.engine.device import BACKENDS, prepare_device

    prepare_device(Config(dict(env_cfg=dict(dist_cfg=dict()))), device)
    dist.init_process_group(BACKENDS[device])
    rank = dist.get_rank()
    if device == 'npu':
        torch.npu.set_device(rank)
    cfg = demo_step.config(device)
    wrapped = MMDistributedDataParallel(
        demo_step.model(cfg, device), device_ids=[rank] if device == 'npu' else None, broadcast_buffers=False
    )
    data = demo_step.batch(first=2 * rank)
    if sys.argv[3:] == ['no_all_reduce']:
        with wrapped.no_sync(), mock.patch.object(dist, 'all_reduce', lambda *_, **__: None):
            losses = demo_step.run(wrapped, demo_step.optimizer_of(cfg, wrapped), data)
    else:
        losses = demo_step.run(wrapped, demo_step.optimizer_of(cfg, wrapped), data)
    if rank == 0:
        torch.save((losses, demo_step.gradients(wrapped)), out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main()

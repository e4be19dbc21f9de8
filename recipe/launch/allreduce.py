"""One rank of the doctor's all-reduce, started by torchrun: ``allreduce DEVICE BYTES REPETITIONS RESULT.json``.

All ranks add up a tensor and check the sum. Rank 0 writes the result: the seconds of each repetition, and the
difference between the machines' clocks in seconds.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from pathlib import Path

TIMEOUT_S = 120  # for a rank to wait for the others


def main() -> None:
    """Entry point; see the module's docstring."""
    device, size_bytes, repetitions, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    import torch
    import torch.distributed as dist

    if device == 'npu':
        import torch_npu  # noqa: F401  adds torch.npu and the backend
    if device != 'cpu':
        getattr(torch, device).set_device(int(os.environ['LOCAL_RANK']))
    backend = {'npu': 'hccl', 'cuda': 'nccl', 'cpu': 'gloo'}[device]
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=TIMEOUT_S))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    seconds = []
    for _ in range(repetitions + 1):  # the first repetition sets up the connections
        tensor = torch.full((size_bytes // 4,), float(rank + 1), device=device)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(tensor)
        total = tensor.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
        # Small whole numbers are exact in float32, in any order of addition.
        if not bool((tensor == world_size * (world_size + 1) / 2).all()):
            raise ArithmeticError(f'rank {rank}: the sum over all ranks is wrong (mean {total / tensor.numel()})')
    dist.barrier()
    now = time.time()
    clocks = [torch.zeros(1, dtype=torch.int32, device=device) for _ in range(world_size)]
    mine = torch.tensor([int(now) % (1 << 30)], dtype=torch.int32, device=device)
    dist.all_gather(clocks, mine)  # in a variable, so that no thread of gloo has to free it: see engine.termination
    apart = max(int(clock) for clock in clocks) - min(int(clock) for clock in clocks)
    if rank == 0:
        figures = {'world_size': world_size, 'backend': backend, 'seconds': seconds[1:], 'clocks_apart_s': apart}
        result.write_text(json.dumps(figures), encoding='utf-8')
    dist.barrier()
    dist.destroy_process_group()

"""One rank of test_collectives.py: does the same over HCCL with tensors of the NPU and over gloo with those of the CPU.

    torchrun --nproc_per_node=N test/npu/collectives_job.py NAME ...

Differences end it with a message.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Callable, Dict

import torch
import torch_npu  # noqa: F401  adds torch.npu and the backend hccl
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANK = int(os.environ['RANK'])
RANKS = int(os.environ['WORLD_SIZE'])
JOBS: Dict[str, Callable[[], None]] = {}


def job(function: Callable[[], None]) -> Callable[[], None]:
    """Make a function one that the command line can name."""
    JOBS[function.__name__] = function
    return function


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """This rank's numbers."""
    random = torch.Generator().manual_seed(RANK)
    return (torch.randn(shape, generator=random) * 3).to(dtype)


def require(same: bool, what: str, npu: torch.Tensor, cpu: torch.Tensor) -> None:
    """End the rank unless something holds."""
    if not same:
        sys.exit(f'rank {RANK}: {what}: {npu.flatten()[:5]} over HCCL, {cpu.flatten()[:5]} over gloo')


def compare(what: str, run: Callable[[torch.Tensor, dist.ProcessGroup], torch.Tensor], given: torch.Tensor) -> None:
    """Compare what a collective gives over both backends.

    With two ranks there is one order in which to add, so the bits are the same; gloo's order of more ranks is another
    than the emulator's.
    """
    cpu = run(given.clone(), GLOO)
    npu = run(given.npu(), dist.group.WORLD).cpu()
    if RANKS == 2 or not cpu.is_floating_point():
        same = torch.equal(npu, cpu)
    else:
        step = torch.finfo(cpu.dtype).eps * RANKS  # of a sum that is rounded once for each rank
        same = torch.allclose(npu, cpu, rtol=step, atol=10 * step)
    require(same and npu.dtype == cpu.dtype, what, npu, cpu)


@job
def collectives() -> None:
    """Every collective that torch.distributed offers and HCCL knows."""

    def all_reduce(op):
        def run(tensor, group):
            dist.all_reduce(tensor, op, group)
            return tensor

        return run

    def broadcast(tensor, group):
        dist.broadcast(tensor, 1, group)
        return tensor

    def reduce(tensor, group):
        dist.reduce(tensor, 1, group=group)
        return tensor if RANK == 1 else tensor.new_zeros(1)

    def all_gather(tensor, group):
        out = [torch.empty_like(tensor) for _ in range(RANKS)]
        dist.all_gather(out, tensor, group)
        return torch.stack(out)

    def all_gather_into(tensor, group):
        if group is GLOO:  # torch 2.1's has it in the other form only
            return all_gather(tensor, group).flatten(0, 1)
        out = tensor.new_empty(RANKS * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(out, tensor, group)
        return out

    def scatter(tensor, group):
        out = torch.empty_like(tensor)
        dist.scatter(out, [tensor + rank for rank in range(RANKS)] if RANK == 0 else None, 0, group)
        return out

    def ring(tensor, group):
        out = torch.empty_like(tensor)
        following, before = (RANK + 1) % RANKS, (RANK - 1) % RANKS
        for sender in range(RANKS):
            if sender == RANK:
                dist.send(tensor, following, group)
            elif sender == before:
                dist.recv(out, before, group)
        return out

    for dtype in (torch.float32, torch.int64, torch.int32, torch.int8):
        for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.PRODUCT):
            compare(f'all_reduce {op} {dtype}', all_reduce(op), values(1000, dtype=dtype))
    compare('all_reduce of float16', all_reduce(dist.ReduceOp.SUM), values(1000).half())
    compare('all_reduce of several rounds', all_reduce(dist.ReduceOp.SUM), values(3, 1024, 1024))
    for dtype in (torch.float32, torch.int64, torch.uint8):
        given = values(3, 5).abs().to(dtype)
        for run in (broadcast, all_gather, all_gather_into, scatter):
            compare(f'{run.__name__} of {dtype}', run, given)
    compare('reduce', reduce, values(7))
    compare('send and recv', ring, values(7))
    # Nor has it these two.
    given = values(RANKS, 6)
    out = torch.empty(6).npu()
    dist.reduce_scatter_tensor(out, given.npu().flatten())
    dist.all_reduce(given, group=GLOO)
    require(torch.allclose(out.cpu(), given[RANK], rtol=1e-6), 'reduce_scatter', out.cpu(), given[RANK])
    out = torch.empty(RANKS).npu()
    dist.all_to_all_single(out, torch.arange(RANKS).float().npu() + 10 * RANK)
    expected = torch.arange(RANKS).float() * 10 + RANK
    require(torch.equal(out.cpu(), expected), 'all_to_all', out.cpu(), expected)


@job
def objects() -> None:
    """What mmengine gathers after validation and broadcasts before training."""
    mine = {'rank': RANK, 'text': 'x' * (1000 * RANK + 1)}
    found = [None] * RANKS
    dist.all_gather_object(found, mine)
    given = [mine]
    dist.broadcast_object_list(given, 1)
    dist.barrier()
    if [item['rank'] for item in found] != list(range(RANKS)) or given[0]['rank'] != 1:
        sys.exit(f'rank {RANK}: {found} {given}')


class Net(nn.Module):
    """Parameters of several shapes, one of which no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 3))
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A loss."""
        return self.body(x).square().mean()


@job
def gradients() -> None:
    """DistributedDataParallel averages gradients over HCCL as it does over gloo, over several steps and buckets."""
    torch.manual_seed(RANK)  # DDP has to bring all to rank 0's parameters
    start = Net().state_dict()
    models = {}
    for device, group in (('cpu', GLOO), ('npu', dist.group.WORLD)):
        model = Net()
        model.load_state_dict(start)
        models[device] = DistributedDataParallel(
            model.to(device), process_group=group, find_unused_parameters=True, bucket_cap_mb=0.001
        )
    for step in range(3):
        given = values(4, 5) + step
        for device, model in models.items():
            model.zero_grad()
            model(given.to(device)).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
        for (name, npu), cpu in zip(models['npu'].named_parameters(), models['cpu'].parameters()):
            for what, left, right in ((name, npu, cpu), (f'gradient of {name}', npu.grad, cpu.grad)):
                if right is not None:
                    left = left.detach().cpu()
                    require(torch.allclose(left, right, rtol=1e-5, atol=1e-6), f'{what}, step {step}', left, right)
                    require(bool(right.abs().sum() > 0), f'{what}: nothing to compare', left, right)


@job
def killed() -> None:
    """A rank ends without a word while the others wait for it."""
    dist.barrier()
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(3).npu())


@job
def missing() -> None:
    """A rank leaves out an all_reduce."""
    if RANK == 0:
        dist.all_reduce(torch.ones(3).npu())
    dist.all_reduce(torch.ones(4).npu())


if __name__ == '__main__':
    torch.npu.set_device(RANK)
    dist.init_process_group('hccl')
    GLOO = dist.new_group(backend='gloo')
    for name in sys.argv[1:]:
        JOBS[name]()
    torch.npu.synchronize()  # collectives may still be queued
    dist.destroy_process_group()
    print(f'rank {RANK} done', flush=True)

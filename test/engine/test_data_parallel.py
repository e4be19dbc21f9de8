"""The average of gradients over real ranks, beside DDP's."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from recipe.engine import data_parallel
from recipe.engine.data_parallel import BucketedDataParallel
from recipe.engine.runner import RecipeRunner
from resume_job import CONTEXT, free_port

pytestmark = pytest.mark.trains


class Ignoring(torch.autograd.Function):
    """Returns its first input; the second one takes part without a gradient, as a block that drop path leaves out."""

    @staticmethod
    def forward(ctx, x, weight):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Net(nn.Module):
    """Convolution, two branches, and a scale that only some ranks use.

    Args:
        seed: Of the weights.
        ignored: Whether the scale gets no gradient.
        swapped: Whether the branches, and so their gradients, are computed in the other order.
        recomputed: Whether the first branch is computed again in the backward pass, by a backward pass in it.
        unused: Whether a layer takes no part.
    """

    def __init__(self, seed=0, ignored=False, swapped=False, recomputed=False, unused=False):
        super().__init__()
        torch.manual_seed(seed)
        self.scale = nn.Parameter(torch.ones(3))
        self.stem = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.extra = nn.Linear(2, 2) if unused else None
        self.ignored, self.swapped, self.recomputed = ignored, swapped, recomputed

    def forward(self, x):
        x = Ignoring.apply(x, self.scale) if self.ignored else x * self.scale.view(3, 1, 1)
        x = self.norm(self.stem(x.to(memory_format=torch.channels_last))).mean((2, 3))
        first = partial(checkpoint, self.first, use_reentrant=True) if self.recomputed else self.first
        parts = {}
        for name in ('second', 'first') if self.swapped else ('first', 'second'):
            parts[name] = first(x) if name == 'first' else self.second(x)
        return self.frozen(parts['first'] * parts['second'].exp()).pow(2).sum()


class Copies(TorchDispatchMode):
    """Counts the operators that write gradients to their places."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.found[func.overloadpacket.__name__] += 1
        return result


def as_rank(rank, world, port, job, folder):
    """Run a job as one rank, and leave there what it returns."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    distributed.init_process_group('gloo')
    torch.save(job(rank), folder / f'{rank}.pt')
    distributed.barrier()
    distributed.destroy_process_group()


def results(job, world, folder):
    """What a job returns in each rank."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    ranks = [CONTEXT.Process(target=as_rank, args=(rank, world, port, job, folder)) for rank in range(world)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(600)
    assert [one.exitcode for one in ranks] == [0] * world
    return [torch.load(folder / f'{rank}.pt') for rank in range(world)]


def pictures(rank, number):
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(10 * number + rank))


def gradients(model):
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


def train(rank, wrap, options, parts=1, set_to_none=True, ranks_differ=False):
    """Gradients of three steps, of ``parts`` backward passes each, as one rank."""
    own = {**options, **({'ignored': rank == 0, 'swapped': rank == 0} if ranks_differ else {})}
    data_parallel.FIRST_BUCKET_BYTES, data_parallel.BUCKET_BYTES = 64, 256
    model = wrap(Net(seed=rank, **own))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for number in range(3):
        for part in range(parts):
            with nullcontext() if part == parts - 1 else model.no_sync():
                loss = model(pictures(rank, parts * number + part))
            loss.backward()
        found.append(gradients(model))
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    return found


DDP = partial(MMDistributedDataParallel, broadcast_buffers=False)


def pairs_of_gradients(rank, world_options):
    return {name: train(rank, wrap, **world_options) for name, wrap in (('ddp', DDP), ('ours', BucketedDataParallel))}


@pytest.mark.parametrize(
    ('world', 'options'),
    [
        (2, dict(options={})),
        (2, dict(options={}, parts=3)),
        (2, dict(options={}, set_to_none=False)),
        (2, dict(options={'recomputed': True})),
        (2, dict(options={}, ranks_differ=True)),
        (3, dict(options={})),
    ],
    ids=['two', 'parts', 'zeros', 'computed twice', 'ranks differ', 'three'],
)
def test_gradients_are_those_of_ddp(world, options, tmp_path):
    for found in results(partial(pairs_of_gradients, world_options=options), world, tmp_path):
        for ours, theirs in zip(found['ours'], found['ddp']):
            assert ours.keys() == theirs.keys()
            assert ours['module.scale'].any() and not any(name.startswith('module.frozen') for name in ours)
            for name, value in ours.items():
                if world == 2:
                    assert torch.equal(value, theirs[name]), name
                torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7)


def differing_gradients(rank):
    model = Net(seed=5)
    model(pictures(rank, 0)).backward()
    return gradients(model)


def test_without_an_average_the_ranks_differ(tmp_path):
    """The comparison above sees a missing average: the gradients of the ranks are not equal by themselves."""
    first, second = results(differing_gradients, 2, tmp_path)
    assert not torch.equal(first['first.weight'], second['first.weight'])


def operators(rank):
    model = BucketedDataParallel(Net())
    loss = model(pictures(rank, 0))
    with Copies() as copies:
        loss.backward()
    grads = [param.grad for param in model.parameters() if param.requires_grad]
    (bucket,) = model._buckets
    same = all(grad.untyped_storage().data_ptr() == bucket.flat.untyped_storage().data_ptr() for grad in grads)
    return dict(copies.found), len(grads), same


def test_one_operator_fills_a_bucket(tmp_path):
    found, count, same = results(operators, 1, tmp_path)[0]
    assert count == 9 and same  # gradients are views of the bucket
    assert found['cat'] == 1 and not {'copy_', 'mul_', '_foreach_copy_'} & found.keys()


def weights(rank):
    model = BucketedDataParallel(Net(seed=rank))
    sent = {name: value.clone() for name, value in model.module.state_dict().items()}
    with torch.no_grad():
        model(pictures(rank, 0))
    assert not model._buckets  # an evaluation has no use for their memory
    return sent


def test_all_ranks_begin_with_the_weights_of_the_first(tmp_path):
    expected = Net(seed=0).state_dict()
    for found in results(weights, 2, tmp_path):
        torch.testing.assert_close(found, dict(expected), rtol=0, atol=0)


def message_of(rank):
    try:
        BucketedDataParallel(nn.Linear(3, 2 + rank))
    except RuntimeError as error:
        return str(error)


def test_ranks_with_other_parameters_are_refused(tmp_path):
    for found in results(message_of, 2, tmp_path):
        assert found.startswith("rank 1 trains other parameters than rank 0: ('bias', (2,)")


def forgotten(rank):
    model = BucketedDataParallel(Net(unused=True))
    model(pictures(rank, 0)).backward()
    try:
        model(pictures(rank, 1))
    except RuntimeError as error:
        return str(error)


def test_parameters_that_take_no_part_are_named(tmp_path):
    (found,) = results(forgotten, 1, tmp_path)
    assert found.startswith('2 parameters took no part in the last loss, extra.')
    assert 'find_unused_parameters=True' in found


def wrapped(rank, given, cfg):
    runner = RecipeRunner.__new__(RecipeRunner)
    runner.cfg, runner._launcher, runner._distributed = Config(cfg), 'pytorch', True
    os.environ['LOCAL_RANK'] = str(rank)
    return type(runner.wrap_model(given and {**given, 'device_ids': None}, Net())).__name__


def chosen(rank):
    ddp = {'type': 'MMDistributedDataParallel'}
    return [
        wrapped(rank, None, {}),
        wrapped(rank, {**ddp, 'broadcast_buffers': False, 'gradient_as_bucket_view': True}, {}),
        wrapped(rank, {**ddp, 'broadcast_buffers': False, 'find_unused_parameters': True}, {}),
        wrapped(rank, ddp, {}),
        wrapped(rank, {**ddp, 'broadcast_buffers': False, 'detect_anomalous_params': True}, {}),
    ]


def test_ddp_stays_where_a_config_asks_it_for_more(tmp_path):
    (found,) = results(chosen, 1, tmp_path)
    assert found == ['BucketedDataParallel'] * 2 + ['MMDistributedDataParallel'] * 3

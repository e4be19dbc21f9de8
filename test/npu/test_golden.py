"""What one iteration does on the NPU, by count, against the file under golden/: a new round trip shows in review.

The iteration is the Runner's, with its hooks, its guard and its buckets of gradients: nothing that the test does itself
is counted.

Written anew by: bash test/npu/run.sh --update_golden -- test/npu/test_golden.py
"""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import time
from pathlib import Path
from typing import Any, Dict, Iterator
from unittest import mock

import pytest
import torch
from torch import distributed

import demo_step
import device_counts
from recipe.bench import cli
from recipe.bench.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT.name  # test/npu/run.sh names the copy after its stack
GOLDEN = Path(__file__).resolve().parent / 'golden'
HEADER = f"""\
# An iteration of the Runner with guard and buckets of gradients, 128 x 256, batch 2, without a log line, on one
# emulated NPU of stack {STACK}, after two others: what it asks the device for, by count. Written by:
# bash test/npu/run.sh --update_golden -- test/npu/test_golden.py
"""
MODELS = ['demo', pytest.param('swin-b', marks=pytest.mark.release)]


def is_round_trip(name: str) -> bool:
    """Whether host and device wait for each other there."""
    return name.startswith(('copy', 'aclrtSynchronize')) or 'waits for the NPU' in name


def table(counts: Dict[str, int]) -> str:
    """The counts as the golden file has them."""
    counts = dict(counts)
    # Copies and operators that wait make the host wait for a stream.
    text = f'{HEADER}\nStream synchronisations: {counts.pop("aclrtSynchronizeStream", 0)}\n'
    for title, wanted in (('Host round trips', True), ('Operators', False)):
        rows = sorted((name, count) for name, count in counts.items() if is_round_trip(name) == wanted)
        text += f'\n{title}: {sum(count for _, count in rows)}\n'
        text += ''.join(f'{count:6} {name}\n' for name, count in rows)
    return text


@contextlib.contextmanager
def single_rank() -> Iterator[None]:
    """Be the only rank of a distributed training."""
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        port = one.getsockname()[1]
    rank = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', LOCAL_WORLD_SIZE='1')
    with mock.patch.dict(os.environ, rank, MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)):
        try:
            yield
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()


def pinned(batch: Dict[str, Any]) -> Dict[str, Any]:
    """The batch in pinned memory, as the loader gives it."""
    for sample in batch['data_samples']:
        sample.gt_sem_seg.data = sample.gt_sem_seg.data.pin_memory('npu')
    return dict(inputs=[image.pin_memory('npu') for image in batch['inputs']], data_samples=batch['data_samples'])


def third_iteration(backbone: str) -> Dict[str, int]:
    """Counts of the third iteration; the first two make the optimizer's states."""
    config, overrides = cli.model_options(cli.parse(['step', f'--backbone={backbone}', '--crop=128x256']))
    with single_rank():
        trainer = Trainer(config, {'launcher': 'pytorch', **overrides})
        assert type(trainer.runner.model).__name__ == 'BucketedDataParallel'
        for number in range(3):
            batch = pinned(demo_step.batch(first=2 * number, shape=(128, 256)))
            torch.npu.synchronize()
            device_counts.reset()
            trainer.iterate(batch, demo_step.SEED)
        while not torch.npu.current_stream().query():  # what is queued counts when it runs; asking does not count
            time.sleep(0.01)
        return device_counts.read()


@pytest.mark.parametrize('backbone', MODELS)
def test_an_iteration_does_what_the_golden_file_says(backbone):
    found = table(third_iteration(backbone))
    golden = GOLDEN / f'iteration_{backbone}_{STACK}.txt'
    folder = os.environ.get('EMULATED_NPU_UPDATE_GOLDEN')
    if folder:
        (Path(folder) / golden.name).write_text(found)
        pytest.skip(f'wrote {golden.name}')
    if not golden.is_file():
        pytest.skip(f'no golden file of this stack, {golden.name}: {HEADER.splitlines()[-1][2:]}')
    lines = difflib.unified_diff(golden.read_text().splitlines(), found.splitlines(), 'golden', 'now', lineterm='', n=0)
    difference = '\n'.join(lines)
    assert not difference, f'{difference}\nif that is meant: {HEADER.splitlines()[-1][2:]}'


def test_one_more_round_trip_shows():
    value = torch.ones(3, device='npu')
    torch.npu.synchronize()
    device_counts.reset()
    quiet = table(device_counts.read())
    assert value.sum().item() == 3 and value.nonzero().shape == (3, 1)
    found = table(device_counts.read())
    assert 'Host round trips: 0' in quiet
    assert '     1 copy device to host' in found
    assert '     1 aten::nonzero [waits for the NPU: what it returns depends on values]' in found

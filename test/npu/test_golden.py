"""What one training step does on the NPU, by count, against the file under golden/: a new round trip shows in review.

Written anew by: bash test/npu/run.sh --update_golden -- test/npu/test_golden.py
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Dict

import pytest
import torch

import demo_step
import device_counts

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT.name  # test/npu/run.sh names the copy after its stack
GOLDEN = Path(__file__).resolve().parent / 'golden' / f'training_step_{STACK}.txt'
HEADER = f"""\
# One training step of the demo's model, batch 2, on one emulated NPU of stack {STACK}, after a first step: what it asks
# the device for, by count. Written by: bash test/npu/run.sh --update_golden -- test/npu/test_golden.py
"""


def is_round_trip(name: str) -> bool:
    """Whether host and device wait for each other there."""
    return name.startswith(('copy', 'aclrtSynchronize')) or 'waits for the NPU' in name


def table(counts: Dict[str, int]) -> str:
    """The counts as the golden file has them."""
    # How often a stream is waited for follows from the copies and the operators that wait.
    counts = {name: count for name, count in counts.items() if name != 'aclrtSynchronizeStream'}
    text = HEADER
    for title, wanted in (('Host round trips', True), ('Operators', False)):
        rows = sorted((name, count) for name, count in counts.items() if is_round_trip(name) == wanted)
        text += f'\n{title}: {sum(count for _, count in rows)}\n'
        text += ''.join(f'{count:6} {name}\n' for name, count in rows)
    return text


def second_step(change=lambda: None) -> str:
    cfg = demo_step.config('npu')
    model = demo_step.model(cfg, 'npu')
    wrapper = demo_step.optimizer_of(cfg, model)
    for number in range(2):
        demo_step.clear_gradients(model)
        torch.npu.synchronize()
        device_counts.reset()
        demo_step.run(model, wrapper, demo_step.batch(first=2 * number))
        change()
    return table(device_counts.read())


def test_a_step_does_what_the_golden_file_says():
    found = second_step()
    folder = os.environ.get('EMULATED_NPU_UPDATE_GOLDEN')
    if folder:
        (Path(folder) / GOLDEN.name).write_text(found)
        pytest.skip(f'wrote {GOLDEN.name}')
    lines = difflib.unified_diff(GOLDEN.read_text().splitlines(), found.splitlines(), 'golden', 'now', lineterm='', n=0)
    difference = '\n'.join(lines)
    assert not difference, f'{difference}\nif that is meant: {HEADER.splitlines()[-1].partition("by: ")[2]}'


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

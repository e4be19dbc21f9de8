"""What tools/bench.py counts, when it refuses, and how it reads its command line."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cityscapes_sets
from recipe.bench import cli, loader, report
from recipe.bench import counts as bench_counts
from recipe.core import console
from recipe.engine import peak_memory

TOOL = Path(__file__).resolve().parents[2] / 'tools/bench.py'
READ, SHAPE, DOWN, UP = bench_counts.READ, bench_counts.SHAPE, bench_counts.DOWN, bench_counts.UP
DEVICE = torch.device('cpu')


def counted(function):
    """Count what a function does with a tensor that counts as the device's."""
    x = torch.arange(4.0)
    with bench_counts.counting() as counts:
        function(x)
    return dict(counts.synchronisations)


@pytest.mark.parametrize(
    ('function', 'expected'),
    [
        (lambda x: x.sum() * 2 + x[1], {}),
        (lambda x: x.max().item(), {READ: 1}),
        (lambda x: float(x[0]) + int(x[1]), {READ: 2}),
        (lambda x: bool((x > 1).any()), {READ: 1}),
        (lambda x: x.nonzero(), {SHAPE: 1}),
        (lambda x: x.unique(), {SHAPE: 1}),
        (lambda x: x[x > 1], {SHAPE: 1}),
        (lambda x: x[torch.tensor([0, 1])], {}),
        (lambda x: x.masked_select(x > 1), {SHAPE: 1}),
        (lambda x: x.cpu().numpy(), {DOWN: 1}),
        (lambda x: x.tolist(), {DOWN: 1}),
        (lambda x: x.to('cpu').sum().item(), {DOWN: 1}),
        (lambda x: x.to('cpu', non_blocking=True).tolist(), {}),  # read later, see LateValues
        (lambda x: torch.tensor([1, 2], device=DEVICE), {UP: 1}),
        (lambda x: torch.tensor([1, 2]).to(DEVICE), {UP: 1}),
        (lambda x: torch.tensor([1, 2]).to(DEVICE, non_blocking=True), {}),
        (lambda x: torch.tensor([1, 2]).to(DEVICE).sum().item(), {UP: 1, READ: 1}),
        (lambda x: torch.tensor([1, 2]).sum().item(), {}),  # on the host all the time
        (lambda x: torch.rand(3).tolist(), {}),  # drawn on the host
        (lambda x: torch.rand(3, device=DEVICE).tolist(), {DOWN: 1}),
        (lambda x: torch.zeros(3).to(DEVICE), {UP: 1}),
        (lambda x: x.new_tensor([1.0]), {UP: 1}),
        (lambda x: torch.as_tensor(x.sum()).to(device=DEVICE).item(), {READ: 1}),
        (lambda x: x.to(torch.float64).to(DEVICE), {}),
    ],
)
def test_host_synchronisations(function, expected):
    assert counted(function) == expected


def test_operators_of_the_backward_pass_are_counted():
    x = torch.ones(3, requires_grad=True)
    with bench_counts.counting() as forward:
        y = (x * x).sum()
    with bench_counts.counting() as backward:
        y.backward()
    assert forward.operators['mul'] == 1 and backward.operators['mul'] == 2
    assert forward.as_dict()['operators'] == sum(forward.operators.values())


def test_step_counts_of_an_optimizer_are_on_the_host():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], foreach=False)
    parameter.grad = torch.ones(2)
    optimizer.step()
    with bench_counts.counting() as unmarked:
        optimizer.step()
    bench_counts.mark_step_counts(optimizer)
    with bench_counts.counting() as marked:
        optimizer.step()
    assert unmarked.synchronisations[READ] > 0 and marked.synchronisations[READ] == 0


def test_peak_memory_is_that_of_the_step():
    def step():
        torch.ones(50_000_000)  # 200 MB, freed at once

    gc.collect()
    first, second = (peak_memory.peak('cpu', function) for function in (step, lambda: None))
    assert first['above_before_bytes'] == pytest.approx(200e6, rel=0.2)
    assert second['above_before_bytes'] < 50e6


def test_ratio_is_upstream_over_ours():
    found = report.compare([2.0, 4.0, 3.0], [1.0, 1.5, 2.0])
    assert found['ratio'] == 2.0
    assert found['ours'] == {'median': 1.5, 'least': 1.0, 'most': 2.0, 'values': [1.0, 1.5, 2.0]}


def test_the_worst_term_is_found_and_a_missing_one_is_the_worst():
    assert cli.worst_term({'a': 1.0, 'b': 2.0}, {'a': 1.0, 'b': 2.2}) == (pytest.approx(0.1), 'b')
    assert cli.worst_term({'a': 1.0}, {'a': 1.0, 'b': 2.0}) == (float('inf'), 'b')
    assert cli.worst_term({'a': 1.0}, {'a': float('nan')})[0] == float('inf')


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['step', '--crop=512'], 'HEIGHTxWIDTH'),
        (['step', '--crop=100x64'], 'multiples of 32'),
        (['step', '--batch=0'], 'whole number from 1 on'),
        (['fly'], 'invalid choice'),
        (['step', '--json=/nowhere/x.json'], 'does not exist'),
        (['step', '--device=cpu', '--upstream_amp=fp16'], "upstream's trainer refuses it on a CPU"),
        (['step', '--upstream_amp=bf16'], 'invalid choice'),
        (['roofline', '--device=cpu'], 'models a GPU or an NPU'),
        (['roofline', '--amp=fp16'], 'models a GPU or an NPU'),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, says):
    done = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.trains  # it takes as long as a training
def test_the_loader_says_how_many_processes_a_card_needs(tmp_path, capsys):
    root = cityscapes_sets.make_prepared(tmp_path / 'data')
    found = loader.measure(root, samples=1, rounds=1, images_per_s=5000)
    assert [one.side for one in found.figures] == [loader.UPSTREAM, loader.PNG]
    for one in found.figures:
        assert one.cores_per_card == pytest.approx(5000 / one.samples_per_core_s)
        assert one.workers_per_card - 1 < one.cores_per_card / 0.8 <= one.workers_per_card
    loader.show(found)
    shown = capsys.readouterr().out
    assert str(found.figures[1].workers_per_card) in shown and '5000' in shown
    assert cli.parse(['loader', '--images_per_s=50']).images_per_s == 50


def test_defaults_follow_the_backbone():
    assert cli.parse(['step']).crop == (128, 256)
    args = cli.parse(['step', '--backbone=base', '--batch=3'])
    assert (args.crop, args.batch, args.tolerance) == ((512, 1024), 3, 1e-4)
    assert cli.model_options(args)[0].endswith('mask2former_swin-b_cityscapes.py')
    assert cli.model_options(cli.parse(['size', '--backbone=r50']))[0].endswith('mask2former_r50_cityscapes.py')


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_whole_step_graph_without_a_gpu_is_refused():
    with pytest.raises(console.UserError, match='--graph: a CUDA graph needs a GPU'):
        cli.make_trainer(cli.parse(['step', '--graph']), 'ours')

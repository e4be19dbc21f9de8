"""The whole-step graph, captured on a CPU by a stand-in that refuses what a capture refuses."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

import accelerator_path
import fixed_points
from random_mask2former import TINY
from recipe.bench import kernels, meta_step
from recipe.bench import model as bench_model
from recipe.bench.trainer import Trainer
from recipe.engine import step_graph
from recipe.engine.data_parallel import BucketedDataParallel
from recipe.engine.loops import resumable_loop
from recipe.models import accelerate, assignment, loss, static_loss
from recorded_graph import CaptureError, RecordedGraph

pytestmark = pytest.mark.trains

EVERY = list(range(19))
CLASSES = [(EVERY, [0, 1, 2]), ([5, 6, 7, 9], [2, 11]), ([], [3]), ([], [])]
NEVER = 1000  # iterations without a graph


@torch.library.custom_op('test_step_graph::assign', mutates_args=())
def assign(
    costs: torch.Tensor, table: torch.Tensor, num_queries: int, most_masks: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SciPy as one operator, in place of the kernel of a GPU."""
    problems = assignment.Problems(table.numpy(), num_queries, size)
    queries, masks, usable = assignment._scipy(costs, problems)
    return queries.clone(), masks.clone(), torch.tensor(usable)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """Take the path of a GPU."""
    accelerator_path.take(monkeypatch, 'cuda')
    monkeypatch.setattr(assignment, 'solves_tables', lambda device: True)
    monkeypatch.setattr(static_loss, 'solve_table', assign)


@pytest.fixture
def model():
    built = bench_model.build(overrides=TINY)
    accelerate(built)
    return built.train()


def batch(classes, seed=1, size=(64, 128)):
    return bench_model.samples(bench_model.random_batch(2, *size, seed=seed, classes=classes))


def graph_of(model, **options):
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    return step_graph.StepGraph(model, wrapper, **{'graphs': RecordedGraph(), **options})


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('classes', CLASSES)
def test_the_loss_is_that_of_training_without_a_graph(model, classes, monkeypatch):
    """With points that do not depend on the number of masks."""
    for module in (loss, static_loss):
        monkeypatch.setattr(module, 'draw_points', fixed_points.same_draws)
    images = bench_model.random_batch(2, 64, 128, classes=classes)
    expected = bench_model.step(model, images, seed=3)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    found = graph_of(model, warmup=NEVER)(bench_model.samples(images))
    for name, value in expected['losses'].items():
        torch.testing.assert_close(found[name], value.reshape(()), rtol=1e-5, atol=1e-5, check_dtype=False)
    assert bench_model.relative_difference(expected['gradients'], gradients(model)) < 1e-4


def test_a_replay_computes_the_step_of_each_batch(model):
    """Other images, other classes, other random numbers; and weights that changed since the capture."""
    plain = copy.deepcopy(model)
    graphs = [graph_of(plain, warmup=NEVER), graph_of(model, warmup=2)]
    for number in range(6):
        found = []
        for one, graph in zip((plain, model), graphs):
            torch.manual_seed(number)
            scalars = graph(batch(CLASSES[number % 4], number))
            found.append(({name: float(value) for name, value in scalars.items()}, gradients(one)))
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter.sub_(parameter.grad, alpha=1e-3)
        torch.testing.assert_close(*found)
    assert graphs[0]._replay is None and graphs[1]._replay is not None


def test_scalars_stay_what_they_were_when_the_graph_runs_again(model):
    graph = graph_of(model, warmup=1)
    graph(batch(CLASSES[0]))
    first = graph(batch(CLASSES[0]))
    before = dict(first)
    kept = {name: float(value) for name, value in first.items()}
    second = graph(batch(CLASSES[1], 2))
    assert {name: float(value) for name, value in before.items()} == kept
    assert float(second['loss']) != kept['loss']


# Without instructions for bf16 a CPU takes ten times as long.
@pytest.mark.parametrize(('amp', 'size'), [('off', (64, 128)), ('bf16', (32, 64))])
def test_a_training_through_the_loop_is_that_without_captures(amp, size, monkeypatch):
    """Guard, clipping, optimizer and log included."""
    weights = []
    for warmup in (NEVER, 1):
        make = partial(step_graph.StepGraph, graphs=RecordedGraph(), warmup=warmup)
        monkeypatch.setattr(resumable_loop, 'StepGraph', make)
        trainer = Trainer(
            overrides={**{f'model.{key}': value for key, value in TINY.items()}, 'train_cfg.graph': True}, amp=amp
        )
        for number in range(4):
            trainer.iterate(batch(CLASSES[number], number, size), seed=number)
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    'function',
    [
        lambda x: float(x.sum()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
        lambda x: torch.unique(x),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(function):
    with pytest.raises(CaptureError):
        RecordedGraph().capture(lambda: function(torch.rand(3)))


def test_a_value_that_the_step_reads_is_refused(model, monkeypatch):
    original = static_loss._class_loss
    monkeypatch.setattr(static_loss, '_class_loss', lambda *args: original(*args) * (2 if args[2].max() > 18 else 1))
    graph = graph_of(model, warmup=1)
    graph(batch(CLASSES[0]))
    with pytest.raises(CaptureError, match='reads values'):
        graph(batch(CLASSES[0]))


def test_another_shape_is_refused(model):
    graph = graph_of(model)
    graph(batch(CLASSES[0]))
    with pytest.raises(ValueError, match=r'--graph=1: a batch has the shape \(1, 3, .*, the first one had \(2, 3, '):
        graph(bench_model.samples(bench_model.random_batch(1, 64, 128, classes=[EVERY])))


def test_a_model_that_cannot_be_captured_is_refused(model, monkeypatch):
    with pytest.raises(ValueError, match=r'--graph=1: .* of this config cannot be captured'):
        graph_of(bench_model.build(overrides=TINY))
    monkeypatch.setattr(assignment, 'solves_tables', lambda device: False)
    with pytest.raises(ValueError, match='--graph=1: masks are assigned on the host, not on cpu'):
        graph_of(model)


def test_ddp_is_not_captured():
    """It would need other warm-up iterations, and to be made on a stream of its own."""
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    with pytest.raises(ValueError, match='--graph=1: the config asks for DDP'):
        step_graph.StepGraph(wrapped, None)


class Watched:
    """Captures on ``meta``, and notes what goes between host and device meanwhile."""

    def __init__(self):
        self.copies = None
        self.beside = RecordedGraph().beside

    def capture(self, function):
        with kernels.Kernels({}) as found:
            result = function()
        self.copies, self.kernels = dict(found.copies), len(found.found)
        return (lambda: None), result


def test_nothing_goes_between_host_and_device_while_a_graph_is_captured(monkeypatch):
    monkeypatch.undo()  # meta has the kernel's shapes
    watched = Watched()
    monkeypatch.setattr(resumable_loop, 'StepGraph', partial(step_graph.StepGraph, graphs=watched, warmup=2))
    with meta_step.accelerator('cuda'), meta_step.Answers({}):
        trainer = Trainer(overrides={'launcher': 'pytorch', 'train_cfg.graph': True})
        assert isinstance(trainer.runner.model, BucketedDataParallel)
        for number in range(3):
            trainer.iterate(batch(CLASSES[0], number, size=(128, 256)))
    assert watched.kernels > 500
    assert not any(watched.copies.values()), watched.copies

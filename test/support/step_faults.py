"""What goes wrong in a training step of resume_job: each function is a sabotage, called once the runner is built."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Callable, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from recipe.bench import counts
from resume_faults import BeforeIter, kill_this_process

Fault = Callable[[Runner, Callable[[], bool]], None]


def gradient(runner: Runner, now: Callable[[], bool]) -> None:
    """One element of one gradient overflows; every loss is finite."""
    weight = next(p for p in runner.model.parameters() if p.requires_grad)

    def overflow(grad: torch.Tensor) -> torch.Tensor:
        if now():
            grad = grad.clone()
            grad.view(-1)[0] = math.inf
        return grad

    weight.register_hook(overflow)


def loss(runner: Runner, now: Callable[[], bool]) -> None:
    """A loss term is infinite, with a gradient that is finite."""
    head = getattr(runner.model, 'module', runner.model).decode_head
    compute = head.loss

    def infinite(*args, **kwargs):
        losses = compute(*args, **kwargs)
        return {**losses, 'loss_dice': losses['loss_dice'] + math.inf} if now() else losses

    head.loss = infinite


def costs(runner: Runner, now: Callable[[], bool]) -> None:
    """The head predicts NaN, so that nothing can be assigned."""
    head = getattr(runner.model, 'module', runner.model).decode_head
    head.cls_embed.register_forward_hook(lambda *args: args[2] * math.nan if now() else None)


def go_bad(fault: Fault, iterations: Sequence[int], rank: int, runner: Runner) -> None:
    """Let a fault happen on one rank in some iterations, counted from 1."""
    if runner.rank == rank:
        fault(runner, lambda: runner.iter + 1 in iterations)


def go_bad_and_die(fault: Fault, iterations: Sequence[int], last: int, runner: Runner) -> None:
    """Let a fault happen in some iterations, and be killed before another one."""
    go_bad(fault, iterations, 0, runner)
    runner.register_hook(BeforeIter(last, kill_this_process))


class KeepState(Hook):
    """Writes parameters and the optimizer's state when an iteration, counted from 1, is about to run."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.folder = number, folder

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx + 1 == self.number:
            torch.save(state_of(runner), self.folder / f'before_{runner.rank}.pt')


def state_of(runner: Runner) -> dict:
    """Parameters and the optimizer's state; the schedule goes on, whatever a step does."""
    return {'model': runner.model.state_dict(), 'optimizer': runner.optim_wrapper.optimizer.state_dict()['state']}


def go_bad_and_show(fault: Fault, number: int, rank: int, folder: Path, runner: Runner) -> None:
    """Let a fault happen, and keep the state before that iteration and when the training has ended."""
    go_bad(fault, [number], rank, runner)
    runner.register_hook(KeepState(number, folder))
    train = runner.train

    def showing() -> None:
        try:
            train()
        finally:
            torch.save(state_of(runner), folder / f'after_{runner.rank}.pt')

    runner.train = showing


class KnowsNoFoundInf(Hook):
    """Has the optimizer be one that cannot leave out a step on the device."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        runner.optim_wrapper.optimizer._step_supports_amp_scaling = False


def read_before_each_step(sabotage: Callable[[Runner], None], runner: Runner) -> None:
    """Have the norm read before each step, as for an optimizer that knows no found_inf."""
    runner.register_hook(KnowsNoFoundInf())
    sabotage(runner)


class CountIteration(Hook):
    """Writes what an iteration, counted from 1, asks of the device."""

    priority = 'LOWEST'

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx + 1 != self.number:
            return
        counts.mark_step_counts(runner.optim_wrapper.optimizer)
        counts.mark_host([data_batch['inputs'], [s.gt_sem_seg.data for s in data_batch['data_samples']]])
        self.counting = counts.counting()
        self.counts = self.counting.__enter__()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx + 1 == self.number:
            self.counting.__exit__(None, None, None)
            self.path.write_text(json.dumps(self.counts.as_dict()))


def count_iteration(number: int, path: Path, runner: Runner) -> None:
    """No harm: counts operators and synchronisations of an iteration."""
    runner.register_hook(CountIteration(number, path))


def sometimes(fault: Fault, *iterations: int) -> Callable[[Runner], None]:
    """A fault of rank 0."""
    return partial(go_bad, fault, iterations, 0)

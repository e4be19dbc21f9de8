"""No value of an iteration goes to the host: iterations on the meta device, on which every read raises an error."""

from __future__ import annotations

import contextlib
import logging
import math
import uuid
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper

import triton_process
from random_mask2former import TINY
from recipe.bench import model as bench_model
from recipe.engine.hooks import nonfinite_guard_hook
from recipe.engine.hooks.deferred_runtime_info_hook import DeferredRuntimeInfoHook
from recipe.engine.hooks.nonfinite_guard_hook import SKIPPED, NonFiniteGuardHook
from recipe.engine.late_values import LateValues
from recipe.engine.loops import stop_request
from recipe.models import accelerate, compiled_parts
from recipe.models import static_loss as static
from recipe.models.cost_faults import CostFaults
from recipe.models.decode import decode

pytestmark = pytest.mark.trains


class FusedOnMeta(torch.optim.SGD):
    """An optimizer that skips a step by a flag on the device; torch's fused ones refuse the meta device."""

    takes_found_inf = True
    found_inf = None

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    parameter.addcmul_(parameter.grad, 1 - self.found_inf, value=-group['lr'])


class Late:
    """Values on their way to the host; there are none on the meta device."""

    sent = 0

    def __init__(self, values):
        assert values.device.type == 'meta'
        Late.sent += 1

    def read(self):
        return [1.0]


@pytest.fixture
def iterate(monkeypatch):
    """Return a function that trains a model on the meta device for some iterations, with the guard."""
    monkeypatch.setattr(nonfinite_guard_hook, 'LateValues', Late)
    monkeypatch.setattr(nonfinite_guard_hook.random_state, 'capture', lambda device: {})
    # torch knows no autocast for the meta device.
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda *device: False)
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: contextlib.nullcontext())
    built = bench_model.build(overrides=TINY)
    accelerate(built)
    built.to('meta').train()

    def run(count, prepare=lambda model: None):
        prepare(built)
        wrapper = build_optim_wrapper(built, {'optimizer': {'type': 'SGD', 'lr': 0.1}, 'clip_grad': {'max_norm': 0.01}})
        wrapper.optimizer = FusedOnMeta(built.parameters(), lr=0.1)
        runner = SimpleNamespace(
            model=built,
            optim_wrapper=wrapper,
            logger=logging.getLogger(),
            message_hub=MessageHub.get_instance(f'reads_nothing_{uuid.uuid4().hex}'),
            train_dataloader=SimpleNamespace(dataset=None),
            epoch=0,
            iter=0,
            max_epochs=1,
            max_iters=count,
        )
        hooks = [DeferredRuntimeInfoHook(), NonFiniteGuardHook()]
        for hook in hooks:
            hook.before_train(runner)
        for number in range(count):
            data = bench_model.samples(bench_model.random_batch(2, 64, 128, classes=[[1, 3, 18], [2]]))
            for hook in hooks:
                hook.before_train_iter(runner, number, data)
            outputs = built.train_step(data, wrapper)
            for hook in hooks:
                hook.after_train_iter(runner, number, data, outputs)
        assert outputs['loss'].device.type == 'meta'

    return run


def in_fixed_shapes(model):
    parts = compiled_parts.CompiledParts(compiled_parts._run, decode, static.static_costs, static.static_point_losses)
    model.compiled_parts = model.decode_head.compiled_parts = parts


@triton_process.needs_triton
@pytest.mark.parametrize('prepare', [lambda model: None, in_fixed_shapes], ids=['layers at once', 'fixed shapes'])
def test_an_iteration_reads_nothing(iterate, prepare):
    Late.sent = 0
    iterate(2, prepare)
    assert Late.sent == 2


@triton_process.needs_triton
def test_one_read_is_noticed(iterate, monkeypatch):
    """An optimizer that knows no flag needs the norm on the host; a matching outside of an iteration its costs."""
    with monkeypatch.context() as patch:
        patch.setattr(FusedOnMeta, 'takes_found_inf', False)
        with pytest.raises(RuntimeError, match='meta'):
            iterate(1)
    monkeypatch.setattr(CostFaults, 'tolerates', property(lambda self: False, lambda self, value: None), raising=False)
    with pytest.raises((RuntimeError, NotImplementedError), match='meta'):
        iterate(1)


def test_what_is_not_finite_is_learned_before_the_next_step(monkeypatch):
    """The costs are described, and the step is counted, when the host looks at them one iteration later."""
    model = torch.nn.Linear(2, 1)
    head = model.decode_head = torch.nn.Module()
    head.cost_faults = CostFaults()
    wrapper = build_optim_wrapper(model, {'optimizer': {'type': 'AdamW', 'lr': 0.1, 'fused': True}})
    hub = MessageHub.get_instance('what_is_not_finite_is_learned')
    said = []
    logger = SimpleNamespace(warning=said.append, error=said.append, info=said.append)
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, rank=0, logger=logger, message_hub=hub)
    hook = NonFiniteGuardHook(max_skips=1)
    hook.before_train(runner)
    before = model.weight.detach().clone()
    for number, factor in enumerate((math.nan, 1.0)):
        hook.before_train_iter(runner, number, {})
        finite = torch.tensor(math.isfinite(factor))
        assert head.cost_faults.judge(finite, lambda: 'the costs of iteration 1') is finite
        wrapper.update_params(model(torch.ones(1, 2)).sum() * factor)
        assert bool((model.weight == before).all()) == (number == 0)
        # Only the second step looks at the first one.
        assert hub.runtime_info.get(SKIPPED, 0) == len(said) == number
        hook.after_train_iter(runner, number, {}, {'loss': torch.tensor(factor)})
    assert 'iteration 1 is not finite: rank 0: loss nan (the costs of iteration 1)' in said[0]
    hook.settle(runner)
    assert len(said) == 1


@pytest.mark.parametrize(('device', 'stops_after'), [('cpu', 5), ('meta', 6)])
def test_a_stop_on_an_accelerator_is_known_one_iteration_later(monkeypatch, device, stops_after):
    """No rank waits for the answer in the iteration that asks."""
    monkeypatch.setattr(stop_request, 'get_world_size', lambda: 2)
    monkeypatch.setattr(stop_request, 'all_reduce', lambda tensor, op: None)
    full = torch.full
    monkeypatch.setattr(torch, 'full', lambda size, value, device: full(size, value, device='cpu'))
    request = stop_request.StopRequest(torch.device(device))
    request._asked = 15
    asked = [request.asked_for(iteration) for iteration in range(5, 8)]
    assert asked.index(15) == stops_after - 5


def test_values_arrive_as_they_were():
    assert LateValues(torch.tensor([1.5, math.inf])).read() == [1.5, math.inf]

"""What only a GPU can show; bash tools/bench_gpu.sh runs it on one."""

from __future__ import annotations

import copy
from typing import Any, Dict, List

import pytest
import torch

from random_mask2former import TINY
from recipe.bench import model as bench_model
from recipe.bench.trainer import Trainer
from recipe.data import random_state
from recipe.engine.loops import resumable_loop
from recipe.engine.step_graph import WARMUP, StepGraph
from recipe.models import accelerate, token_attention

pytestmark = [
    pytest.mark.trains,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU, and torch sees none'),
]
ITERATIONS = WARMUP + 4


def samples(number: int) -> Dict[str, List[Any]]:
    return bench_model.samples(bench_model.random_batch(2, 64, 128, seed=number, block=16))


def trainer(graph: bool) -> Trainer:
    settings = {f'model.{key}': value for key, value in TINY.items()}
    return Trainer(overrides={**settings, 'train_cfg.graph': graph})


@pytest.mark.parametrize('triton', [True, False], ids=['Triton', 'without'])
def test_fused_attention_with_the_gradient_of_a_bias_is_taken(triton, monkeypatch):
    """The composed form is forbidden, so an error says that no fused kernel takes the bias."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not triton:
        monkeypatch.setattr(token_attention, '_triton_works', lambda *_: False)
    model = bench_model.build(overrides=TINY)
    accelerate(model)
    model.cuda().train()
    batch = bench_model.random_batch(2, 64, 128, block=16)
    expected = bench_model.step(model, batch, seed=3, amp='bf16')
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        found = bench_model.step(model, batch, seed=3, amp='bf16')
    tables = [name for name in found['gradients'] if name.endswith('relative_position_bias_table')]
    assert tables
    for name in tables:
        assert found['gradients'][name].abs().max() > 0
        torch.testing.assert_close(found['gradients'][name], expected['gradients'][name], rtol=0.1, atol=1e-3)


def test_a_graph_has_the_losses_of_iterations_without_one(monkeypatch):
    losses = []
    for warmup in (10 * ITERATIONS, WARMUP):
        monkeypatch.setattr(resumable_loop, 'StepGraph', lambda *args, warmup=warmup: StepGraph(*args, warmup=warmup))
        training = trainer(graph=True)
        for number in range(ITERATIONS):
            training.iterate(samples(number), seed=number)
        losses.append({name: float(value) for name, value in training.outputs.items()})
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_a_training_goes_on_from_the_state_that_a_graph_left():
    """Weights up to the rounding of atomic additions; the random numbers exactly."""
    whole, first = trainer(graph=True), trainer(graph=True)
    device = torch.device('cuda')
    torch.cuda.manual_seed(0)
    for number in range(2 * ITERATIONS):
        whole.iterate(samples(number))
    state = random_state.capture(device)['device']
    torch.cuda.manual_seed(0)
    for number in range(ITERATIONS):
        first.iterate(samples(number))
    then = trainer(graph=True)
    then.model.load_state_dict(first.model.state_dict())
    then.runner.optim_wrapper.load_state_dict(copy.deepcopy(first.runner.optim_wrapper.state_dict()))
    for number in range(ITERATIONS, 2 * ITERATIONS):
        then.iterate(samples(number))
    assert torch.equal(random_state.capture(device)['device'], state)
    torch.testing.assert_close(then.model.state_dict(), whole.model.state_dict(), rtol=1e-2, atol=1e-3)

"""Tests of the tests: each wrong NPU branch here makes a test fail that passes without it.

A missing all_reduce, which takes two ranks, is in test_two_ranks.py.
"""

from __future__ import annotations

import pytest
from mmcv.utils.mx_driving_import import import_mx_driving

import demo_step
import test_optimizer
import test_training_step
from recipe.engine.optimizers import merged_adamw


@pytest.fixture(scope='module')
def cpu():
    losses, model, _ = demo_step.step('cpu')
    return losses, demo_step.gradients(model)


def test_height_and_width_swapped_for_the_attention(monkeypatch, cpu):
    package = import_mx_driving()
    right = package.multi_scale_deformable_attn

    def swapped(value, shapes, *others):
        return right(value, shapes.flip(1), *others)

    monkeypatch.setattr(package, 'multi_scale_deformable_attn', swapped)
    with pytest.raises(AssertionError, match=r'expected|differs'):
        test_training_step.test_losses_and_gradients_are_those_of_the_cpu(cpu)


def test_an_optimizer_that_is_not_fused(monkeypatch):
    monkeypatch.setattr(merged_adamw, '_device_type', lambda groups: 'elsewhere')
    with pytest.raises(AssertionError, match='AdamW'):
        test_optimizer.test_steps_are_those_of_adamw()


def test_a_call_of_cuda(monkeypatch, cpu):
    from recipe.models.head import FastMask2FormerHead

    right = FastMask2FormerHead.loss

    def wrong(self, features, *others):
        return right(self, [feature.cuda() for feature in features], *others)

    monkeypatch.setattr(FastMask2FormerHead, 'loss', wrong)
    with pytest.raises((AssertionError, RuntimeError), match=r'CUDA|NVIDIA'):
        test_training_step.test_losses_and_gradients_are_those_of_the_cpu(cpu)

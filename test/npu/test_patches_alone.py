"""Upstream plus patches trains, without the package `recipe`, on the emulated NPU."""

from __future__ import annotations

import math

import pytest

import patches_alone


@pytest.mark.release
def test_two_iterations_of_the_recipe_s_config(tmp_path):
    python = patches_alone.set_up(tmp_path)
    *training, validation = patches_alone.train(python, tmp_path, 'npu')
    assert [math.isfinite(line['loss']) and line['loss'] > 0 for line in training] == [True] * patches_alone.ITERS
    assert 0 <= validation['mIoU'] <= 100

"""mx_driving's assignment on the emulated NPU: against SciPy, and in a step whose costs are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmcv.utils.mx_driving_import import import_mx_driving
from scipy.optimize import linear_sum_assignment

import demo_step
import device_counts
from recipe.engine.late_values import LateValues
from recipe.models import assignment

NPU = torch.device('npu', 0)


@pytest.mark.parametrize('shape', [(100, 1), (100, 19), (300, 19), (20, 20), (20, 33)])
def test_pairs_are_those_of_scipy(shape):
    matrix = np.random.default_rng(shape[1]).random(shape, dtype=np.float32)
    queries, masks = import_mx_driving().hungarian_match(torch.from_numpy(matrix).npu())
    expected = linear_sum_assignment(matrix)
    assert queries.dtype == masks.dtype == torch.int32
    assert queries.tolist() == expected[0].tolist() and masks.tolist() == expected[1].tolist()


def test_the_solver_of_an_npu_passes_the_check_and_one_that_is_wrong_does_not(monkeypatch):
    assignment._solver.cache_clear()
    assert assignment._solver(NPU) is assignment._mx_driving
    assignment._solver.cache_clear()
    package = import_mx_driving()
    right = package.hungarian_match

    def wrong(costs):
        queries, masks = right(costs)
        return queries, masks.flip(0)

    monkeypatch.setattr(package, 'hungarian_match', wrong)
    with pytest.warns(UserWarning, match='runs on the host, which waits for npu:0'):
        assert assignment._solver(NPU) is assignment._scipy
    assignment._solver.cache_clear()


def test_costs_that_are_not_finite_make_the_losses_nan_and_are_described_later():
    cfg = demo_step.config('npu')
    model = demo_step.model(cfg, 'npu')
    head = model.decode_head
    with torch.no_grad():
        head.cls_embed.weight.fill_(math.nan)
    data = demo_step.batch()
    with head.cost_faults.tolerated():
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        describe = head.cost_faults.take()
    assert all(value.isnan().all() for value in losses.values())
    assert 'of image 0 of the batch, the first one nan of prediction 0, query 0' in describe()
    with pytest.raises(ValueError, match='matching cost is not finite'):
        model(**model.data_preprocessor(data, True), mode='loss')


def test_values_reach_the_host_in_the_background():
    values = torch.tensor([1.5, math.inf], device='npu')
    assert LateValues(values).read() == [1.5, math.inf]


def test_no_value_of_a_step_goes_to_the_host():
    model = demo_step.model(demo_step.config('npu'), 'npu')
    data = demo_step.batch()
    with model.decode_head.cost_faults.tolerated():
        for _ in range(2):  # the first step checks the solver
            device_counts.reset()
            losses = model(**model.data_preprocessor(data, True), mode='loss')
            model.parse_losses(losses)[0].backward()
            torch.npu.synchronize()
    found = device_counts.read()
    assert found['aclnnHungarian'] == 2 * len(losses) // 3  # two images, all layers
    assert not [name for name in found if name.startswith('copy device to host') or 'waits for the NPU' in name]

"""The harness of the parity tests: each side imports what it should, and a difference is noticed."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from recipe.bench import sides_model
from recipe.bench.sides import Pair, SideError

ROOT = Path(__file__).resolve().parents[2]


def where_packages_are():
    """Return the file of each package as this process imported it."""
    import mmcv.ops
    import mmdet.models
    import mmseg.models

    return [str(Path(package.__file__).resolve()) for package in (mmcv.ops, mmdet.models, mmseg.models)]


def versions():
    import mmcv
    import mmseg

    return mmcv.__version__, mmseg.__version__


def call_an_operator():
    from mmcv.ops import nms

    nms(torch.rand(3, 4), torch.rand(3), 0.5)


def has_loops():
    """Return whether mmseg has the training loop that a patch adds."""
    return importlib.util.find_spec('mmseg.engine.loops') is not None


def counter():
    return [0]


def count(state):
    state[0] += 1
    return state[0]


def scale_a_weight(model, factor):
    with torch.no_grad():
        model.decode_head.query_embed.weight.mul_(factor)


def test_each_side_imports_its_own_packages(sides):
    theirs, ours = sides.call(where_packages_are)
    for name, one, other in zip(('mmcv', 'mmdetection', 'mmsegmentation'), theirs, ours):
        assert ROOT / '.pristine' / name in Path(one).parents
        assert ROOT / name in Path(other).parents
    assert sides.call(has_loops) == Pair(False, True)


def test_versions_are_those_of_the_pins(sides):
    theirs, ours = sides.call(versions)
    assert theirs == ours == ('2.2.0', '1.2.2')


def test_an_operator_that_was_not_built_raises_on_both_sides(sides):
    if list((ROOT / 'mmcv/mmcv').glob('_ext*.so')):
        pytest.skip('the operators were built')
    for side in (sides.upstream, sides.ours):
        with pytest.raises(SideError, match='NotImplementedError'):
            side.call(call_an_operator)


def test_kept_objects_stay_in_their_worker(sides):
    counters = sides.keep(counter)
    assert sides.call(count, counters) == Pair(1, 1)
    assert sides.ours.call(count, counters.ours) == 2
    assert sides.call(count, counters) == Pair(2, 3)


def test_closures_are_refused(sides):
    with pytest.raises(TypeError, match='top level'):
        sides.call(lambda: 1)


def test_the_driving_process_is_left_alone(sides):
    assert all('.pristine' not in path for path in sys.path)


def test_the_demo_model_is_equal_and_a_fault_in_it_is_not(sides):
    models = sides.keep(sides_model.build, seed=0)
    sides_model.same_weights(sides, models)
    batch = sides_model.random_batch(images=2, classes=[[0, 3, 18], list(range(19))], seed=1)
    theirs, ours = sides.call(sides_model.step, models, batch, seed=2)
    assert len(theirs['losses']) == 12  # class, mask and dice loss of 4 predictions
    # In float32 rounding may move a sampled point, which shows in the fifth digit; test_loss.py compares in float64.
    assert sides_model.relative_difference(theirs['losses'], ours['losses']) < 1e-4
    assert sides_model.relative_difference(theirs['gradients'], ours['gradients']) < 1e-3
    theirs, ours = sides.call(sides_model.predict, models, batch)
    assert theirs[0].shape == (19, 128, 256)
    assert sides_model.relative_difference(theirs, ours) < 1e-5

    sides.ours.call(scale_a_weight, models.ours, 1.1)
    theirs, ours = sides.call(sides_model.step, models, batch, seed=2)
    print('SCALED', sides_model.relative_difference(theirs['losses'], ours['losses']))
    assert sides_model.relative_difference(theirs['losses'], ours['losses']) > 1e-4


@pytest.mark.parametrize(
    ('theirs', 'ours', 'expected'),
    [
        (2.0, 2.0, 0.0),
        (2.0, 2.002, pytest.approx(1e-3)),
        (0.0, 1e-9, float('inf')),
        (1.0, float('nan'), float('inf')),
        ({'a': [torch.ones(4)], 'b': 1}, {'a': [torch.ones(4)], 'b': 2}, 1.0),
    ],
)
def test_relative_difference(theirs, ours, expected):
    assert sides_model.relative_difference(theirs, ours) == expected


def test_results_of_another_form_are_refused():
    with pytest.raises(AssertionError, match='b'):
        sides_model.relative_difference({'a': 1, 'b': 2}, {'a': 1})
    with pytest.raises(AssertionError):
        sides_model.relative_difference(torch.ones(2), torch.ones(3))

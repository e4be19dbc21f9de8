"""On a CPU, upstream with the patches computes what the unpatched upstream computes, bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipe.core.paths import ROOT

SCRIPT = Path(__file__).resolve().parents[1] / 'support' / 'one_upstream.py'


@pytest.fixture(scope='module', params=['swin-t', pytest.param('r50', marks=pytest.mark.release)])
def outcomes(tmp_path_factory, request):
    """What each upstream computed, in a process of its own."""
    if not (ROOT / 'mmsegmentation').is_dir():
        pytest.skip('no checkouts; run bash tools/setup.sh')
    folder, found = tmp_path_factory.mktemp('outcomes'), []
    for which in ('pristine', 'patched'):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), which, request.param, str(folder / which)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(folder / which, weights_only=False))
    return found


def same(one, other):
    """Whether two structures hold the same bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_each_process_has_its_own_upstream_and_nothing_of_the_recipe_in_the_model(outcomes):
    pristine, patched = outcomes
    assert ROOT / '.pristine' in Path(pristine['packages']).parents
    assert ROOT / 'mmsegmentation' in Path(patched['packages']).parents
    assert not any(name.startswith(('recipe.models', 'recipe.engine')) for name in patched['modules'])


def test_losses_weights_and_predictions_are_the_same_bits(outcomes):
    theirs, ours = (outcome['results'] for outcome in outcomes)
    assert len(theirs['logs']) == 2 and len(theirs['logs'][0]) > 9
    for kind, values in theirs.items():
        assert same(values, ours[kind]), kind


def test_another_bit_is_noticed(outcomes):
    weights = outcomes[0]['results']['weights']
    name = next(iter(weights))
    other = {**weights, name: torch.nextafter(weights[name], torch.tensor(9.0))}
    assert same(weights, dict(weights)) and not same(weights, other)

"""A step that is not finite changes nothing, ends the training on all ranks, and can be replayed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import step_faults
from recipe.core import console, paths
from recipe.engine import replay as replay_step
from recipe.engine.checkpoint import load_from_local
from recipe.engine.nonfinite import read_dump
from resume_faults import kill_before_iter
from resume_job import assert_same_end, differences, recipe, train, write_cityscapes
from step_faults import count_iteration, go_bad, go_bad_and_die, go_bad_and_show, read_before_each_step, sometimes

SKIP_1 = {'default_hooks.nonfinite_guard.max_skips': 1}
SKIP_2 = {'default_hooks.nonfinite_guard.max_skips': 2}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('data'))


def last_lines(outcome):
    """What was printed as errors."""
    return [line for line in outcome.output.splitlines() if line.startswith('error: ')]


@pytest.mark.parametrize(
    ('fault', 'wait'),
    [
        (step_faults.gradient, False),
        (step_faults.loss, False),
        (step_faults.costs, False),
        pytest.param(step_faults.gradient, True, marks=pytest.mark.release),
        (step_faults.loss, True),
        pytest.param(step_faults.costs, True, marks=pytest.mark.release),
    ],
)
def test_the_step_changes_nothing_and_ends_the_training(data, tmp_path, fault, wait):
    sabotage = partial(go_bad_and_show, fault, 7, 0, tmp_path)
    outcome = train(recipe(data, tmp_path), sabotage=partial(read_before_each_step, sabotage) if wait else sabotage)
    assert outcome.codes == [65], outcome.output
    before, after = (torch.load(tmp_path / f'{name}_0.pt', map_location='cpu') for name in ('before', 'after'))
    assert differences(before, after) == []
    (line,) = last_lines(outcome)
    assert outcome.output.splitlines()[-1] == line
    assert line.startswith('error: iteration 7 is not finite: ')
    assert not list(tmp_path.glob('iter_8*.pth'))
    dump = read_dump(str(tmp_path / 'nonfinite' / 'iter_7_rank_0.pth'))
    assert all(Path(image).is_file() and image in line for image in dump['images'])
    weights = load_from_local(dump['weights'])
    assert differences(weights['state_dict'], before['model']) == []


def test_what_is_not_finite_is_named(data, tmp_path):
    lines = {}
    for fault in (step_faults.gradient, step_faults.loss, step_faults.costs):
        cfg = recipe(data, tmp_path / fault.__name__)
        lines[fault.__name__] = last_lines(train(cfg, sabotage=sometimes(fault, 2)))[0]
    assert 'all losses are finite, but the norm of the gradient is inf' in lines['gradient']
    assert 'rank 0: decode.loss_dice inf with images' in lines['loss']
    assert 'matching cost is not finite' in lines['costs'] and 'image 0 of the batch' in lines['costs']


def test_upstream_s_own_matching_ends_the_training_in_the_same_way(data, tmp_path):
    cfg = recipe(data, tmp_path, **SKIP_1, fast=False)
    outcome = train(cfg, sabotage=sometimes(step_faults.costs, 2, 4))
    assert outcome.codes == [65], outcome.output
    assert 'The step is skipped, 1 of at most 1.' in outcome.output
    assert outcome.output.splitlines()[-1].startswith('error: iteration 4 is not finite: rank 0: ')
    assert 'matching cost is not finite' in outcome.output.splitlines()[-1]
    assert (tmp_path / 'nonfinite' / 'iter_4_rank_0.pth').is_file()


@pytest.mark.parametrize('fault', [step_faults.loss, step_faults.costs])
def test_a_fault_of_one_rank_ends_both_together(data, tmp_path, fault):
    cfg = recipe(data, tmp_path)
    outcome = train(cfg, world=2, sabotage=partial(go_bad_and_show, fault, 7, 1, tmp_path))
    assert outcome.codes == [65, 65], outcome.output
    for rank in (0, 1):
        before, after = (torch.load(tmp_path / f'{name}_{rank}.pt') for name in ('before', 'after'))
        assert differences(before, after) == []
        assert read_dump(str(tmp_path / f'nonfinite/iter_7_rank_{rank}.pth'))['rank'] == rank
    assert all('iteration 7 is not finite: rank 1: ' in line for line in last_lines(outcome))


def test_known_before_a_checkpoint_is_written(data, tmp_path):
    """A checkpoint is due after iteration 6, and no matching comes before it."""
    outcome = train(recipe(data, tmp_path), sabotage=sometimes(step_faults.gradient, 6))
    assert outcome.codes == [65], outcome.output
    assert sorted(path.name for path in tmp_path.glob('iter_*.pth')) == ['iter_2.pth', 'iter_4.pth']


def test_known_after_the_last_iteration(data, tmp_path):
    cfg = recipe(data, tmp_path, **{'train_cfg.max_iters': 5, 'default_hooks.checkpoint.interval': 100})
    assert train(cfg, sabotage=sometimes(step_faults.gradient, 5)).codes == [65]


def test_steps_are_skipped_up_to_a_number(data, tmp_path):
    cfg = recipe(data, tmp_path, **SKIP_2)
    outcome = train(cfg, sabotage=sometimes(step_faults.loss, 3, 6, 9))
    assert outcome.codes == [65], outcome.output
    assert 'iteration 3 is not finite' in outcome.output
    assert 'The step is skipped, 1 of at most 2.' in outcome.output
    assert 'The step is skipped, 2 of at most 2.' in outcome.output
    assert 'iteration 9 is not finite' in last_lines(outcome)[0]
    assert [path.name for path in (tmp_path / 'nonfinite').glob('*rank*')] == ['iter_9_rank_0.pth']


@pytest.mark.parametrize('world', [pytest.param(1, marks=pytest.mark.release), 2])
def test_a_resumed_run_skips_as_one_that_was_never_stopped(data, tmp_path, world):
    """Killed after one skip and before the other; the count goes on, and the end is the same bit by bit."""
    unbroken, broken = (recipe(data, tmp_path / name, **SKIP_2) for name in ('unbroken', 'broken'))
    bad = partial(go_bad, step_faults.gradient, (3, 9), 0)
    outcome = train(unbroken, world, sabotage=bad)
    assert outcome.codes == [0] * world, outcome.output
    killed = train(broken, world, sabotage=partial(go_bad_and_die, step_faults.gradient, (3, 9), 6))
    assert killed.codes == [-9] * world, killed.output
    outcome = train(broken, world, resume=True, sabotage=bad)
    assert outcome.codes == [0] * world, outcome.output
    assert 'The step is skipped, 2 of at most 2.' in outcome.output
    assert_same_end(tmp_path / 'broken', tmp_path / 'unbroken')


def test_the_first_step_after_a_resume_ends_the_training_as_any_other(data, tmp_path):
    world = 2
    cfg = recipe(data, tmp_path, workers=1)
    assert train(cfg, world, sabotage=partial(kill_before_iter, 7)).codes == [-9] * world
    outcome = train(cfg, world, resume=True, sabotage=partial(go_bad, step_faults.costs, [7], 1))
    assert outcome.codes == [65] * world, outcome.output
    assert 'RESUMED iter_6.pth' in outcome.output and 'Traceback' not in outcome.output
    assert all('iteration 7 is not finite: rank 1: ' in line for line in last_lines(outcome))
    done = replay(tmp_path / 'nonfinite' / 'iter_7_rank_1.pth', '--json')
    assert done.returncode == 0 and math.isfinite(json.loads(done.stdout)['grad_norm']), done.stderr


def test_on_the_device_and_read_are_the_same(data, tmp_path):
    """Also where nothing is wrong: the flag does not change what a step computes."""
    for name in ('device', 'read'):
        cfg = recipe(data, tmp_path / name, **SKIP_2)
        sabotage = sometimes(step_faults.gradient, 3, 8)
        outcome = train(cfg, sabotage=partial(read_before_each_step, sabotage) if name == 'read' else sabotage)
        assert outcome.codes == [0], outcome.output
    assert_same_end(tmp_path / 'device', tmp_path / 'read')


def counts_of(data, folder, guard):
    """What the third iteration asks of the device; nothing is logged or saved in it."""
    quiet = {'default_hooks.logger.interval': 100, 'default_hooks.checkpoint.interval': 100}
    cfg = recipe(data, folder, **quiet, **{'train_cfg.max_iters': 4, 'train_cfg.val_interval': 100})
    if not guard:
        cfg.default_hooks.pop('nonfinite_guard')
    assert train(cfg, sabotage=partial(count_iteration, 3, folder / 'counts.json')).codes == [0]
    return json.loads((folder / 'counts.json').read_text())


def test_the_guard_costs_nothing(data, tmp_path):
    without, guarded = (counts_of(data, tmp_path / str(guard), guard) for guard in (False, True))
    synchronisations = 'host_synchronisations_by_place'
    assert without[synchronisations] == {'copy to host: cpu': 1}
    # The guard looks at one value that was copied before. On a CPU, which stands for the device here, it is counted: so
    # one more would be seen.
    assert guarded[synchronisations] == {**without[synchronisations], 'copy to host: tolist': 1}
    assert 0 < guarded['operators'] - without['operators'] <= 0.01 * without['operators']


def test_without_the_guard_the_parameters_are_lost(data, tmp_path):
    """Shows that the faults are real."""
    cfg = recipe(data, tmp_path, **{'train_cfg.val_interval': 100})
    cfg.default_hooks.pop('nonfinite_guard')
    train(cfg, sabotage=sometimes(step_faults.gradient, 6))
    state = load_from_local(tmp_path / 'iter_6.pth')['state_dict']
    assert any(bool(value.isnan().any()) for value in state.values())


def replay(*argv):
    # as many threads as the training had, which add up in the same order
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, str(paths.TOOLS / 'replay_step.py'), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_dump_can_be_replayed(data, tmp_path):
    """The losses, all but the one that was tampered with, are those of the training to the last bit."""
    outcome = train(recipe(data, tmp_path, workers=1), sabotage=sometimes(step_faults.loss, 5))
    assert outcome.codes == [65], outcome.output
    path = tmp_path / 'nonfinite' / 'iter_5_rank_0.pth'
    done = replay(path, '--json')
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    losses = read_dump(str(path))['losses']
    assert losses['decode.loss_dice'] == math.inf
    assert told['losses'].keys() == losses.keys()
    for name, value in losses.items():
        if name not in ('loss', 'decode.loss_dice'):
            assert told['losses'][name] == value
    assert math.isfinite(told['grad_norm'])
    lines = replay_step.table(replay_step.load(str(path)), told)
    assert lines[0] == 'iteration 5, rank 0 of 1'
    assert [line.split()[0] for line in lines if line.endswith('not finite')] == [
        'loss',
        'decode.loss_dice',
        'grad_norm',
    ]


@pytest.mark.parametrize('content', [None, b'', b'PK\x03\x04 rubbish'])
def test_what_is_no_dump_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / 'iter_5_rank_0.pth'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(console.UserError, match=r'iter_5_rank_0\.pth: '):
        replay_step.load(str(path))

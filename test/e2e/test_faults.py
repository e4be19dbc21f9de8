"""Part of the fault campaign (test/faults/run.sh), and that the campaign notices what it is to notice."""

from __future__ import annotations

import os
import signal
from random import Random

import pytest

import campaign
import fault
import fault_bench
from resume_job import recipe, train

pytestmark = pytest.mark.release  # so is the campaign
SEED = 3
QUICK = 11  # besides one fault of each of some kinds that the launcher meets, which take longer
LAUNCHER = ('launcher: rank stopped, watchdog', 'launcher: killed')


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    return fault_bench.Bench(tmp_path_factory.mktemp('faults'))


def quick():
    kinds = [kind for kind in fault.KINDS.values() if not kind.name.startswith('launcher')]
    return Random(SEED).sample(kinds, QUICK)


@pytest.mark.parametrize('name', [*(kind.name for kind in quick()), *LAUNCHER])
def test_fault(bench, name):
    result = campaign.strike(bench, 0, fault.KINDS[name], SEED)
    if result.outcome == 'left out':
        pytest.skip(result.what)
    assert result.outcome != 'FAILED', result.what


def test_a_restart_that_finds_no_good_checkpoint_is_the_last(bench):
    # so long that it is not over before it is broken
    launched = bench.launcher.start(bench.launcher.new_folder(), '--max_restarts=3', '--max_iters=5000')
    launched.until_saved(2)
    rank = launched.rank(0)
    os.kill(rank, signal.SIGSTOP)  # writes no more of them
    for path in launched.folder.glob('*.pth'):
        path.write_bytes(b'damaged')
    os.kill(rank, signal.SIGKILL)
    assert launched.end() == 69, launched.said
    warnings = [line for line in launched.said.splitlines() if ' of 3 goes on from' in line]
    assert len(warnings) == 1, launched.said
    last = launched.said.strip().splitlines()[-1]
    assert 'exit status 69' in last and 'iter_' in last, launched.said


def test_a_training_that_ends_otherwise_is_noticed(bench):
    folder = bench.new_folder()
    assert train(recipe(bench.data, folder, **{'randomness.seed': 4, 'train_cfg.max_iters': 6})).codes == [0]
    with pytest.raises(AssertionError):
        bench.finish(folder, 1)


def test_a_checkpoint_that_is_lost_is_noticed(bench):
    folder = bench.stopped(1, 5)
    for path in folder.glob('*iter_4.pth'):
        path.unlink()
    with pytest.raises(AssertionError, match='the checkpoint of iteration 4 is lost: 2 is the newest good one'):
        bench.finish(folder, 1, least=4)


def test_a_fault_that_is_borne_badly_fails_the_campaign(bench):
    def strike(bench, random):
        raise AssertionError('lost')

    result = campaign.strike(bench, 7, fault.Kind('bad', strike, 1), 0)
    assert (result.number, result.outcome) == (7, 'FAILED')
    assert campaign.summary([campaign.row(result)]) == '1 faults of 1 kinds: 1 FAILED'


def test_the_same_seed_draws_the_same_faults_and_every_kind():
    drawn = campaign.draw(5, 100)
    assert len(drawn) == 100
    assert drawn == campaign.draw(5, 100) != campaign.draw(6, 100)
    assert set(drawn) == set(fault.KINDS.values())

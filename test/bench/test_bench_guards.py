"""What the guards cost, in counts; times are bench.py's matter."""

from __future__ import annotations

import pytest

from recipe.bench import guards
from recipe.bench import model as bench_model
from recipe.core import console

pytestmark = pytest.mark.trains

SMALL = {
    'model.data_preprocessor.size': (64, 64),
    'model.backbone.depths': [1, 1, 1, 1],
    'model.backbone.drop_path_rate': 0.3,
    'model.decode_head.transformer_decoder.num_layers': 1,
}


@pytest.fixture(scope='module')
def batch():
    return bench_model.random_batch(1, 64, 64, block=32)


def test_the_guards_ask_the_device_for_nothing_more(batch):
    """No host synchronisation, and a handful of operators."""
    found = guards.measure(bench_model.DEMO, SMALL, batch, warmup=1, repeats=1)
    plain, guarded = found['without'], found['with']
    assert guarded['host_synchronisations_by_place'] == plain['host_synchronisations_by_place']
    assert plain['host_synchronisations'] == 1, 'the costs of the matching'
    assert 0 < guarded['operators'] - plain['operators'] <= 12
    assert guarded['operators'] <= 1.01 * plain['operators']


def test_guards_that_change_the_result_are_noticed(batch, monkeypatch):
    def leave_marks(runner):
        runner.optim_wrapper.optimizer.param_groups[0]['lr'] *= 2

    monkeypatch.setattr(guards, 'leave_marks', leave_marks)
    with pytest.raises(console.UserError, match='iteration 1 has other results'):
        guards.measure(bench_model.DEMO, SMALL, batch, warmup=1, repeats=1)


@pytest.mark.parametrize(('count', 'dropped'), [(1, 0), (6, 0), (8, 0), (9, 1), (20, 5), (40, 13)])
def test_interval_of_a_median(count, dropped):
    """Ranks as in tables of the sign test's interval of 95 %."""
    assert guards.median_interval(list(range(count))) == (dropped, count - 1 - dropped)


def test_the_marks_are_made(batch):
    from recipe.bench import trainer as bench_trainer

    trainer = bench_trainer.Trainer(bench_model.DEMO, SMALL)
    guards.leave_marks(trainer.runner)
    trainer.iterate(bench_model.samples(batch))
    (pulse,) = type(trainer.runner).memory.read()
    assert pulse.steps == 2, 'before and after the iteration'

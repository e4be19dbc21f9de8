"""The marks by which the watchdog sees that ranks go on."""

from __future__ import annotations

import os
import time

from recipe.launch import pulse, trainer
from recipe.launch.pulse import Heartbeat, Pulses


def test_marks_are_seen_through_the_memory(monkeypatch):
    monkeypatch.delenv(pulse.VARIABLE, raising=False)
    pulses = Pulses(3)
    assert pulses.read() == []
    monkeypatch.setenv('LOCAL_RANK', '1')
    beat = Heartbeat.of_this_rank()
    before = time.monotonic()
    beat.mark(step=True)
    beat.mark(step=True, slow=True)
    (seen,) = pulses.read()
    assert (seen.rank, seen.pid, seen.steps, seen.slow) == (1, os.getpid(), 2, True)
    assert before <= seen.at <= time.monotonic()
    pulses.clear()
    assert pulses.read() == []


def test_a_rank_that_nobody_watches_goes_on(tmp_path):
    Heartbeat(None, 0).mark()
    Heartbeat(str(tmp_path / 'gone'), 0).mark()


class Recorder:
    """A slot that keeps what is written to it."""

    def __init__(self):
        self.marks = []

    def mark(self, step=False, slow=False):
        self.marks.append((step, slow))


class Runner:
    def call_hook(self, fn_name, **kwargs):
        assert kwargs == {'batch_idx': 3}


def marks_of(*names):
    """The marks that stages leave, and of the last stage those when it begins and when it is left."""
    recorder, runner_class = Recorder(), type('Runner', (Runner,), {})
    trainer.show_progress(runner_class, recorder)
    for name in names:
        runner_class().call_hook(name, batch_idx=3)
    return recorder.marks[-2:]


def test_only_an_iteration_after_the_first_has_to_be_quick():
    train = ('before_train_iter', 'after_train_iter')
    assert marks_of('before_train_iter') == [(True, True), (False, True)], 'it may compile'
    assert marks_of(*train) == [(True, True), (False, False)], 'hooks may write a checkpoint'
    assert marks_of(*train, 'before_train_iter') == [(True, True), (False, False)]
    assert marks_of(*train, 'before_val_iter') == [(True, True), (False, True)], 'the first validation may compile'
    assert marks_of(*train, 'before_save_checkpoint') == [(False, True), (False, True)]
    assert marks_of('before_run') == [(False, True), (False, True)]

"""Signals while no rank runs: one line, 128 + the signal, and nothing left."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest

from recipe.core import run_folder
from recipe.core.run_options import Options
from recipe.launch import cli, interrupts
from recipe.launch.plan import Plan


@pytest.fixture(autouse=True)
def heeded():
    """A shell's background job starts with SIGINT ignored, which the launcher leaves so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def swallowed():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except:  # noqa: E722  as a library may
        pass


def as_mmengine():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except:  # noqa: E722  as a library may
        raise SyntaxError('Failed to format the config file:\n' + 'x = 1\n' * 650)  # noqa: B904


@pytest.mark.parametrize('work', [swallowed, as_mmengine])
def test_a_signal_ends_the_block_whatever_the_code_makes_of_it(work):
    before = [signal.getsignal(signum) for signum in interrupts.SIGNALS]
    with pytest.raises(interrupts.Interrupted) as caught, interrupts.caught('the launcher before the training began'):
        work()
    assert str(caught.value) == 'SIGINT ended the launcher before the training began'
    assert caught.value.status == 130
    assert [signal.getsignal(signum) for signum in interrupts.SIGNALS] == before


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signals_of_a_scheduler(signum):
    previous = signal.signal(signum, signal.SIG_DFL)
    try:
        with pytest.raises(interrupts.Interrupted) as caught, interrupts.caught('it'):
            os.kill(os.getpid(), signum)
            time.sleep(60)
    finally:
        signal.signal(signum, previous)
    assert caught.value.status == 128 + signum


def test_what_is_ignored_stays_ignored_and_other_errors_pass():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.caught('it'):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, previous)
    with pytest.raises(ZeroDivisionError), interrupts.caught('it'):
        1 / 0  # noqa: B018


@pytest.fixture(autouse=True)
def no_log(monkeypatch):
    monkeypatch.setattr(cli.console, 'log_to', lambda path: path.write_text('launcher.log'))


def start(folder, text, work_dir=True):
    """A start up to the moment in which the config is written, which takes seconds."""
    plan = Plan(Options(script='full', work_dir=str(folder) if work_dir else None))
    plan.folder, plan.device, plan.nproc = folder, 'cpu', 1
    plan.config = SimpleNamespace(train_dataloader={'batch_size': 2}, train_cfg={}, pretty_text=text)
    with cli.hold_folder(plan), interrupts.caught(interrupts.BEFORE):
        cli.write_run_files(plan, ['--seed=1'])
        as_mmengine()


@pytest.mark.parametrize('there', [None, [], ['notes.txt']])
def test_ctrl_c_while_the_config_is_written_leaves_what_was_there(tmp_path, there):
    folder = tmp_path / 'runs' / 'mine'
    if there is not None:
        folder.mkdir(parents=True)
    for name in there or ():
        (folder / name).touch()
    with pytest.raises(interrupts.Interrupted):
        start(folder, 'x = 1\n')
    assert [path.name for path in tmp_path.iterdir()] == ([] if there is None else ['runs'])
    assert there is None or [path.name for path in folder.iterdir()] == there
    run_folder.require_unused(folder)  # the same command starts again


def test_a_run_that_has_recorded_an_iteration_stays(tmp_path):
    folder = tmp_path / 'run'
    steps = folder / '20260101_000000' / 'vis_data' / 'steps.csv'
    steps.parent.mkdir(parents=True)
    steps.write_text('iter,data_s,step_s\n1,0.1,0.2\n')
    with pytest.raises(interrupts.Interrupted):
        start(folder, 'x = 1\n')
    assert (folder / 'config.py').read_text() == 'x = 1\n' and steps.is_file()
    assert not (folder / 'lock.json').exists()


def test_an_error_of_another_kind_leaves_the_folder_to_look_at(tmp_path):
    plan = Plan(Options(script='full', work_dir=str(tmp_path / 'run')))
    plan.folder = tmp_path / 'run'
    with pytest.raises(ZeroDivisionError), cli.hold_folder(plan):
        1 / 0  # noqa: B018
    assert (tmp_path / 'run').is_dir()

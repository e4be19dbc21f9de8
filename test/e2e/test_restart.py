"""Ranks that fail or hang: told apart, reported, and started again. Toy scripts in place of the trainer."""

from __future__ import annotations

import os
import signal
import tarfile
from pathlib import Path

import pytest
from test_launch_ranks import Job

from recipe.launch import failure_archive, ranks, watchdog
from recipe.launch.pulse import Pulse
from running import alive, descendants

PULSE = """
sys.path.insert(0, sys.argv[2])
import faulthandler
from recipe.launch import watchdog
from recipe.launch.pulse import Heartbeat
faulthandler.register(watchdog.DUMP)
beat = Heartbeat.of_this_rank()
attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])
"""


def test_a_failed_attempt_is_followed_by_another_which_may_end_well(tmp_path):
    body = "if rank == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': sys.exit(7)\nprint('well')"
    job = Job(tmp_path, body, max_restarts=2)
    status, failure, failures = job.end_with_all()
    assert (status, failure) == (0, None)
    assert [(one['what'], one['again']) for one in failures] == [('rank 1 ended with exit status 7', True)]
    assert [path.read_text() for path in sorted(tmp_path.glob('logs/*/attempt_1/*/stdout.log'))] == ['well\n'] * 2


def test_the_last_attempt_is_the_one_whose_log_is_named(tmp_path):
    body = """
if rank == 1:
    raise ValueError(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}")
time.sleep(60)
"""
    status, (what, log, lines), failures = Job(tmp_path, body, max_restarts=2).end_with_all()
    assert (status, what) == (1, 'rank 1 ended with exit status 1')
    assert '/attempt_2/1/' in log
    assert lines[-1] == 'ValueError: attempt 2'
    assert [one['again'] for one in failures] == [True, True, False]


@pytest.mark.parametrize('status', [pytest.param(143, marks=pytest.mark.release), 65])
def test_ranks_that_end_on_purpose_are_not_started_again(tmp_path, status):
    ended, _, failures = Job(tmp_path, f'sys.exit({status})', max_restarts=3).end_with_all()
    assert ended == status
    assert len(failures) == 1
    assert not list(tmp_path.glob('logs/*/attempt_1'))


def test_a_launcher_that_is_asked_to_end_starts_nothing_again(tmp_path):
    """The ranks do not handle the signal yet, so it ends them as a fault would."""
    body = "Path(folder, f'ready{rank}').touch()\ntime.sleep(600)"
    job = Job(tmp_path, body, max_restarts=3)
    job.until('ready0', 'ready1')
    job.process.send_signal(signal.SIGTERM)
    assert job.end_with_all()[0] == 128 + signal.SIGTERM
    assert not list(tmp_path.glob('logs/*/attempt_1'))


def test_loader_processes_of_a_failed_attempt_are_gone_before_the_next(tmp_path):
    body = """
mine = Path(folder, 'loaders')
if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    with mine.open('a') as file:
        print(pid, file=file)
    while len(mine.read_text().split()) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
from recipe.core import processes
print([pid for pid in mine.read_text().split() if processes.state(int(pid)) not in (None, 'Z')])
"""
    job = Job(tmp_path, PULSE + 'beat.mark()\n' + body, max_restarts=1)
    assert job.end_with_all()[0] == 0
    assert [path.read_text() for path in sorted(tmp_path.glob('logs/*/attempt_1/*/stdout.log'))] == ['[]\n'] * 2


HANGS = """
def stand_still():
    Path(folder, f'stands{rank}').touch()
    while True:
        time.sleep(0.1)
beat.mark(step=True)
if rank == 0:
    beat.mark(step=True)  # it waits for the other one, which is one stage behind
if attempt == 0:
    stand_still()
"""


def test_a_rank_that_hangs_is_named_with_its_stack_and_started_again(tmp_path):
    job = Job(tmp_path, PULSE + HANGS, hang_timeout_s=2, max_restarts=1)
    status, failure, (hang,) = job.end_with_all()
    assert (status, failure) == (0, None)
    assert hang['what'].startswith('rank 1 hangs: nothing went on for ')
    assert hang['last_lines'][0].endswith(' in stand_still')
    assert '/attempt_0/1/' in hang['log']
    # The one that waited has written its stack too.
    assert ' in stand_still' in next(tmp_path.glob('logs/*/attempt_0/0/stderr.log')).read_text()


def test_a_rank_that_is_stopped_is_named(tmp_path):
    body = """
Path(folder, f'pid{rank}').write_text(str(os.getpid()))
beat.mark(step=True)
while not Path(folder, 'stopped').exists() or rank == 1:
    beat.mark()
    time.sleep(0.05)
while True:
    time.sleep(1)
"""
    job = Job(tmp_path, PULSE + body, hang_timeout_s=2)
    job.until('pid0', 'pid1')
    below = descendants(job.process.pid)
    os.kill(int((tmp_path / 'pid1').read_text()), signal.SIGSTOP)
    (tmp_path / 'stopped').touch()
    status, (what, *_), _ = job.end_with_all()
    assert status == 124
    assert what.startswith('rank 1 was stopped by a signal')
    assert not alive(below)


def test_the_stack_shown_is_that_of_the_main_thread():
    """Whichever thread took the signal."""
    log = """
Thread 0x02 (most recent call first):
  File "pin.py", line 1 in pin
Current thread 0x03 (most recent call first):
  File "queues.py", line 2 in _feed
Thread 0x01 (most recent call first):
  File "train.py", line 3 in run_iter
  File "train.py", line 4 in main
[rank0]: terminated
"""
    assert ranks.stack(log.splitlines()) == [
        '  File "train.py", line 3 in run_iter',
        '  File "train.py", line 4 in main',
    ]


def pulses(*rows):
    return [Pulse(rank, rank + 1, *row) for rank, row in enumerate(rows)]


def find(rows, now, states='RRR'):
    return watchdog.find_hang(pulses(*rows), now, 10, lambda pid: states[pid - 1])


def test_what_counts_as_a_hang():
    # (time of the mark, stages, slow)
    assert find([(0, 5, False), (0, 5, False)], 9) is None
    assert find([(0, 5, False), (0, 4, False)], 11) == watchdog.Hang([1], False, 11, False)
    assert find([(0, 5, False), (0, 5, False)], 11) == watchdog.Hang([0, 1], True, 11, False)
    assert find([(0, 5, False), (5, 5, False)], 11) is None, 'one goes on'
    assert find([(0, 5, False), (0, 5, True)], 39) is None, 'one writes a checkpoint, the other waits'
    assert find([(0, 5, False), (0, 5, True)], 41) is not None
    assert find([(0, 5, False), (0, 5, False)], 11, 'RT') == watchdog.Hang([1], False, 11, True)
    assert find([(0, 5, False), (0, 4, False)], 11, 'RZ') == watchdog.Hang([0], True, 11, False), 'one has ended'
    assert find([], 1000) is None


def test_the_archive_holds_what_explains_a_failure(tmp_path, monkeypatch):
    run, plog = tmp_path / 'run', tmp_path / 'ascend'
    run.mkdir()
    monkeypatch.setenv('ASCEND_PROCESS_LOG_PATH', str(plog))
    for name in ('debug/plog/plog-4711_2026.log', 'debug/plog/plog-47110_2026.log', 'debug/device-0/device-4711_1.log'):
        (plog / name).parent.mkdir(parents=True, exist_ok=True)
        (plog / name).write_text(name)
    for name in ('config.py', 'command.txt', 'versions.json'):
        (run / name).write_text(name)
    body = """
print('line\\n' * 1000)
Path(folder, f'printed{rank}').touch()
while not Path(folder, 'printed0').exists():
    time.sleep(0.01)
if rank == 1:
    raise ValueError('on fire')
time.sleep(60)
"""
    job = Job(tmp_path, body)
    failure = job.end_with_all()[2][0]
    shown = failure_archive.Failure(failure['what'], Path(failure['log']), 1, failure['last_lines'], pids=[4711])
    path = failure_archive.write(run, tmp_path / 'logs', shown)
    assert path.name.startswith('failure_')
    with tarfile.open(path) as archive:
        held = {name.split('/', 1)[1]: archive.extractfile(name).read().decode() for name in archive.getnames()}
    assert {'config.py', 'command.txt', 'versions.json', 'failure.txt', 'logs/torchrun.log'} < set(held)
    assert held['failure.txt'].startswith('rank 1 ended with exit status 1\n')
    (own,) = [held[name] for name in held if name.endswith('/1/stderr.log')]
    assert 'ValueError: on fire' in own
    (other,) = [held[name] for name in held if name.endswith('/0/stdout.log')]
    assert other == 'line\n' * 200
    assert {name for name in held if name.startswith('plog/')} == {
        'plog/plog/plog-4711_2026.log',
        'plog/device-0/device-4711_1.log',
    }
    assert not list(run.glob('.*'))


def test_ranks_of_a_second_attempt_meet_and_take_the_same_checkpoint(tmp_path):
    body = """
sys.path.insert(0, sys.argv[2])
import torch, torch.distributed as dist
from recipe.launch import trainer
attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])
chosen = None
if attempt:
    trainer.store_of_attempt(attempt)
    trainer._choose = lambda folder: f'{folder.name} by rank {rank}'
    chosen = trainer.agree_on_checkpoint(Path('run'), attempt)
dist.init_process_group('gloo')
total = torch.ones(1)
dist.all_reduce(total)
if attempt == 0:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(total)
print(int(total), chosen)
dist.destroy_process_group()
"""
    status, failure, failures = Job(tmp_path, body, max_restarts=1).end_with_all()
    assert (status, failure) == (0, None), failures
    assert failures[0]['what'].startswith('rank 1 was killed by signal 9')
    said = [path.read_text() for path in sorted(tmp_path.glob('logs/*/attempt_1/*/stdout.log'))]
    assert said == ['2 run by rank 0\n'] * 2


def test_an_attempt_that_finds_no_good_checkpoint_is_the_last(tmp_path):
    body = """
sys.path.insert(0, sys.argv[2])
from recipe.core import console
from recipe.launch import trainer
attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])
if not attempt:
    sys.exit(7)
trainer.store_of_attempt(attempt)
console.run(lambda: trainer.agree_on_checkpoint(folder, attempt) and None)
"""
    (tmp_path / 'iter_2.pth').write_bytes(b'damaged')
    status, (_, _, lines), failures = Job(tmp_path, body, max_restarts=3).end_with_all()
    assert status == 69
    assert [one['again'] for one in failures] == [True, False]
    assert 'error: ' in lines[-1] and 'iter_2.pth' in lines[-1]

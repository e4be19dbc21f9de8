"""ranks.py with real processes and toy scripts in place of the trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch_sandbox import require_set_up, wait_until
from recipe.core import network, paths, processes
from recipe.launch import ranks
from running import alive, descendants

# Runs a toy script as two ranks and says how it ended.
DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from recipe.launch import ranks
started = ranks.Ranks(json.loads(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
failures = []
status = started.wait(lambda: None, failures.append)
failure = started.failure()
if failure and failure not in failures:
    failures.append(failure)
print(json.dumps([failure.what, str(failure.log), failure.last_lines] if failure else None))
print(json.dumps([{**vars(one), 'log': str(one.log)} for one in failures]))
sys.exit(status)
"""
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ['RANK']), Path(sys.argv[1])
"""


class Job:
    """Two ranks of a toy script.

    Args:
        folder: An empty folder.
        body: What each rank does; knows ``rank`` and ``folder``.
        max_restarts: How often the ranks are started again.
        hang_timeout_s: Seconds without a mark, 0: no watchdog.
        hangup: What the launcher does on SIGHUP when it starts; whoever runs the tests may have it ignored.
    """

    def __init__(
        self, folder: Path, body: str, max_restarts: int = 0, hang_timeout_s: int = 0, hangup=signal.SIG_DFL
    ) -> None:
        require_set_up()
        self.folder = folder
        script = folder / 'toy.py'
        script.write_text(PRELUDE + body)
        arguments = ['--nproc_per_node=2', '--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1', '--redirects=3']
        arguments += [f'--master_port={network.free_port()}', '--monitor_interval=0.1']
        arguments += [f'--max_restarts={max_restarts}']
        arguments += [str(paths.PACKAGE), 'start', str(script), str(folder), str(paths.ROOT)]
        env = json.dumps({'RECIPE_HANG_TIMEOUT_S': str(hang_timeout_s), 'RECIPE_RESTART_PATIENCE_S': '60'})
        command = [sys.executable, '-c', DRIVER, str(paths.ROOT), json.dumps(arguments), str(folder / 'logs'), env]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
        )

    def until(self, *names: str) -> None:
        """Wait until the ranks have made some files."""
        wait_until(lambda: all((self.folder / name).exists() for name in names), self.process)

    def end(self) -> tuple:
        """Wait for the end: exit status and failure."""
        return self.end_with_all()[:2]

    def end_with_all(self) -> tuple:
        """Wait for the end: exit status, failure, and the failures of all attempts."""
        out, _ = self.process.communicate(timeout=600)
        last, every = map(json.loads, out.splitlines()) if out else (None, [])
        return self.process.returncode, last, every


def test_the_first_rank_that_fails_is_named_with_its_words(tmp_path):
    job = Job(tmp_path, "if rank == 1: raise ValueError('the disk is on fire')\ntime.sleep(60)")
    status, (what, log, lines) = job.end()
    assert status == 1
    assert what == 'rank 1 ended with exit status 1'
    assert lines[-1] == 'ValueError: the disk is on fire'
    assert Path(log).read_text().splitlines()[-1] == lines[-1]


# Rank 0 ends as a collective does when its peer is gone.
FAILS_OF_RANK_1 = """
Path(folder, f'pid{rank}').write_text(str(os.getpid()))
if rank == 0:
    while not Path(folder, 'pid1').exists() or Path('/proc', Path(folder, 'pid1').read_text()).exists():
        time.sleep(0.001)
    sys.exit(1)
"""


def test_a_killed_rank_is_named_before_the_one_that_fails_of_it(tmp_path):
    body = (
        FAILS_OF_RANK_1
        + """
time.sleep(60)
"""
    )
    job = Job(tmp_path, body)
    job.until('pid0', 'pid1')
    os.kill(int((tmp_path / 'pid1').read_text()), signal.SIGKILL)
    status, (what, *_) = job.end()
    assert status == 128 + signal.SIGKILL
    assert what.startswith('rank 1 was killed by signal 9 (SIGKILL')


def test_a_rank_that_says_why_is_named_before_the_one_that_fails_of_it(tmp_path):
    body = (
        FAILS_OF_RANK_1
        + """
while not Path(folder, 'pid0').exists():
    time.sleep(0.001)
sys.exit(66)
"""
    )
    status, (what, *_) = Job(tmp_path, body).end()
    assert (status, what) == (66, 'rank 1 ended with exit status 66')


def test_a_rank_that_hangs_after_another_failed_is_ended(tmp_path):
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(folder, f'ready{rank}').touch()
while rank == 1 and not Path(folder, 'ready0').exists():
    time.sleep(0.01)
if rank == 1:
    sys.exit(3)
time.sleep(600)
"""
    status, (what, *_) = Job(tmp_path, body).end()
    assert (status, what) == (3, 'rank 1 ended with exit status 3')


LOADERS = """
if os.fork() == 0:  # a loader process
    time.sleep(600)
"""


@pytest.mark.parametrize(
    'signum',
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.release),  # test_restart.py
        pytest.param(signal.SIGINT, marks=pytest.mark.release),  # test_a_second_signal_ends_everything_at_once
        signal.SIGHUP,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.release),  # test_a_scheduler_may_send_sigusr1_to_all_processes
    ],
)
def test_a_signal_reaches_the_ranks_which_may_take_their_time(tmp_path, signum):
    body = """
def save(*_):
    time.sleep(0.5 + rank)
    Path(folder, f'saved{rank}').touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
Path(folder, f'ready{rank}').touch()
time.sleep(600)
"""
    job = Job(tmp_path, LOADERS + body)
    job.until('ready0', 'ready1')
    below = descendants(job.process.pid)
    assert len(below) >= 5  # torchrun, two ranks and their loaders
    job.process.send_signal(signum)
    assert job.end()[0] == 128 + signum
    assert (tmp_path / 'saved0').exists()
    assert (tmp_path / 'saved1').exists()
    assert not alive(below)


def test_under_nohup_the_training_outlives_the_terminal_and_all_is_well(tmp_path):
    body = """
print('hello of', rank)
Path(folder, f'ready{rank}').touch()
while not Path(folder, 'go').exists():
    time.sleep(0.01)
"""
    job = Job(tmp_path, body, hangup=signal.SIG_IGN)
    job.until('ready0', 'ready1')
    job.process.send_signal(signal.SIGHUP)
    (tmp_path / 'go').touch()
    assert job.end() == (0, None)
    logs = sorted(tmp_path.glob('logs/*/attempt_0/*/stdout.log'))
    assert [log.read_text() for log in logs] == ['hello of 0\n', 'hello of 1\n']


def test_a_scheduler_may_send_sigusr1_to_all_processes(tmp_path):
    """torchrun outlives it, and a rank that has no handler yet."""
    body = """
Path(folder, f'early{rank}').touch()
while not Path(folder, 'go').exists():
    time.sleep(0.01)
def save(*_):
    Path(folder, f'saved{rank}').touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
Path(folder, f'ready{rank}').touch()
time.sleep(600)
"""
    job = Job(tmp_path, body)
    job.until('early0', 'early1')
    for pid in descendants(job.process.pid):
        os.kill(pid, signal.SIGUSR1)
    (tmp_path / 'go').touch()
    job.until('ready0', 'ready1')
    for pid in [job.process.pid, *descendants(job.process.pid)]:
        os.kill(pid, signal.SIGUSR1)
    assert job.end()[0] == 128 + signal.SIGUSR1
    assert (tmp_path / 'saved0').exists()
    assert (tmp_path / 'saved1').exists()


def test_a_second_signal_ends_everything_at_once(tmp_path):
    body = """
signal.signal(signal.SIGTERM, lambda *_: Path(folder, f'asked{rank}').touch())
Path(folder, f'ready{rank}').touch()
while True:
    time.sleep(1)
"""
    job = Job(tmp_path, LOADERS + body)
    job.until('ready0', 'ready1')
    below = descendants(job.process.pid)
    job.process.send_signal(signal.SIGINT)
    job.until('asked0', 'asked1')
    assert len(alive(below)) == len(below)
    job.process.send_signal(signal.SIGINT)
    assert job.end()[0] == 128 + signal.SIGINT
    assert not alive(below)


@pytest.mark.parametrize('victim', ['launcher', 'torchrun'])
def test_no_rank_outlives_a_launcher_or_a_torchrun_that_is_killed(tmp_path, victim):
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(folder, f'ready{rank}').touch()
time.sleep(600)
"""
    job = Job(tmp_path, body)
    job.until('ready0', 'ready1')
    below = descendants(job.process.pid)
    torchrun = [row.pid for row in processes.table() if row.parent == job.process.pid]
    os.kill(job.process.pid if victim == 'launcher' else torchrun[0], signal.SIGKILL)
    job.end()
    deadline = time.monotonic() + 600
    while alive(below) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(below)


def test_a_torchrun_that_fails_itself_is_reported_with_its_words(tmp_path):
    require_set_up()
    script = tmp_path / 'toy.py'
    script.touch()
    arguments = ['--nproc_per_node=2', '--no_such_option', str(script)]
    started = ranks.Ranks(arguments, tmp_path / 'logs', {})
    assert started.wait(lambda: None) == 1
    failure = started.failure()
    assert failure.what.startswith('torchrun ended with status')
    assert 'no_such_option' in '\n'.join(failure.last_lines)


def test_the_end_of_a_long_log_is_read(tmp_path):
    path = tmp_path / 'log'
    path.write_text(''.join(f'line {number}\n\n' for number in range(100_000)))
    assert ranks.tail(path, 2) == ['line 99998', 'line 99999']
    assert ranks.tail(tmp_path / 'none') == []

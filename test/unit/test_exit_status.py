"""How the trainer's process ends: its status, and what is done on the way out."""

from __future__ import annotations

import subprocess
import sys

import pytest

JOB = """
import atexit, sys
from mmseg.engine import exit_status

class Witness:
    def __del__(self):
        print('the interpreter was taken apart', flush=True)

witness = Witness()
atexit.register(print, 'exit function')
sys.stdout.write('written last, with no end of line ')
exit_status.leave({ended})
"""


def end(ended: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', JOB.format(ended=ended)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ('ended', 'status', 'said'),
    [
        ('', 0, ''),
        ('SystemExit(143)', 143, ''),
        ('SystemExit()', 0, ''),
        ("SystemExit('said by a hook of the user')", 1, 'said by a hook of the user\n'),
        ("exit_status.TrainingEnded('no number', exit_status.NONFINITE)", 65, '\nerror: no number\n'),
    ],
)
def test_what_was_registered_is_done_and_the_interpreter_left_whole(ended, status, said):
    """Native threads that reach for an interpreter that is taken apart abort the process."""
    done = end(ended)
    assert (done.returncode, done.stderr) == (status, said)
    assert done.stdout == 'written last, with no end of line exit function\n'


@pytest.mark.parametrize('name', ['UNREADABLE', 'LOADER_DIED'])
def test_a_rank_alone_waits_for_nothing(name):
    done = end(f"exit_status.TrainingEnded('gone', exit_status.{name})")
    assert done.returncode in (66, 71)
    assert done.stderr == '\nerror: gone\n'
    assert done.stdout == 'written last, with no end of line '


def test_a_thread_that_is_not_done_is_waited_for():
    thread = "threading.Thread(target=lambda: (time.sleep(0.5), print('the thread is done'))).start()"
    job = f'import threading, time\n{thread}\n{JOB.format(ended="")}'
    done = subprocess.run([sys.executable, '-c', job], capture_output=True, text=True, check=True)
    assert 'the thread is done' in done.stdout


def test_a_witness_speaks_where_the_interpreter_is_taken_apart():
    done = subprocess.run(
        [sys.executable, '-c', JOB.replace('exit_status.leave({ended})', '')],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'the interpreter was taken apart' in done.stdout

"""How the trainer's process ends: its status, and what is done on the way out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

# Importing the trainer takes most of the time, so one process does it and each job is a fork of that.
FORKS = """
import json, os, sys
from recipe.core import exit_status
from recipe.engine import termination

for line in sys.stdin:
    job, *outputs = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for stream, path in enumerate(outputs, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        exec(job, globals())
        sys.exit()
    status = os.waitpid(pid, 0)[1]
    print(os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status), flush=True)
"""
JOB = """
import atexit

class Witness:
    def __del__(self):
        print('the interpreter was taken apart', flush=True)

witness = Witness()
atexit.register(print, 'exit function')
sys.stdout.write('written last, with no end of line ')
"""


class Ended(NamedTuple):
    """Exit status, negative for a signal, and what was written."""

    status: int
    out: str
    err: str


@pytest.fixture(scope='module')
def forks():
    command = [sys.executable, '-c', FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process  # which ends as its standard input does


@pytest.fixture
def end(forks, tmp_path: Path):
    """Run a job to its end."""

    def run(job: str) -> Ended:
        paths = [tmp_path / 'out', tmp_path / 'err']
        print(json.dumps([job, *map(str, paths)]), file=forks.stdin, flush=True)
        return Ended(int(forks.stdout.readline()), *(path.read_text() for path in paths))

    return run


@pytest.mark.parametrize(
    ('ended', 'status', 'said'),
    [
        ('', 0, ''),
        ('SystemExit(143)', 143, ''),
        ('SystemExit()', 0, ''),
        ("SystemExit('said by a hook of the user')", 1, 'said by a hook of the user\n'),
        ("termination.TrainingEnded('no number', exit_status.NONFINITE)", 65, '\nerror: no number\n'),
    ],
)
def test_what_was_registered_is_done_and_the_interpreter_left_whole(end, ended, status, said):
    """Native threads that reach for an interpreter that is taken apart abort the process."""
    done = end(f'{JOB}\ntermination.leave({ended})')
    assert done == (status, 'written last, with no end of line exit function\n', said)


@pytest.mark.parametrize(('name', 'status'), [('UNREADABLE', 66), ('LOADER_DIED', 71)])
def test_a_rank_alone_waits_for_nothing(end, name, status):
    done = end(f"{JOB}\ntermination.leave(termination.TrainingEnded('gone', exit_status.{name}))")
    assert done == (status, 'written last, with no end of line ', '\nerror: gone\n')


def test_a_thread_that_is_not_done_is_waited_for(end):
    thread = "threading.Thread(target=lambda: (time.sleep(0.5), print('the thread is done'))).start()"
    done = end(f'import threading, time\n{thread}\n{JOB}\ntermination.leave()')
    assert done.status == 0
    assert 'the thread is done' in done.out


def test_a_witness_speaks_where_the_interpreter_is_taken_apart(end):
    assert 'the interpreter was taken apart' in end(JOB).out

"""tools/tied_process.py: programs end with their starter, and nobody takes its lock before they have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import tied_process
from running import processes_with
from upstream_world import wait_until

TOOLS = Path(tied_process.__file__).parent

# Holds the lock of argument 1 while a shell with a child of its own runs; the shell says its process id in argument 2.
_HOLDER = f"""
import os, sys
sys.path.insert(0, {str(TOOLS)!r})
import tied_process
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
script = 'sleep 600 & echo $$ > ' + sys.argv[2] + '.new; mv ' + sys.argv[2] + '.new ' + sys.argv[2] + '; wait'
with tied_process.lock(descriptor, print), tied_process.started(['/bin/sh', '-c', script]) as process:
    process.wait()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a lock and has started a program; also the program's process id."""
    env = {**os.environ, 'RUN_OF_A_TEST': str(tmp_path)}
    process = subprocess.Popen([sys.executable, '-c', _HOLDER, str(tmp_path / 'lock'), str(tmp_path / 'pid')], env=env)
    wait_until((tmp_path / 'pid').exists, 'the program')
    yield process, int((tmp_path / 'pid').read_text())
    for pid in processes_with(f'RUN_OF_A_TEST={tmp_path}'):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def keeper_of(pid):
    return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])


def test_a_lock_is_held_until_the_programs_of_a_killed_holder_have_ended(holder, tmp_path):
    process, program = holder
    mark = f'RUN_OF_A_TEST={tmp_path}'
    keeper = keeper_of(program)
    os.kill(keeper, signal.SIGSTOP)  # as if the machine had no time for it
    process.kill()
    process.wait()
    assert Path(f'/proc/{program}').exists()
    said = []

    def waits(holder):
        said.append(holder)
        os.kill(keeper, signal.SIGCONT)

    with tied_process.lock(os.open(str(tmp_path / 'lock'), os.O_RDWR), waits):
        assert said == [f'process {process.pid}, which has ended, but a program that it started has not']
        assert not processes_with(mark)


def test_a_waiting_process_is_told_who_holds_the_lock(holder, tmp_path):
    process, _ = holder
    said = []

    def waits(holder):
        said.append(holder)
        process.terminate()

    with tied_process.lock(os.open(str(tmp_path / 'lock'), os.O_RDWR), waits):
        assert said == [f'process {process.pid}']


def test_the_program_ends_where_only_its_keeper_is_killed(holder, tmp_path):
    process, program = holder
    os.kill(keeper_of(program), signal.SIGKILL)
    process.wait()
    wait_until(lambda: program not in processes_with(f'RUN_OF_A_TEST={tmp_path}'), 'the end of the program', 20)


@pytest.mark.parametrize(('script', 'status'), [('exit 0', 0), ('exit 7', 7), ('kill -9 $$', 137)])
def test_the_status_is_that_of_the_program(script, status):
    with tied_process.started(['/bin/sh', '-c', script]) as process:
        assert process.wait() == status


def test_a_program_that_is_not_there_is_a_status_as_in_a_shell():
    with tied_process.started(['/nonexistent'], stderr=subprocess.PIPE, text=True) as process:
        assert process.wait() == 127
        assert 'No such file or directory: /nonexistent' in process.stderr.read()


def test_what_a_failed_program_leaves_running_is_ended(tmp_path):
    env = {**os.environ, 'RUN_OF_A_TEST': str(tmp_path)}
    with tied_process.started(['/bin/sh', '-c', 'sleep 600 & exit 1'], env=env) as process:
        assert process.wait() == 1
    assert not processes_with(f'RUN_OF_A_TEST={tmp_path}')

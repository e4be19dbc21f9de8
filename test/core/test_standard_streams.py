"""Work goes on without a terminal: readers that leave, full disks, hang-ups, closed streams, odd encodings."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from recipe.core import paths

# Does its work after it has said something, and says something after its work.
TOOL = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from recipe.core import console

def main():
    folder, log, ending = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    console.say('begins')
    sys.stdin and sys.stdin.read()
    if log != '-':
        console.log_to(folder / log)
    for number in range(3):
        console.say(f'line {number}')
        console.warn(f'warning {number}')
        print('printed', number)
    with open(folder / 'work', 'w') as file:
        file.write('done')
    if ending == 'error':
        raise console.UserError('refused', status=7)
    if ending == 'help':
        sys.exit(0)

console.run(main)
"""
GONE = 'warning: stdout cannot be written (Broken pipe); the work goes on without it'


@pytest.fixture
def tool(tmp_path):
    """Runs the tool in a shell that does something to its streams."""

    def run(streams, log='-', ending='well', **env):
        words = [sys.executable, '-c', TOOL, str(paths.ROOT), str(tmp_path), log, ending]
        return subprocess.run(
            ['bash', '-c', f'"$@" {streams}; exit "${{PIPESTATUS[0]}}"', 'bash', *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **env},
            check=False,
        )

    yield run
    assert (tmp_path / 'work').read_text() == 'done'


@pytest.mark.parametrize('ending', ['well', 'error'])
def test_a_reader_that_leaves_ends_nothing(tmp_path, ending):
    """As with ``| head -1``; the status is that of the work, and nothing is said of it."""
    words = [sys.executable, '-c', TOOL, str(paths.ROOT), str(tmp_path), '-', ending]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'begins\n'
    process.stdout.close()
    process.stdin.close()
    err = process.stderr.read().splitlines()
    assert process.wait() == {'well': 0, 'error': 7}[ending]
    assert err == [f'warning: warning {number}' for number in range(3)] + ['error: refused'] * (ending == 'error')
    assert (tmp_path / 'work').exists()


def test_what_nobody_reads_is_in_the_log(tmp_path):
    words = [sys.executable, '-c', TOOL, str(paths.ROOT), str(tmp_path), 'log', 'well']
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    assert GONE in process.stderr.read().splitlines()
    assert process.wait() == 0
    said = [line[21:] for line in (tmp_path / 'log').read_text().splitlines()]
    assert said[:1] == ['begins'] and said[-1] == 'warning: warning 2'
    assert {GONE, 'line 0', 'line 1', 'line 2'} <= set(said)


@pytest.mark.parametrize('ending', ['well', 'help'])
def test_a_full_disk_under_stdout_is_a_failure_in_one_line(tool, ending):
    done = tool('>/dev/full', ending=ending)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: No space left on device: stdout')
    assert 'Traceback' not in done.stderr


def test_a_full_disk_under_stdout_is_none_where_a_log_has_it_all(tool, tmp_path):
    done = tool('>/dev/full', log='log')
    assert done.returncode == 0, done.stderr
    assert 'No space left on device' in (tmp_path / 'log').read_text()
    assert 'line 2' in (tmp_path / 'log').read_text()


@pytest.mark.parametrize(
    ('streams', 'status', 'said'),
    [
        ('2>/dev/full', 0, 'line 2'),
        ('>&-', 0, ''),
        ('2>&-', 0, 'line 2'),
        ('<&-', 0, 'line 2'),
        ('<&- >&- 2>&-', 0, ''),
        ('>/dev/full 2>&1', 1, ''),
    ],
)
@pytest.mark.parametrize('ending', ['well', 'error'])
def test_streams_that_are_full_or_closed(tool, streams, status, said, ending):
    """What is opened next does not take the number of a closed one."""
    done = tool(streams, ending=ending)
    assert done.returncode == (7 if ending == 'error' else status)
    assert said in done.stdout
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.parametrize('encoding', ['ascii', 'ascii:strict', 'utf-8'])
def test_a_path_is_written_as_it_is_in_any_encoding(tmp_path, encoding):
    folder = tmp_path / 'größe 模型'
    code = 'import sys; sys.path.insert(0, sys.argv[1]); from recipe.core import console\n'
    code += 'console.run(lambda: console.say(sys.argv[2]))'
    command = [sys.executable, '-c', code, str(paths.ROOT), str(folder)]
    env = {**os.environ, 'PYTHONIOENCODING': encoding}
    done = subprocess.run(command, capture_output=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, b'')
    assert done.stdout == os.fsencode(folder) + b'\n'


def test_a_pipe_that_nobody_empties_and_that_does_not_wait():
    """stdout may be non-blocking, as when a shell shares it with an editor or ssh."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = (
        'import sys; sys.path.insert(0, sys.argv[1])\n'
        'from recipe.core import console, standard_streams as s; s._PATIENCE_S = 0.1\n'
        'console.run(lambda: [console.say("x" * 100) for _ in range(2000)] and print("done", file=sys.stderr))'
    )
    command = [sys.executable, '-c', code, str(paths.ROOT)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.splitlines()[0] == 'done'
    assert done.returncode == 1 and 'stdout' in done.stderr.splitlines()[-1]
    os.close(reading)
    os.close(writing)


BAR = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from recipe.core import console
from recipe.launch import progress

def main():
    console.log_to(Path(sys.argv[2]) / 'log')
    with progress.Progress(Path(sys.argv[2]), 9, 8) as shown:
        shown.look()
        sys.stdin.read()  # until the terminal is gone
        for _ in range(20):
            shown._next_look = 0
            shown.look()
            time.sleep(0.05)
    console.say('Final')

console.run(main)
"""


def test_a_terminal_that_hangs_up_under_the_bar_ends_nothing(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, '-c', BAR, str(paths.ROOT), str(tmp_path)]
    env = {**os.environ, 'TERM': 'xterm'}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    seen = b''
    while b'starting' not in seen:
        seen += os.read(ours, 1 << 16)
    os.close(ours)
    process.stdin.close()
    assert process.wait() == 0
    assert (tmp_path / 'log').read_text().splitlines()[-1].endswith('  Final')

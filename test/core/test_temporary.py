"""Temporary folders: nothing stays, not even after a kill, and sockets have short names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import console, paths, temporary

OLD = (0, 0)  # a time of change long ago


def python(code, **env):
    """Run some code that knows ``temporary``."""
    code = f'import sys; sys.path.insert(0, {str(paths.ROOT)!r})\nfrom recipe.core import temporary\n{code}'
    command = [sys.executable, '-c', code]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def test_a_folder_goes_with_its_block_and_one_of_a_killed_process_with_the_next(tmp_path):
    done = python(
        'import os\nwith temporary.folder() as made: (made / "file").touch(); os.kill(os.getpid(), 9)',
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / 'mask2former').mkdir()  # not ours
    with temporary.folder(str(tmp_path)) as made:
        assert left.exists()  # it may have been made a moment ago, by a process that has not locked it yet
        os.utime(left, OLD)
        os.utime(made, OLD)
        with temporary.folder(str(tmp_path)):
            assert not left.exists() and made.exists()  # the other one is in use
    assert [path.name for path in tmp_path.iterdir()] == ['mask2former']


LISTENS = """
import multiprocessing.connection as connection
print(len(connection.Listener(family='AF_UNIX').address))
"""


def test_sockets_under_a_long_tmpdir(tmp_path):
    long = tmp_path / ('long_' * 24)
    long.mkdir()
    before = python(LISTENS, TMPDIR=str(long))
    assert 'AF_UNIX path too long' in before.stderr  # what it is about
    done = python(f'print(temporary.sockets()); {LISTENS.strip()}'.replace('; import', '\nimport'), TMPDIR=str(long))
    folder, length = done.stdout.split()
    assert int(length) <= 107 and not Path(folder).exists() and done.stderr == ''


def test_sockets_under_a_short_tmpdir_stay_there(monkeypatch, tmp_path):
    done = python(f'temporary.sockets(){LISTENS}', TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_place_for_temporary_files_is_one_line(tmp_path):
    said = r'no temporary folder can be made in .*; set TMPDIR'
    with pytest.raises(console.UserError, match=said), temporary.folder(str(tmp_path / 'nowhere')):
        pass

"""Who may train in a run folder: one launcher at a time, and nobody's leftovers are in the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe.core import console, run_folder, run_lock
from recipe.core.run_lock import RunLock

TOOLS = Path(run_lock.__file__).parent
# Holds the lock until it is killed; a child that has inherited it may live on.
HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import subprocess
import run_lock
with run_lock.RunLock(Path(sys.argv[2]), beat_s=0.1) as lock:
    if sys.argv[3] == 'child':
        subprocess.Popen(['sleep', '600'], pass_fds=(lock.descriptor,), stdout=subprocess.DEVNULL)
    print('held', flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts another process that holds the lock of the folder."""
    started = []

    def start(mode='alone'):
        command = [sys.executable, '-c', HOLD, str(TOOLS), str(tmp_path), mode]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert started[-1].stdout.readline() == 'held\n'
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def no_flock(monkeypatch):
    """Storage without locks, such as some network file systems."""

    def flock(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.flock', flock)


def elsewhere(folder, **changes):
    """Have the lock be that of another machine, as far as can be seen from here."""
    path = folder / run_lock.NAME
    content = {**json.loads(path.read_text()), 'host': 'far', 'boot': 'another', 'namespace': 'pid:[1]', **changes}
    path.write_text(json.dumps(content))
    return content


def refused(folder, **options):
    said = rf'^{folder} is in use by another training \(.*\); wait for its end, end it \(kill \d+ on .*\), or give'
    with pytest.raises(console.UserError, match=said) as told, RunLock(folder, **options):
        pass
    return str(told.value)


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path):
    with RunLock(tmp_path):
        content = json.loads((tmp_path / run_lock.NAME).read_text())
        assert content['pid'] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_second_launcher_is_refused_at_once_and_told_who_holds_it(tmp_path, hold):
    holder = hold()
    before = (tmp_path / run_lock.NAME).read_bytes()
    assert f'process {holder.pid} on ' in refused(tmp_path)
    for patient in (False, True):
        with pytest.raises(console.UserError, match=f'end it .kill {holder.pid} on '):
            run_lock.require_free(tmp_path, patient)
    assert (tmp_path / run_lock.NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [run_lock.NAME]


@pytest.mark.parametrize('resume', [True, False])
def test_the_options_are_refused_too(tmp_path, hold, resume):
    (tmp_path / 'iter_2.pth').touch()
    hold()
    with pytest.raises(console.UserError, match='is in use by '):
        run_folder.choose('train_full_8p', False, str(tmp_path), resume)


def test_the_same_without_flock(tmp_path, hold, no_flock):
    holder = hold()
    assert f'process {holder.pid} on ' in refused(tmp_path)


@pytest.mark.parametrize('flock', [True, False])
def test_the_lock_of_a_killed_launcher_is_taken_over(tmp_path, hold, flock, request, capsys):
    if not flock:
        request.getfixturevalue('no_flock')
        request.getfixturevalue('monkeypatch').setattr(run_lock, '_SETTLE_S', 0.1)
    holder = hold()
    holder.kill()
    holder.wait()
    with RunLock(tmp_path):
        pass
    assert f'was left behind by process {holder.pid} on ' in capsys.readouterr().err


def test_an_id_that_was_used_again_is_another_process(tmp_path, hold, no_flock, monkeypatch):
    monkeypatch.setattr(run_lock, '_SETTLE_S', 0.1)
    hold()
    path = tmp_path / run_lock.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), 'born': '1'}))
    with RunLock(tmp_path):
        pass


def test_a_launcher_is_waited_for_whose_ranks_are_still_ending(tmp_path, hold):
    holder = hold('child')
    holder.kill()
    holder.wait()
    assert 'is in use' in refused(tmp_path, stale_s=0.5)
    os.killpg(holder.pid, signal.SIGKILL)  # the child
    with RunLock(tmp_path, stale_s=30):
        pass


def test_a_holder_in_another_container_is_known_by_flock(tmp_path, hold, capsys):
    """Of the same machine, and so of the same kernel, whatever the containers are called."""
    holder = hold()
    elsewhere(tmp_path, boot=run_lock._identity()['boot'])
    assert 'on far' in refused(tmp_path)
    holder.kill()
    holder.wait()
    with RunLock(tmp_path, stale_s=1000):
        pass


def test_another_machine_is_known_by_its_heartbeat(tmp_path, hold, no_flock, monkeypatch):
    """Whatever its clock says: only that the file is touched counts."""
    monkeypatch.setattr(run_lock, '_SETTLE_S', 0.1)
    content = json.dumps({**vars(_foreign()), 'flock': False})
    (tmp_path / run_lock.NAME).write_text(content)
    beating = subprocess.Popen(['bash', '-c', f'while true; do touch {tmp_path}/lock.json; sleep 0.1; done'])
    try:
        assert 'process 7 on far' in refused(tmp_path, stale_s=60)
    finally:
        beating.kill()
        beating.wait()
    with RunLock(tmp_path, stale_s=1):
        pass


def _foreign(**changes):
    values = dict(token='t', host='far', boot='b', namespace='n', pid=7, born='1', since='x', job='', flock=False)
    return run_lock.Holder(**{**values, **changes})


@pytest.mark.parametrize('content', [json.dumps(vars(_foreign())), '{"token": ', '[1]', ''])
def test_an_old_lock_is_taken_over_without_waiting(tmp_path, content, monkeypatch, capsys):
    monkeypatch.setattr(run_lock, '_WRITING_S', 0.3)
    path = tmp_path / run_lock.NAME
    path.write_text(content)
    os.utime(path, (1, 1))
    with RunLock(tmp_path, stale_s=1000):
        pass
    assert f'{path} was left behind by ' in capsys.readouterr().err


def test_of_two_that_take_over_one_lock_one_goes_on(tmp_path, no_flock, monkeypatch):
    """Storage without locks: the other one has written last."""
    monkeypatch.setattr(run_lock, '_SETTLE_S', 0.1)
    path = tmp_path / run_lock.NAME
    path.write_text(json.dumps(vars(_foreign())))
    os.utime(path, (1, 1))
    write = run_lock._write

    def write_and_lose(fd, holder):
        write(fd, holder)
        if holder.host != 'faster':
            path.write_text(
                json.dumps(
                    vars(
                        _foreign(
                            host='faster',
                            boot=holder.boot,
                            namespace=holder.namespace,
                            pid=os.getpid(),
                            born=holder.born,
                        )
                    )
                )
            )

    monkeypatch.setattr(run_lock, '_write', write_and_lose)
    assert 'on faster' in refused(tmp_path)


def test_whoever_was_away_for_too_long_ends(tmp_path):
    with RunLock(tmp_path, beat_s=0.05) as lock:
        lock.require_held()
        (tmp_path / run_lock.NAME).write_text(json.dumps(vars(_foreign(host='newer'))))
        deadline = time.monotonic() + 60
        with pytest.raises(console.UserError, match='was taken over by process 7 on newer'):
            while time.monotonic() < deadline:
                lock.require_held()
                time.sleep(0.05)
    assert 'newer' in (tmp_path / run_lock.NAME).read_text()  # it is not ours to delete


def test_a_lock_that_somebody_deleted_is_made_again(tmp_path):
    with RunLock(tmp_path, beat_s=0.05):
        (tmp_path / run_lock.NAME).unlink()
        deadline = time.monotonic() + 60
        while not (tmp_path / run_lock.NAME).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_machines_of_one_job_share_the_folder_and_those_of_another_do_not(tmp_path):
    with RunLock(tmp_path, '2@10.0.0.1:29500'):
        run_lock.require_same_job(tmp_path, '2@10.0.0.1:29500')
        for job in ('2@10.0.0.2:29500', '2@10.0.0.1:29501', '4@10.0.0.1:29500'):
            with pytest.raises(console.UserError, match='is in use'):
                run_lock.require_same_job(tmp_path, job)
    run_lock.require_same_job(tmp_path, '2@10.0.0.2:29500')
    # left behind by another machine: no heartbeat, so no job
    (tmp_path / run_lock.NAME).write_text(json.dumps(vars(_foreign(job='2@10.0.0.1:1'))))
    run_lock.require_same_job(tmp_path, '2@10.0.0.2:29500', beat_s=0.1)
    assert run_lock.is_same_job('2@127.0.1.1:29500', '2@10.0.0.1:29500')


def test_starts_of_one_second_get_folders_of_their_own(tmp_path):
    chosen = tmp_path / 'runs' / '20260101_000000'
    made = [run_folder.make(chosen, False)[0] for _ in range(3)]
    assert made[0] == chosen and sorted(set(made)) == made

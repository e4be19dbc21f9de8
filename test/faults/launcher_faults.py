"""Faults of a training that the launcher has started: what its ranks, torchrun and it itself meet."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from random import Random

import test_two_hosts

from fault import UnavailableError, kind
from fault_bench import Bench, Launched, children, iterations, newest_good
from file_faults import Disk
from recipe.core import network
from resume_job import assert_same_end
from running import descendants


def begun(bench: Bench, random: Random, *argv: str) -> Launched:
    """A training that is somewhere behind its first checkpoint."""
    bench.launcher.unbroken()  # not while this one runs
    launched = bench.launcher.start(bench.launcher.new_folder(), *argv)
    launched.until_saved(random.choice([2, 4, 6]))
    time.sleep(random.uniform(0, 0.3))
    return launched


def restarted(bench: Bench, launched: Launched, said: str) -> None:
    """The training ends well by itself, says what happened, and leaves an archive."""
    assert launched.end() == 0, launched.said
    warnings = [line for line in launched.said.splitlines() if line.startswith('warning: ') and 'restart 1 of' in line]
    assert len(warnings) == 1, launched.said
    assert said in warnings[0], warnings
    assert list(launched.folder.glob('failure_*.tar.gz')), launched.said
    bench.launcher.compare(launched.folder)


@kind('launcher: rank killed, restarted')
def rank_killed(bench: Bench, random: Random) -> str:
    launched = begun(bench, random, '--max_restarts=1')
    rank = random.choice([0, 1])
    os.kill(launched.rank(rank), signal.SIGKILL)
    restarted(bench, launched, f'rank {rank} was killed by signal 9')
    return f'rank {rank} killed; restarted by itself, same end'


@kind('launcher: rank stopped, watchdog')
def rank_stopped(bench: Bench, random: Random) -> str:
    launched = begun(bench, random, '--max_restarts=1', '--hang_timeout=25')
    rank = random.choice([0, 1])
    os.kill(launched.rank(rank), signal.SIGSTOP)
    if launched.end() == 0 and 'restart 1 of' not in launched.said:
        # The watchdog wakes the rank for its stack, two seconds before it ends it: enough for the rest of the training.
        bench.launcher.compare(launched.folder)
        return f'SIGSTOP of rank {rank}; woken for its stack, and had trained to its end before it was ended, same end'
    restarted(bench, launched, f'rank {rank} was stopped by a signal')
    (path,) = launched.folder.glob('failure_*.tar.gz')
    with tarfile.open(path) as archive:
        logs = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
    # Where in the training each rank stood: the one that was stopped, and the one that waited for it.
    for one in (0, 1):
        (own,) = [text for name, text in logs.items() if name.endswith(f'/{one}/stderr.log')]
        assert ' in _run_iters' in own, own
    return f'SIGSTOP of rank {rank}; noticed, both stacks kept, restarted by itself, same end'


@kind('launcher: loader process killed, restarted')
def loader_killed(bench: Bench, random: Random) -> str:
    launched = begun(bench, random, '--max_restarts=1')
    rank = random.choice([0, 1])
    os.kill(random.choice(children(launched.rank(rank))), signal.SIGKILL)
    if launched.end() == 0 and 'restart 1 of' not in launched.said:
        bench.launcher.compare(launched.folder)
        return 'a loader process killed that had done its work; same end'
    restarted(bench, launched, 'exit status 71')
    return f'a loader process of rank {rank} killed; restarted by itself, same end'


@kind('launcher: killed')
def launcher_killed(bench: Bench, random: Random) -> str:
    return _killed(bench, random, 'launcher')


@kind('launcher: torchrun killed')
def torchrun_killed(bench: Bench, random: Random) -> str:
    return _killed(bench, random, 'torchrun')


def _killed(bench: Bench, random: Random, victim: str) -> str:
    launched = begun(bench, random)
    below = descendants(launched.process.pid)
    saved = max(iterations(launched.folder))
    os.kill(launched.process.pid if victim == 'launcher' else launched.agent(), signal.SIGKILL)
    assert launched.end(below) != 0
    newest = newest_good(launched.folder)
    assert newest is not None and newest >= saved
    bench.launcher.finish(launched.folder)
    return f'{victim} killed; all ended, resumed at iteration {newest}, same end'


@kind('launcher: SIGTERM')
def terminated(bench: Bench, random: Random) -> str:
    launched = begun(bench, random, '--max_restarts=1')
    below = descendants(launched.process.pid)
    os.kill(launched.process.pid, signal.SIGTERM)
    status = launched.end(below)
    assert status == 128 + signal.SIGTERM, launched.said
    newest = newest_good(launched.folder)
    bench.launcher.finish(launched.folder)
    return f'SIGTERM; status 143, saved at iteration {newest}, resumed, same end'


@kind('launcher: port stolen')
def port_stolen(bench: Bench, random: Random) -> str:
    """After the launcher has looked, before torchrun takes it."""
    bench.launcher.unbroken()
    port = network.free_port()
    folder = bench.launcher.new_folder()
    launched = bench.launcher.start(folder, f'--master_port={port}')
    while 'device ' not in launched.said and launched.process.is_alive():
        time.sleep(0.01)
    with socket.socket() as thief:
        thief.bind(('', port))
        thief.listen()
        status = launched.end()
    assert status > 0, launched.said
    assert str(port) in launched.said.splitlines()[-1], launched.said
    bench.launcher.finish(folder)
    return f'port stolen; refused with status {status}, then same end'


@kind('launcher: files deleted')
def files_deleted(bench: Bench, random: Random) -> str:
    launched = begun(bench, random)
    os.kill(launched.process.pid, signal.SIGKILL)
    launched.end(descendants(launched.process.pid))
    gone = random.sample(['config.py', 'last_checkpoint', 'versions.json', 'command.txt', 'logs'], 2)
    for name in gone:
        path = launched.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    bench.launcher.finish(launched.folder)
    return f'killed, then {" and ".join(gone)} deleted; resumed, same end'


@kind('launcher: disk full')
def disk_full(bench: Bench, random: Random) -> str:
    """Not a byte is left for checkpoints, logs and scalars, until somebody makes room."""
    bench.launcher.unbroken()
    place = bench.launcher.new_folder()
    with Disk(place, 128 << 20) as disk:  # the launcher asks for 75 MiB before it starts
        launched = bench.launcher.start(place / 'run')
        launched.until_saved(random.choice([2, 4]))
        disk.fill()
        saved = newest_good(launched.folder)
        status = launched.end()
        if status:  # otherwise it had come to its end before
            assert 'could not be written' in launched.said, launched.said
            assert 'No space left on device' in launched.said, launched.said
        newest = newest_good(launched.folder)
        assert newest is not None and newest >= (saved or 0), (newest, saved)
        disk.make_room()
        bench.launcher.finish(launched.folder)
    return f'full behind iteration {saved}; status {status}; with room, resumed at {newest}, same end'


@kind('launcher: host lost')
def host_lost(bench: Bench, random: Random) -> str:
    """Of two machines, which are network namespaces; started again on both, the training goes on."""
    command = [*test_two_hosts.NAMESPACE, 'bash', '-c', test_two_hosts.HOSTS]
    probe = subprocess.run(command, capture_output=True, check=False)
    if probe.returncode or not shutil.which('ip'):
        raise UnavailableError(f'no network namespaces here: {probe.stderr.decode().strip()}')
    unbroken, folder = bench.launcher.unbroken(), bench.launcher.new_folder()
    argv = [one for one in bench.launcher.argv if not one.startswith('--nproc=')]
    command = bench.launcher.sandbox.command('full', [*argv, f'--work_dir={folder}', '--resume=auto'])

    def hosts() -> test_two_hosts.Hosts:
        said = bench.launcher.new_folder()
        said.mkdir()
        return test_two_hosts.Hosts(bench.launcher.sandbox, said, command)

    both = hosts()
    wanted = random.choice([2, 4])
    while not any(number >= wanted for number in iterations(folder)):
        assert both.process.poll() is None, (both.said('a.err'), both.said('b.err'))
        time.sleep(0.05)
    (both.folder / 'lose').touch()
    first, second = both.end(240)
    assert second == 128 + signal.SIGKILL
    if first:
        assert both.said('a.err').strip().splitlines()[-1].startswith('error: '), both.said('a.err')
        newest = newest_good(folder)
        again = hosts()
        assert again.end(240) == [0, 0], (again.said('a.err'), again.said('b.err'))
    else:
        newest = None  # it had come to its end before
    assert_same_end(folder, unbroken)
    return f'one of two hosts lost behind iteration {wanted}; status {first}, resumed at {newest}, same end'

"""Two machines, each a network namespace with an address of its own, joined by a virtual cable."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import trained_demo
from launch_sandbox import TINY_OVERRIDES, Sandbox

SHORT = ['--demo', '--max_iters=7', '--val_interval=7', '--num_workers=0']  # speed is measured from the sixth on
NAMESPACE = ['unshare', '--user', '--map-root-user', '--mount', '--net', '--pid', '--fork', '--mount-proc']
# Host a is 10.77.0.1, host b 10.77.0.2. Each also has a network of its own, which comes first by name and by number,
# and through which nobody is reached.
HOSTS = """
set -eu
mount -t tmpfs none /run
for host in a b; do
  ip netns add $host
  ip -n $host link set lo up
  ip -n $host link add aaa0 type veth peer name aaa1
  ip -n $host addr add 10.9.9.9/24 dev aaa0
  ip -n $host link set aaa0 up
  ip -n $host link set aaa1 up
done
ip link add cable0 netns a type veth peer name cable1 netns b
ip -n a addr add 10.77.0.1/24 dev cable0
ip -n b addr add 10.77.0.2/24 dev cable1
ip -n a link set cable0 up
ip -n b link set cable1 up
"""
# Arguments: folder for what the hosts say, then the command of a host, with NODE_RANK for its number. The file "lose"
# has host b killed.
BOTH = (
    HOSTS
    + """
folder=$1
shift
end() { ip netns pids $1 | xargs -r kill -9; }
ip netns exec a "${@/NODE_RANK/0}" >"$folder/a.out" 2>"$folder/a.err" & a=$!
ip netns exec b "${@/NODE_RANK/1}" >"$folder/b.out" 2>"$folder/b.err" & b=$!
while kill -0 $a 2>/dev/null || kill -0 $b 2>/dev/null; do
  if [ -e "$folder/lose" ]; then rm "$folder/lose"; end b; fi
  sleep 0.2
done
for host in a b; do
  status=0
  wait ${!host} || status=$?
  echo $status >"$folder/$host.status"
done
"""
)


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory):
    if shutil.which('ip') is None:
        pytest.skip('no ip command: apt-get install iproute2')
    probe = subprocess.run([*NAMESPACE, 'bash', '-c', HOSTS], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f'network namespaces do not work here: {probe.stderr.strip()}')
    return Sandbox(tmp_path_factory.mktemp('hosts'))


@pytest.fixture(scope='module')
def data(sandbox):
    return sandbox.make_data('data')


class Hosts:
    """The same command on both hosts, each with its number.

    Args:
        sandbox: The recipe.
        folder: For what the hosts say.
        command: Of one host, less the options of several machines.
        overrides: What follows all options.
    """

    def __init__(self, sandbox, folder, command, overrides=()) -> None:
        self.folder = folder
        both = ['--nproc=1', '--nnodes=2', '--master_addr=10.77.0.1', '--master_port=29500', '--node_rank=NODE_RANK']
        job = [*command, *both, *overrides]
        command = [*NAMESPACE, 'bash', '-c', BOTH, 'hosts', str(folder), *job]
        self.process = subprocess.Popen(command, env=sandbox.env, start_new_session=True)

    def end(self, seconds: float):
        try:
            self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)  # the first process of its namespace: all others go too
                self.process.wait()
        return [int((self.folder / f'{host}.status').read_text()) for host in 'ab']

    def said(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ''


def test_two_hosts_train_one_demo(sandbox, data, tmp_path):
    run = sandbox.home / 'shared run'
    argv = [*SHORT, f'--data_path={data}', f'--work_dir={run}']
    hosts = Hosts(sandbox, tmp_path, sandbox.command('full', argv), TINY_OVERRIDES)
    assert hosts.end(1200) == [0, 0], (hosts.said('a.err'), hosts.said('b.err'))
    assert 'Final Train Accuracy' in hosts.said('a.out')
    assert 'Final' not in hosts.said('b.out')
    assert json.loads((run / 'result.json').read_text())['world_size'] == 2
    assert re.search(r'^batch    4 = 2 machines x 1 rank x 2 images$', hosts.said('a.out'), re.MULTILINE)
    # Both took the cable, not the network that comes first.
    assert 'network  cable0 leads to 10.77.0.1' in hosts.said('a.out')
    assert 'network  cable1 leads to 10.77.0.1' in hosts.said('b.out')


@pytest.mark.release
def test_the_cards_of_two_hosts_speak_to_each_other_when_the_doctor_asks(sandbox, tmp_path):
    tool = str(sandbox.root / 'tools' / 'doctor.py')
    argv = ['--demo', '--device=cpu', '--json', f'--work_dir={tmp_path}/run']
    hosts = Hosts(sandbox, tmp_path, [sys.executable, tool, *argv])
    assert hosts.end(1200) == [0, 0], (hosts.said('a.out'), hosts.said('b.out'))
    first, second = (json.loads(hosts.said(f'{host}.out'))['findings'] for host in 'ab')
    assert first[-1]['check'] == second[-1]['check'] == 'all-reduce'
    assert first[-1]['found'].startswith('4 MiB over 2 ranks (gloo) in ')
    assert [one['found'] for one in first + second if one['check'] == 'network interface'] == [
        'cable0 leads to 10.77.0.1',
        'cable1 leads to 10.77.0.1',
    ]


@pytest.mark.release
def test_a_host_that_is_lost_ends_the_other_s_part(sandbox, data, tmp_path):
    run = sandbox.home / 'lost run'
    argv = ['--demo', '--max_iters=100000', '--num_workers=0', f'--data_path={data}', f'--work_dir={run}']
    hosts = Hosts(sandbox, tmp_path, sandbox.command('full', argv))
    deadline = time.monotonic() + 1200
    while not any('loss' in path.read_text() for path in run.glob('*/vis_data/scalars.json')):
        assert hosts.process.poll() is None, (hosts.said('a.err'), hosts.said('b.err'))
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (tmp_path / 'lose').touch()
    first, second = hosts.end(1200)
    assert second == 128 + signal.SIGKILL
    assert first not in (0, 128 + signal.SIGKILL)
    errors = [line for line in hosts.said('a.err').splitlines() if line.startswith('error:')]
    assert len(errors) == 1
    assert 'Final' not in hosts.said('a.out')


@pytest.mark.release
def test_two_hosts_share_the_pictures_of_an_evaluation(sandbox, tmp_path):
    demo = trained_demo.folder()
    folder = sandbox.home / 'shared evaluation'
    given = [f'--checkpoint={demo / "run"}', f'--data_path={demo / "data"}', f'--work_dir={folder}', '--device=cpu']
    script = str(sandbox.root / 'test' / 'evaluate_8p.sh')
    hosts = Hosts(sandbox, tmp_path, ['bash', script, *given, '--num_workers=0', '--batch_size=2'])
    assert hosts.end(1200) == [0, 0], (hosts.said('a.err'), hosts.said('b.err'))
    assert 'wrote' in hosts.said('a.out')
    assert 'wrote' not in hosts.said('b.out')
    found = json.loads((folder / 'result.json').read_text())
    trained = json.loads((demo / 'run' / 'result.json').read_text())
    assert found['ranks'] == 2
    assert found['miou_percent'] == pytest.approx(trained['miou_last_percent'], abs=0.011)
    shares = [json.loads(path.read_text())['pictures'] for path in folder.glob('speed_rank?.json')]
    assert len(shares) == 2
    assert min(shares) > 0
    assert sum(shares) == trained_demo.SCENES[1]

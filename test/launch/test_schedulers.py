"""The job files of examples/, run dry: what they would start is what the launchers take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recipe.launch import options

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / 'examples' / 'slurm' / 'train_full.sbatch'
YAML = sorted((ROOT / 'examples' / 'kubernetes').glob('*.yaml'))
STUBS = {
    # Runs the command once for each node, as srun does, and ends with the highest status.
    'srun': """
echo "srun $1" >>"$CALLS"
shift
most=0
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
  status=0
  SLURM_NODEID=$node "$@" || status=$?
  if ((status > most)); then most=$status; fi
done
exit "$most"
""",
    'scontrol': """
echo "scontrol $*" >>"$CALLS"
if [[ -n ${SCONTROL_FAILS:-} ]]; then echo "slurm_load_jobs error" >&2; exit 1; fi
if [[ $1 == show ]]; then printf 'host3\\n'; sleep 0.2; printf 'host7\\n'; fi
""",
}
# In place of the launcher: notes what it is given, a line a start.
LAUNCHER = """
python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>"$CALLS.argv"
if [[ -n ${SLEEP:-} ]]; then
  trap 'exit 143' TERM
  trap 'exit 138' USR1
  touch "$CALLS.started"
  sleep 60 &
  wait
fi
exit "${STATUS:-0}"
"""


class Cluster:
    """Stand-ins for Slurm's commands and for the launcher."""

    def __init__(self, folder: Path) -> None:
        self.recipe, self.calls = folder / 'the recipe', folder / 'calls'
        (self.recipe / 'test').mkdir(parents=True)
        (self.recipe / 'test' / 'train_full_8p.sh').write_text(LAUNCHER)
        stubs = folder / 'bin'
        stubs.mkdir()
        for name, body in STUBS.items():
            (stubs / name).write_text(f'#!/usr/bin/env bash\nset -eu\n{body}')
            (stubs / name).chmod(0o755)
        self.env = {
            **os.environ,
            'PATH': f'{stubs}:{os.environ["PATH"]}',
            'CALLS': str(self.calls),
            'SLURM_JOB_ID': '123456',
            'SLURM_JOB_NUM_NODES': '1',
            'SLURM_JOB_NODELIST': 'host[3,7]',
            'SLURM_SUBMIT_DIR': str(self.recipe),
        }
        for name in ('RECIPE', 'RUN_DIR'):
            self.env.pop(name, None)

    def submit(self, *argv: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ['bash', str(SBATCH), *argv], env={**self.env, **env}, capture_output=True, text=True, check=False
        )

    def started(self):
        """Options of each launcher that was started."""
        return [json.loads(line) for line in Path(f'{self.calls}.argv').read_text().splitlines()]

    def requeued(self) -> bool:
        return 'scontrol requeue 123456' in self.calls.read_text()


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def checked(argv):
    """The options as the launcher reads them; files and addresses are the cluster's own."""
    asked = options.parse('full', argv)
    options.require_consistent(asked)
    return asked


def test_one_node_under_slurm(cluster):
    done = cluster.submit('--data_path=/data/my set', '--', 'randomness.seed=1')
    assert done.returncode == 0, done.stderr
    (argv,) = cluster.started()
    asked = checked(argv)
    assert (asked.or_begin, asked.nnodes, asked.node_rank) == (True, 1, None)
    assert asked.data_path == '/data/my set'
    assert asked.work_dir == f'{cluster.recipe}/test/output/slurm_123456'
    assert asked.overrides == ['randomness.seed=1']
    assert not cluster.requeued()


def test_two_nodes_under_slurm(cluster):
    done = cluster.submit('--data_path=/data', SLURM_JOB_NUM_NODES='2', RUN_DIR='/shared/run')
    assert done.returncode == 0, done.stderr
    first, second = map(checked, cluster.started())
    assert (first.node_rank, second.node_rank) == (0, 1)
    for asked in (first, second):
        assert (asked.nnodes, asked.master_addr, asked.master_port) == (2, 'host3', 23456)
        assert asked.work_dir == '/shared/run'


def test_no_launcher_starts_where_slurm_does_not_name_the_nodes(cluster):
    """Each of them would train alone, into the folder of all."""
    done = cluster.submit(SLURM_JOB_NUM_NODES='2', SCONTROL_FAILS='1')
    assert done.returncode == 1
    assert 'slurm_load_jobs error' in done.stderr
    assert not Path(f'{cluster.calls}.argv').exists()


@pytest.mark.parametrize(
    ('status', 'requeued'),
    [('143', True), ('138', True), ('0', False), ('1', False), ('137', False), ('65', False), ('66', False)],
)
def test_a_job_is_requeued_after_a_signal_to_end_only(cluster, status, requeued):
    done = cluster.submit(STATUS=status)
    assert done.returncode == int(status)
    assert cluster.requeued() == requeued


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGUSR1])
def test_the_script_outlives_a_signal_that_slurm_sends_to_it(cluster, signum):
    """When a job is preempted, this shell gets the signal as well as the launchers."""
    job = subprocess.Popen(['bash', str(SBATCH)], env={**cluster.env, 'SLEEP': '1'}, start_new_session=True)
    while not Path(f'{cluster.calls}.started').exists():
        assert job.poll() is None
    os.killpg(job.pid, signum)
    assert job.wait(600) != 0
    assert cluster.requeued()


def test_the_job_asks_slurm_for_the_signal_and_a_second_chance():
    wanted = [line[len('#SBATCH ') :].strip() for line in SBATCH.read_text().splitlines() if line.startswith('#SBATCH')]
    assert {'--requeue', '--signal=USR1@600', '--ntasks-per-node=1', '--open-mode=append'} <= set(wanted)


def test_there_are_job_files_for_kubernetes():
    assert [path.name for path in YAML] == ['job.yaml', 'volcano.yaml']


def pods(path: Path):
    """(container, pod, replicas) of a job file."""
    job = yaml.safe_load(path.read_text())
    tasks = job['spec'].get('tasks') or [{'template': job['spec']['template'], 'replicas': 1}]
    for task in tasks:
        pod = task['template']['spec']
        for container in pod['containers']:
            yield container, pod, task['replicas']


@pytest.mark.parametrize('path', YAML, ids=lambda path: path.name)
def test_pods_have_what_a_training_needs(path):
    for container, pod, _ in pods(path):
        assert pod['restartPolicy'] == 'Never'  # the job, not the pod, is started again
        assert pod['terminationGracePeriodSeconds'] >= 300
        mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
        volumes = {volume['name']: volume for volume in pod['volumes']}
        assert set(mounts) == set(volumes)
        assert mounts['shm'] == '/dev/shm'
        assert volumes['shm']['emptyDir']['medium'] == 'Memory'
        cards = [int(count) for name, count in container['resources']['limits'].items() if '/' in name]
        assert cards == [8]


@pytest.mark.parametrize('path', YAML, ids=lambda path: path.name)
def test_pods_start_the_launcher_with_options_that_it_takes(path, tmp_path):
    """In a shell, with the launcher and the name server's client replaced, for each pod of the job."""
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'train_full_8p.sh').write_text(LAUNCHER)
    (tmp_path / 'getent').write_text('#!/bin/sh\nexit 0\n')
    (tmp_path / 'getent').chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CALLS': str(tmp_path / 'calls')}
    for container, _, replicas in pods(path):
        for index in range(replicas):
            command = [*container['command'], *container.get('args', [])]
            subprocess.run(command, cwd=str(tmp_path), env={**env, 'VC_TASK_INDEX': str(index)}, check=True)
    started = [checked(json.loads(line)) for line in (tmp_path / 'calls.argv').read_text().splitlines()]
    assert [asked.node_rank or 0 for asked in started] == list(range(len(started)))
    assert all(asked.nnodes == len(started) and asked.or_begin and asked.nproc == 8 for asked in started)


def test_every_shell_script_parses():
    subprocess.run(['bash', '-n', str(SBATCH)], check=True)
    shellcheck = Path(sys.executable).with_name('shellcheck')
    if shellcheck.exists():
        subprocess.run([str(shellcheck), str(SBATCH)], check=True)

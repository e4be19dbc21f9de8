"""The launchers from end to end, on a data set of a few small pictures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import psutil
import pytest

from launch_sandbox import TINY, TINY_OVERRIDES, Sandbox, in_namespace, snapshot, wait_until
from running import alive, descendants

LEGACY = [
    '------------------ Final result ------------------',
    r'Final Performance images/sec : \d+\.\d+',
    r'Final Train Accuracy : \d+\.\d+',
    r'E2E Training Duration sec : \d+',
    r'TrainingTime for step: \d+\.\d+',
]
FILES = ['command.txt', 'config.py', 'versions.json', 'result.json', 'loss.txt', 'curves.png', 'last_checkpoint']


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory):
    return Sandbox(tmp_path_factory.mktemp('launch'))


@pytest.fixture(scope='module')
def data(sandbox):
    return sandbox.make_data('data')


@pytest.fixture(scope='module')
def full(sandbox, data):
    """A full run that went well: its run folder and what it said."""
    done = sandbox.run('full', *TINY, f'--data_path={data}', '--seed', '3', *TINY_OVERRIDES)
    assert done.returncode == 0, done.stderr
    return sandbox.newest_run('full'), done.stdout


def test_a_full_run_ends_with_the_lines_that_tools_grep(full):
    lines = full[1].splitlines()[-5:]
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(LEGACY, lines)), lines


def test_a_full_run_shows_how_far_it_is(full):
    assert re.search(r'^(starting|training|validating)', full[1], re.MULTILINE)


def test_a_full_run_leaves_its_command_config_versions_logs_and_figures(full, sandbox, data):
    run, _ = full
    assert [name for name in FILES if not (run / name).is_file()] == []
    assert len(list(run.glob('logs/*/*/attempt_0/*/std*.log'))) == 4  # of two ranks
    assert list(run.glob('iter_12.pth'))
    command = (run / 'command.txt').read_text()
    assert command.startswith('bash test/train_full_8p.sh --demo ')
    assert f'--data_path={data}' in command
    versions = json.loads((run / 'versions.json').read_text())
    assert (versions['world_size'], versions['batch_size'], versions['device']) == (2, 2, 'cpu')
    assert set(versions['checkouts']) == {'mmcv', 'mmdetection', 'mmsegmentation'}
    result = json.loads((run / 'result.json').read_text())
    assert result['complete']
    assert result['world_size'] == 2
    assert result['iters_done'] == 12


def test_a_full_run_leaves_the_legacy_files(full, sandbox):
    run, said = full
    log = (sandbox.output / 'train_full_8p.log').read_text()
    assert 'Iter(train) [12/12]' in log
    assert said.splitlines()[-1] in log
    for name in ('train_full_8p.log', 'mask2former_swin_2p_miou.log', 'train_mask2former_swin_2p_miou_loss.txt'):
        assert (sandbox.output / name).resolve() == run / name
    assert (sandbox.output / 'ckpt').resolve() == run
    figures = (sandbox.output / 'mask2former_swin_2p_miou.log').read_text()
    for key in ('Network', 'RankSize', 'BatchSize', 'DeviceType', 'CaseName', 'ActualFPS', 'miou'):
        assert re.search(rf'^{key}\b', figures, re.MULTILINE), figures


def test_a_performance_run_keeps_no_checkpoint_and_touches_no_other_run(full, sandbox, data):
    before = snapshot(full[0])
    done = sandbox.run('performance', *TINY, f'--data_path={data}', '--nproc=1', *TINY_OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert re.search(LEGACY[1], done.stdout)
    run = sandbox.newest_run('performance')
    for name in ('mask2former_swin_1p_perf.log', 'mask2former_swin_1p_miou.log'):
        assert re.search(r'^miou = \d+\.\d+$', (sandbox.output / name).read_text(), re.MULTILINE)
        assert (sandbox.output / name).resolve() == run / name
    assert (sandbox.output / 'ckpt').resolve() == full[0]
    assert (run / 'result.json').is_file()
    assert list(run.rglob('*.pth')) == []
    assert snapshot(full[0]) == before
    assert (sandbox.output / 'train_performance_8p.log').is_file()


def test_a_run_is_continued_in_its_folder_past_a_damaged_checkpoint(full, sandbox, data):
    run, _ = full
    command = ['--resume=1', '--demo', '--num_workers=0', f'--data_path={data}', '--seed=3']
    damaged = sorted(run.glob('*iter_12.pth'))
    for path in damaged:
        content = path.read_bytes()
        path.unlink()  # names of one file
        path.write_bytes(content[: len(content) // 2])
    done = sandbox.run('full', *command, '--max_iters=18', '--val_interval=6', *TINY_OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert sandbox.newest_run('full') == run
    for path in damaged:
        assert f'passed over {path}' in done.stderr
    assert f'resume   {run}/' in done.stdout
    assert 'iter_6.pth' in done.stdout
    assert 'differs from when this run began: train_cfg.max_iters: 12 -> 18' in done.stderr
    result = json.loads((run / 'result.json').read_text())
    assert result['resumed_at_iter'] == [6]
    assert result['iters_done'] == 18
    assert len((run / 'command.txt').read_text().splitlines()) == 2
    log = (sandbox.output / 'train_full_8p.log').read_text()  # of both starts
    assert 'Iter(train) [12/12]' in log and 'Iter(train) [18/18]' in log


def test_the_duration_is_that_of_both_sessions(full):
    """After the test above."""
    run, _ = full
    sessions = [json.loads(line) for line in (run / 'sessions.jsonl').read_text().splitlines()]
    assert [len(session['starts']) for session in sessions] == [1, 1]
    seconds = json.loads((run / 'result.json').read_text())['e2e_duration_s']
    assert seconds == pytest.approx(sum(session['seconds'] for session in sessions))


@pytest.mark.release
def test_a_read_only_recipe_in_a_notebook_whose_output_nobody_reads(sandbox, data):
    """The training goes on to its end, and its folder has what would be elsewhere."""
    run = sandbox.home / 'own folder'
    command = sandbox.command('full', [*TINY, f'--data_path={data}', '--nproc=1', f'--work_dir={run}', *TINY_OVERRIDES])
    prefix = in_namespace(
        f'mount --bind "{sandbox.root}" "{sandbox.root}" && mount -o remount,ro,bind "{sandbox.root}"'
    )
    env = {**sandbox.env, 'MPLBACKEND': 'module://matplotlib_inline.backend_inline', 'PYTHONINSPECT': '1'}
    with open('/dev/full', 'w') as full:
        started = subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE, stderr=full, env=env, cwd=sandbox.home)
    assert started.stdout.readline().startswith(b'device ')
    started.stdout.close()
    assert started.wait(1200) == 0
    said = (run / 'launcher.log').read_text()
    assert 'stdout cannot be written (Broken pipe); the work goes on without it' in said
    assert f'{sandbox.output} cannot be written to; the files for it will be in {run}' in said
    assert re.search(LEGACY[2], said.splitlines()[-3])
    assert json.loads((run / 'result.json').read_text())['complete']
    for name in ('train_full_8p.log', 'mask2former_swin_1p_miou.log', 'train_mask2former_swin_1p_miou_loss.txt'):
        assert (run / name).is_file(), name


def losses(run):
    """Of each line that a run logged before anybody continued it, in order."""
    first = min(run.glob('*/vis_data/scalars.json'))
    lines = map(json.loads, first.read_text().splitlines())
    return [(line['step'], line['loss']) for line in lines if 'loss' in line]


@pytest.fixture(scope='module')
def decoded(sandbox, data):
    """A decoded cache of the data, as the documentation has it made."""
    folder = sandbox.home / "decoded, user's"
    command = [
        'python',
        str(sandbox.root / 'tools/cityscapes.py'),
        'cache',
        '--data_path',
        str(data),
        '--to',
        str(folder),
    ]
    subprocess.run(command, env=sandbox.env, capture_output=True, text=True, check=True)
    return folder


@pytest.mark.release
def test_a_decoded_cache_changes_no_loss(full, sandbox, data, decoded):
    argv = ['--seed', '3', f'--decoded_cache={decoded}', f'--work_dir={sandbox.home}/from_cache']
    done = sandbox.run('full', *TINY, f'--data_path={data}', *argv, *TINY_OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert f'decoded  {decoded}: ' in done.stdout
    without = losses(full[0])
    assert [step for step, _ in without] == [2, 4, 6, 8, 10, 12]
    assert losses(sandbox.home / 'from_cache') == without


def trains(sandbox, known):
    """Whether there is a newer run than the known one that has logged a loss."""
    run = sandbox.newest_run('full')
    return run != known and any('loss' in path.read_text() for path in run.glob('*/vis_data/scalars.json'))


@pytest.fixture
def running(sandbox, data):
    """A full run that would take long, in the middle of its training."""
    known = sandbox.newest_run('full')
    argv = ['--demo', '--max_iters=100000', '--num_workers=1', f'--data_path={data}', *TINY_OVERRIDES]
    process = sandbox.start('full', *argv)
    wait_until(lambda: trains(sandbox, known), process)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def end(process: subprocess.Popen):
    out, err = process.communicate(timeout=1200)
    assert 'Final' not in out
    assert 'Traceback' not in out
    return process.returncode, [line for line in err.splitlines() if line.startswith('error:')]


def rank_pid(pids, rank):
    for process in map(psutil.Process, pids):
        if 'train' in process.cmdline() and process.environ().get('RANK') == str(rank):
            return process.pid
    raise AssertionError(f'no rank {rank}')


@pytest.mark.release
def test_a_killed_rank_ends_the_run_and_is_named(running):
    below = descendants(running.pid)
    os.kill(rank_pid(below, 1), signal.SIGKILL)
    status, errors = end(running)
    assert status == 128 + signal.SIGKILL
    assert len(errors) == 1
    assert re.search(r'rank 1 was killed by signal 9 .*; log: \S+/1/std(out|err)\.log$', errors[0])
    assert not alive(below)


def test_ctrl_c_ends_the_run_and_everything_that_it_started_and_saves_it(running, sandbox):
    """The other signals, and a launcher that is killed, are test_launch_ranks.py's."""
    below = descendants(running.pid)
    assert len(below) >= 5  # torchrun, two ranks and their loaders
    run = sandbox.newest_run('full')
    shown = sandbox.output / 'train_full_8p.log'
    wait_until(lambda: 'Iter(train)' in shown.read_text(), running)
    for pid in below:
        os.kill(pid, signal.SIGSTOP)  # leaves both cores to the second launcher
    second = sandbox.run('full', '--demo', '--nproc=1', '--resume=auto', f'--work_dir={run}')
    assert second.returncode == 1
    assert f'error: {run} is in use by another training (process {running.pid} on ' in second.stderr
    for pid in below:
        os.kill(pid, signal.SIGCONT)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    status, errors = end(running)
    assert status == 128 + signal.SIGINT
    assert len(errors) == 1
    assert 'SIGINT ended the training; continue with --resume=1' in errors[0]
    assert not alive(below)
    assert list(run.glob('iter_*.pth'))
    assert not (run / 'lock.json').exists()
    assert shown.resolve() == run / shown.name
    assert errors[0] in shown.read_text()


@pytest.mark.release
def test_a_loss_that_is_not_finite_ends_the_run(sandbox, data):
    """A learning rate that no model survives; the words of the rank are the last line, with what to do."""
    overrides = [*TINY_OVERRIDES, 'optim_wrapper.optimizer.lr=1e30']
    done = sandbox.run('full', *TINY, f'--data_path={data}', f'--work_dir={sandbox.home}/diverged', *overrides)
    assert done.returncode == 65, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(
        r'error: rank \d ended with exit status 65: iteration \d+ is not finite: rank 0: .* with images /', last
    )
    assert '--on_nan=skip:N' in last
    dumps = sorted(path.name for path in (sandbox.home / 'diverged' / 'nonfinite').iterdir())
    assert [re.sub(r'\d+_', 'N_', name, count=1) for name in dumps] == [
        'iter_N_rank_0.pth',
        'iter_N_rank_1.pth',
        'iter_N_weights.pth',
    ]
    assert not list((sandbox.home / 'diverged').glob('*.pth'))


@pytest.mark.release
def test_an_unreadable_image_ends_the_run_and_is_named(sandbox):
    """It was readable when the launcher looked."""
    broken, run = sandbox.make_data('broken'), sandbox.home / 'unreadable'
    long = ['--demo', '--max_iters=5000', '--val_interval=5000', '--num_workers=1']
    started = sandbox.start('full', *long, f'--data_path={broken}', f'--work_dir={run}', *TINY_OVERRIDES)
    wait_until(lambda: any(run.glob('*/vis_data/scalars.json')), started)
    image = sorted(broken.glob('leftImg8bit/train/*/*.png'))[0]
    image.write_bytes(image.read_bytes()[:2000])
    _, err = started.communicate(timeout=1200)
    assert started.returncode == 66, err
    last = err.splitlines()[-1]
    assert re.match(r'error: rank \d ended with exit status 66: rank \d, iteration \d+: ', last)
    assert str(image) in last and '--on_bad_image=skip:N' in last

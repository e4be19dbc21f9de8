"""Killed and resumed equals never killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

import resume_faults
from recipe.core import paths
from recipe.engine.checkpoint import CheckpointError, find_resumable, load_from_local
from resume_faults import (
    copy_before_file_operations,
    fill_disk,
    kill_amid_writing,
    kill_before_iter,
    kill_before_validation,
    signal_all_before_iter,
    terminate_rank_0_before_iter,
)
from resume_job import MAX_ITERS, assert_same_end, free_port, recipe, start, train, write_cityscapes


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def unbroken(data, tmp_path_factory):
    """Folders of runs that were never stopped, by number of processes; workers make no difference."""
    folders = {}

    def folder(world):
        if world not in folders:
            work_dir = tmp_path_factory.mktemp(f'unbroken{world}')
            outcome = train(recipe(data, work_dir), world)
            assert outcome.codes == [0] * world, outcome.output
            folders[world] = work_dir
        return folders[world]

    return folder


@pytest.mark.parametrize(
    ('workers', 'world', 'kills'),
    [(0, 1, (3, 8)), (2, 1, (5,)), pytest.param(0, 2, (12,), marks=pytest.mark.release), (2, 2, (9,)), (0, 3, (7,))],
)
def test_equals_a_run_that_was_never_stopped(data, unbroken, tmp_path, workers, world, kills):
    cfg = recipe(data, tmp_path, workers)
    for count, number in enumerate(kills):
        outcome = train(cfg, world, resume=count > 0, sabotage=partial(kill_before_iter, number))
        assert outcome.codes == [-9] * world, outcome.output
    outcome = train(cfg, world, resume=True)
    assert outcome.codes == [0] * world, outcome.output
    assert 'not bit by bit' not in outcome.output
    assert_same_end(tmp_path, unbroken(world))


def test_another_seed_makes_another_run(data, unbroken, tmp_path):
    assert train(recipe(data, tmp_path, **{'randomness.seed': 4})).codes == [0]
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path, unbroken(1))


def test_without_a_seed_too(data, tmp_path):
    """Then each start draws one; the resumed run has to take that of the first."""
    cfg = recipe(data, tmp_path / 'unbroken', **{'randomness': dict(seed=None)})
    assert train(cfg, sabotage=partial(kill_before_iter, 5)).codes == [-9]
    shutil.copytree(tmp_path / 'unbroken', tmp_path / 'later')
    for name in ('unbroken', 'later'):
        cfg.work_dir = str(tmp_path / name)
        assert train(cfg, resume=True).codes == [0]
    assert_same_end(tmp_path / 'later', tmp_path / 'unbroken')


def test_killed_before_any_file_operation_of_a_checkpoint(data, tmp_path):
    """The last of 8 iterations is followed by a checkpoint, a validation and a better best one; old ones go."""
    folder, copies = tmp_path / 'run', tmp_path / 'copies'
    cfg = recipe(data, folder, **{'train_cfg.max_iters': 8})
    assert train(cfg, sabotage=partial(kill_before_iter, 7)).codes == [-9]
    outcome = train(cfg, resume=True, sabotage=partial(copy_before_file_operations, copies))
    assert outcome.codes == [0], outcome.output
    operations = {copy.name.split()[1] for copy in copies.iterdir()}
    assert operations == {'os.rename', 'os.link', 'os.remove'}
    for copy in sorted(copies.iterdir()):
        cfg.work_dir = str(copy)
        outcome = train(cfg, resume=True)
        assert outcome.codes == [0], f'{copy.name}: {outcome.output}'
        assert_same_end(copy, folder)


def test_killed_before_a_validation(data, unbroken, tmp_path):
    """The resumed run makes up for it, and saves its result also if it is not the best."""
    cfg = recipe(data, tmp_path)
    assert train(cfg, sabotage=partial(kill_before_validation, MAX_ITERS)).codes == [-9]
    outcome = train(cfg, resume=True)
    assert outcome.codes == [0], outcome.output
    assert 'RESUMED iter_12.pth []' in outcome.output
    assert not list(unbroken(1).glob('best_*_iter_12.pth'))
    assert_same_end(tmp_path, unbroken(1))


def test_killed_amid_writing_a_checkpoint(data, unbroken, tmp_path):
    cfg = recipe(data, tmp_path)
    assert train(cfg, sabotage=partial(kill_before_iter, 6)).codes == [-9]
    before = sorted(tmp_path.glob('[!.]*.pth'))
    outcome = train(cfg, resume=True, sabotage=partial(kill_amid_writing, 2**20))
    assert outcome.codes == [-25], outcome.output
    assert sorted(tmp_path.glob('[!.]*.pth')) == before
    (remains,) = tmp_path.glob('.partial.*')
    assert remains.stat().st_size == 2**20
    assert train(cfg, resume=True).codes == [0]
    assert_same_end(tmp_path, unbroken(1))


@pytest.mark.release
@pytest.mark.parametrize('seed', [0, 1])
def test_killed_at_random_moments(data, unbroken, tmp_path, seed):
    moments = random.Random(seed)
    cfg = recipe(data, tmp_path, workers=1)
    assert train(cfg, sabotage=partial(kill_before_iter, 3)).codes == [-9]
    for _ in range(2):
        (process,) = start(cfg, resume=True)
        while 'Iter(train)' not in (tmp_path / 'output.txt').read_text() and process.is_alive():
            time.sleep(0.01)
        process.join(moments.uniform(0, 0.6))
        process.kill()
        process.join()
    assert train(cfg, resume=True).codes == [0]
    assert_same_end(tmp_path, unbroken(1))


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b'')


@pytest.mark.parametrize('damage', [cut_short, flip_bit, empty])
def test_falls_back_past_a_damaged_checkpoint(data, unbroken, tmp_path, damage):
    if damage is not cut_short:
        # falling back is the same for each damage: one is trained to its end
        for path in unbroken(1).glob('*.pth'):
            shutil.copy(path, tmp_path)
        damage(tmp_path / 'iter_12.pth')
        path, skipped = find_resumable(str(tmp_path))
        assert path == str(tmp_path / 'iter_10.pth')
        assert [name for name, _ in skipped] == [str(tmp_path / 'iter_12.pth')]
        return
    cfg = recipe(data, tmp_path)
    assert train(cfg, sabotage=partial(kill_before_iter, 11)).codes == [-9]
    damage(tmp_path / 'iter_10.pth')
    outcome = train(cfg, resume=True)
    assert outcome.codes == [0], outcome.output
    assert "RESUMED iter_8.pth [('iter_10.pth', 'is cut short" in outcome.output
    assert_same_end(tmp_path, unbroken(1))


def test_sigterm_saves_and_ends_all_ranks(data, unbroken, tmp_path):
    """It reaches one rank, in iteration 7, after which no checkpoint is due."""
    cfg = recipe(data, tmp_path, workers=1)
    outcome = train(cfg, world=2, sabotage=partial(terminate_rank_0_before_iter, 7))
    assert outcome.codes == [143, 143], outcome.output
    assert 'SIGTERM: stopped after iteration 7.' in outcome.output
    assert find_resumable(str(tmp_path)) == (str(tmp_path / 'iter_7.pth'), [])
    outcome = train(cfg, world=2, resume=True)
    assert outcome.codes == [0, 0], outcome.output
    assert_same_end(tmp_path, unbroken(2))


def test_sigusr1_to_all_processes_saves_and_ends_all_ranks(data, unbroken, tmp_path):
    """As Slurm sends it: the loader processes get it too. The SIGTERM of a launcher comes on top."""
    cfg = recipe(data, tmp_path, workers=1)
    outcome = train(cfg, world=2, sabotage=partial(signal_all_before_iter, 7, signal.SIGUSR1, signal.SIGTERM))
    assert outcome.codes == [138, 138], outcome.output
    assert 'SIGUSR1: stopped after iteration 7.' in outcome.output
    assert find_resumable(str(tmp_path)) == (str(tmp_path / 'iter_7.pth'), [])
    outcome = train(cfg, world=2, resume=True)
    assert outcome.codes == [0, 0], outcome.output
    assert_same_end(tmp_path, unbroken(2))


def test_full_disk(data, unbroken, tmp_path):
    """Training goes on without the checkpoints that do not fit, fails at its end, and resumes once there is room."""
    cfg = recipe(data, tmp_path)
    outcome = train(cfg, world=2, sabotage=partial(fill_disk, 6, MAX_ITERS + 1))
    assert outcome.codes == [1, 1], outcome.output
    assert 'iter_6.pth could not be written ([Errno 27] File too large' in outcome.output
    assert f'The newest whole checkpoint is {tmp_path}/iter_4.pth' in outcome.output
    assert 'Iter(train) [12/12]' in outcome.output
    assert 'the last checkpoint, after iteration 12, could not be written' in outcome.output
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['best_mIoU_iter_4.pth', 'iter_2.pth', 'iter_4.pth']
    assert not list(tmp_path.glob('.*'))
    outcome = train(cfg, world=2, resume=True)
    assert outcome.codes == [0, 0], outcome.output
    assert 'RESUMED iter_4.pth []' in outcome.output
    assert_same_end(tmp_path, unbroken(2))


def test_disk_full_for_a_while(data, tmp_path):
    """The best checkpoint of iteration 8 is lost; nothing claims that it exists."""
    outcome = train(recipe(data, tmp_path), sabotage=partial(fill_disk, 6, 9))
    assert outcome.codes == [0], outcome.output
    # before and after the validation
    assert outcome.output.count('iter_8.pth could not be written') == 2
    assert 'is saved to best_mIoU_iter_8.pth' not in outcome.output
    assert sorted(path.name for path in tmp_path.glob('iter_*')) == ['iter_10.pth', 'iter_12.pth']
    named = load_from_local(tmp_path / 'iter_12.pth')['message_hub']['runtime_info']['best_ckpt']
    assert [str(path) for path in tmp_path.glob('best_*')] == [named]


@pytest.mark.parametrize('world', [1, pytest.param(2, marks=pytest.mark.release)])
def test_killed_under_torchrun(data, unbroken, tmp_path, world):
    """The training entry under plain torchrun; all ranks and torchrun are killed at once."""
    config = tmp_path / 'config.py'
    cfg = recipe(data, tmp_path, workers=1)
    cfg.custom_imports.imports.append(resume_faults.__name__)
    cfg.custom_hooks = [dict(type='HoldBeforeIter', folder=str(tmp_path))]
    cfg.dump(config)
    # One thread, as in the other run: torchrun sees to it for more than one process only.
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={world}']
    command += [f'--master_port={free_port()}']
    command += [str(paths.PACKAGE), 'train', str(config), f'--work-dir={tmp_path}', '--device=cpu']
    with (tmp_path / 'output.txt').open('w') as output:
        held = {**env, resume_faults.HOLD_VARIABLE: '6'}
        job = subprocess.Popen(command, env=held, stdout=output, stderr=output, start_new_session=True)
        while len(list(tmp_path.glob('held_*'))) < world and job.poll() is None:
            time.sleep(0.02)
        for process in psutil.Process(job.pid).children(recursive=True):  # each rank leads a group of its own
            process.kill()
        job.kill()
        assert job.wait() == -signal.SIGKILL, (tmp_path / 'output.txt').read_text()
        assert (tmp_path / 'iter_4.pth').exists()
        again = subprocess.run([*command, '--resume'], env=env, stdout=output, stderr=output, check=False)
    assert again.returncode == 0, (tmp_path / 'output.txt').read_text()
    assert_same_end(tmp_path, unbroken(world))


def test_nothing_to_resume_from_is_said(data, tmp_path):
    cfg = recipe(data, tmp_path)
    assert train(cfg, sabotage=partial(kill_before_iter, 2)).codes == [-9]
    with pytest.raises(CheckpointError, match='no checkpoint there to resume from'):
        find_resumable(str(tmp_path))
    assert train(cfg, resume=True).codes == [1]


def test_best_checkpoint_is_whole_and_two_are_kept(unbroken):
    folder = unbroken(1)
    (best,) = folder.glob('best_mIoU_iter_*.pth')
    assert sorted(path.name for path in folder.glob('iter_*.pth')) == ['iter_10.pth', 'iter_12.pth']
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_12.pth')
    for path in folder.glob('iter_*.pth'):
        path.rename(path.with_suffix('.away'))
    try:
        assert find_resumable(str(folder)) == (str(best), [])
    finally:
        for path in folder.glob('*.away'):
            path.rename(path.with_suffix('.pth'))
    newest = load_from_local(folder / 'iter_12.pth')
    assert newest['message_hub']['runtime_info']['best_ckpt'] == str(best)
    assert newest['train_loop']['validated']

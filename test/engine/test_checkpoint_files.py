"""Checkpoint files are whole or not there, and the newest whole one is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from recipe.core import files
from recipe.engine.checkpoint import (
    CheckpointError,
    check_file,
    find_resumable,
    link_or_copy,
)
from recipe.engine.hooks.atomic_checkpoint_hook import AtomicCheckpointHook


def names(folder: Path) -> list:
    return sorted(path.name for path in folder.iterdir())


def test_new_content_appears_at_once(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_text('old')
    with files.whole(path, to_disk=True) as temporary:
        Path(temporary).write_text('new')
        assert path.read_text() == 'old'
        assert temporary.name.startswith('.')  # as no pattern for checkpoints does
    assert path.read_text() == 'new'
    assert names(tmp_path) == ['a.pth']


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_old_content_outlives_a_failure(tmp_path, error):
    path = tmp_path / 'a.pth'
    path.write_text('old')
    with pytest.raises(type(error)), files.whole(path, to_disk=True) as temporary:
        Path(temporary).write_text('ne')
        raise error
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['a.pth']


def test_a_file_that_fails_its_check_is_not_put_in_place(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(0, path)
    old = path.read_bytes()
    with pytest.raises(CheckpointError), files.whole(path, check_file, to_disk=True) as temporary:
        Path(temporary).write_bytes(old[:-100])
    assert path.read_bytes() == old
    assert names(tmp_path) == ['a.pth']


def test_second_name_is_a_hard_link(tmp_path):
    source, other = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(1, source)
    torch.save(2, other)
    link_or_copy(str(source), str(other))
    link_or_copy(str(source), str(other))
    assert source.samefile(other)
    assert names(tmp_path) == ['a.pth', 'b.pth']


@pytest.mark.skipif(Path('/dev/shm').stat().st_dev == Path('/tmp').stat().st_dev, reason='one file system')
def test_second_name_on_another_file_system_is_a_copy(tmp_path):
    source = tmp_path / 'a.pth'
    torch.save(1, source)
    other = Path('/dev/shm') / f'{os.getpid()}.pth'
    try:
        link_or_copy(str(source), str(other))
        assert other.read_bytes() == source.read_bytes()
    finally:
        other.unlink()


def test_remains_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    others = f'{files.PARTIAL_PREFIX}other-machine.{os.getpid()}.iter_5.pth'
    for name in (others, '.iter_5.pth', 'iter_5.pth.tmp', '.notes.tmp'):
        (tmp_path / name).touch()
    files.sweep(tmp_path)
    assert others in names(tmp_path)
    files.sweep(tmp_path, is_mine=True)
    assert names(tmp_path) == ['.iter_5.pth', '.notes.tmp', 'iter_5.pth.tmp']


def write_checkpoint(path: Path, without: tuple = ()) -> Path:
    checkpoint = dict(
        meta=dict(iter=1, epoch=0),
        state_dict={},
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer={},
        param_schedulers=[],
    )
    torch.save({key: value for key, value in checkpoint.items() if key not in without}, path)
    return path


def test_newest_is_the_one_of_the_last_iteration(tmp_path):
    for name in ('iter_1000.pth', 'iter_900.pth', 'best_mIoU_iter_1000.pth', 'best_a_b_iter_5.pth'):
        write_checkpoint(tmp_path / name)
    # written last, but no names of checkpoints of a run
    for name in ('.iter_2000.pth.tmp', 'iter_2000.pth.tmp', 'my_iter_2000.pth', 'iter_2000-1f2e.pth', 'epoch_9.pth'):
        write_checkpoint(tmp_path / name)
    assert find_resumable(str(tmp_path)) == (str(tmp_path / 'iter_1000.pth'), [])
    (tmp_path / 'iter_1000.pth').unlink()
    assert find_resumable(str(tmp_path)) == (str(tmp_path / 'best_mIoU_iter_1000.pth'), [])


def test_falls_back_past_what_cannot_be_resumed(tmp_path):
    good = write_checkpoint(tmp_path / 'iter_1.pth')
    write_checkpoint(tmp_path / 'iter_2.pth', without=('optimizer', 'param_schedulers'))
    torch.save([1], tmp_path / 'iter_3.pth')
    torch.save(dict(meta=Path('a')), tmp_path / 'iter_4.pth')
    (tmp_path / 'iter_5.pth').touch()
    (tmp_path / 'iter_6.pth').write_text('<html>')
    (tmp_path / 'iter_7.pth').mkdir()
    path, skipped = find_resumable(str(tmp_path))
    assert path == str(good)
    reasons = {Path(name).name: reason for name, reason in skipped}
    assert list(reasons) == [f'iter_{number}.pth' for number in (7, 6, 5, 4, 3, 2)]
    assert reasons['iter_2.pth'].startswith('holds no optimizer, param_schedulers')
    assert reasons['iter_3.pth'] == 'holds no checkpoint of a training run'
    assert reasons['iter_4.pth'].startswith('refused, it asks for pathlib')
    assert reasons['iter_5.pth'] == 'is empty'
    assert reasons['iter_6.pth'] == 'is not a checkpoint of PyTorch'
    assert 'can not be found' in reasons['iter_7.pth']


def test_no_checkpoint_is_one_line_that_says_why(tmp_path):
    for folder in (tmp_path, tmp_path / 'none'):
        with pytest.raises(CheckpointError, match='no checkpoint there'):
            find_resumable(str(folder))
    (tmp_path / 'iter_5.pth').touch()
    with pytest.raises(CheckpointError, match=r'no checkpoint there to resume from: iter_5.pth is empty$'):
        find_resumable(str(tmp_path))


def test_two_checkpoints_are_always_kept():
    assert AtomicCheckpointHook(interval=1, max_keep_ckpts=1).max_keep_ckpts == 2
    assert AtomicCheckpointHook(interval=1, max_keep_ckpts=5).max_keep_ckpts == 5
    assert AtomicCheckpointHook(interval=1).max_keep_ckpts == -1


@pytest.mark.parametrize('option', [dict(by_epoch=True), dict(backend_args=dict(backend='petrel'))])
def test_what_the_hook_cannot_do_is_refused(option):
    with pytest.raises(ValueError, match=r'by iteration|local files'):
        AtomicCheckpointHook(interval=1, **option)

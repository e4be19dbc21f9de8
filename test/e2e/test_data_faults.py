"""Images that cannot be read and loader processes that die: one line says which and why, or the training goes on."""

from __future__ import annotations

import shutil
from functools import partial
from multiprocessing.queues import Queue

import pytest
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

import data_faults
from recipe.data.position_seeded_dataset import PositionSeededDataset
from recipe.data.resumable_sampler import StreamIndex
from recipe.data.unreadable import UnreadableSampleError
from recipe.engine.checkpoint import load_from_local
from recipe.engine.loops.loader_deaths import explain_dead_worker, send_errors_in_place_of_batches, worker_death_reason
from resume_faults import kill_before_iter
from resume_job import assert_same_end, recipe, train, write_cityscapes

REPLACE = {'train_cfg.max_unreadable': 2}


@pytest.fixture
def data(tmp_path):
    return write_cityscapes(tmp_path / 'data')


@pytest.mark.parametrize(('damage', 'workers'), [(data_faults.cut_image, 1), (data_faults.resize_label, 0)])
def test_an_unreadable_image_ends_the_training(data, tmp_path, damage, workers):
    paths = damage(data)
    outcome = train(recipe(data, tmp_path / 'run', workers))
    assert outcome.codes == [66], outcome.output
    assert 'Traceback' not in outcome.output
    last = outcome.output.splitlines()[-1]
    assert last.startswith('error: rank 0, iteration ')
    assert all(str(path) in last for path in paths)


def test_other_ways_not_to_be_readable(data):
    init_default_scope('mmseg')

    def dataset(**options):
        return PositionSeededDataset(recipe(data, data.parent).train_dataloader.dataset, **options)

    plain, replacing = dataset(), dataset(replace_unreadable=True)  # they list the files that are there
    for damage in (data_faults.empty_label, data_faults.remove_image):
        (path,) = damage(data)
        with pytest.raises(UnreadableSampleError, match=path.name):
            plain[StreamIndex(4, 1, 40)]
    assert 'unreadable' not in plain[StreamIndex(3, 1, 40)]['data_samples']

    # the sample in its place follows from the position alone, with its own augmentation
    first, again, other = (replacing[StreamIndex(4, 1, position)]['data_samples'] for position in (40, 40, 41))
    assert first.img_path == again.img_path != str(data_faults.image(data, 4))
    assert (first.gt_sem_seg.data == again.gt_sem_seg.data).all()
    assert 'No such file' in first.unreadable and 'No such file' in other.unreadable
    for number in range(7):
        data_faults.image(data, number).unlink(missing_ok=True)
    with pytest.raises(UnreadableSampleError, match='20 other samples'):
        replacing[StreamIndex(4, 1, 40)]


@pytest.mark.parametrize('world', [pytest.param(1, marks=pytest.mark.release), 2])
def test_a_resumed_run_replaces_as_one_that_was_never_stopped(data, tmp_path, world):
    data_faults.cut_image(data)
    unbroken, broken = (
        recipe(data, tmp_path / name, workers, **REPLACE) for name, workers in (('unbroken', 0), ('broken', 1))
    )
    outcome = train(unbroken, world)
    assert outcome.codes == [0] * world, outcome.output
    # each rank says it once, however often the image comes
    assert outcome.output.count('another image takes its place, 1 of at most 2') >= 1
    assert train(broken, world, sabotage=partial(kill_before_iter, 8)).codes == [-9] * world
    assert train(broken, world, resume=True).codes == [0] * world
    assert_same_end(tmp_path / 'broken', tmp_path / 'unbroken')
    faults = load_from_local(tmp_path / 'broken' / 'iter_12.pth')['train_loop']['unreadable']
    assert len(faults) == world
    assert all('city_000004' in fault for rank in faults for fault in rank)


def test_no_more_than_so_many_are_replaced(data, tmp_path):
    data_faults.cut_image(data)
    for number in (2, 5):
        shutil.copy(data_faults.image(data, 4), data_faults.image(data, number))
    outcome = train(recipe(data, tmp_path / 'run', **REPLACE))
    assert outcome.codes == [66], outcome.output
    assert 'another image takes its place, 2 of at most 2' in outcome.output
    assert '2 other images were replaced before, and no more are allowed' in outcome.output.splitlines()[-1]


@pytest.mark.parametrize(('damage', 'workers'), [(data_faults.cut_image, 0), (data_faults.remove_label, 1)])
def test_a_file_of_the_validation_is_named_and_not_replaced(data, tmp_path, damage, workers):
    (path,) = damage(data, split='val', number=1)
    outcome = train(recipe(data, tmp_path / 'run', workers, **REPLACE))
    assert outcome.codes == [66], outcome.output
    assert 'Traceback' not in outcome.output
    last = outcome.output.splitlines()[-1]
    assert last.startswith('error: rank 0, iteration ') and str(path) in last


@pytest.mark.parametrize(
    ('sabotage', 'cause'),
    [
        (data_faults.kill_a_loader, 'lack of memory'),
        (data_faults.kill_a_loader_in_a_careless_call, 'lack of memory'),
        (data_faults.break_shared_memory, '/dev/shm'),
    ],
)
def test_a_dead_loader_process_is_reported_with_its_cause(data, tmp_path, sabotage, cause):
    outcome = train(recipe(data, tmp_path / 'run', workers=2), sabotage=sabotage)
    assert outcome.codes == [71], outcome.output
    last = outcome.output.splitlines()[-1]
    assert last.startswith('error: rank 0, iteration ') and 'DataLoader worker' in last and cause in last


@pytest.mark.parametrize('when', data_faults.HANDOVERS)
def test_a_loader_process_that_dies_while_it_hands_a_batch_over(data, tmp_path, when):
    outcome = train(recipe(data, tmp_path / 'run', workers=1), sabotage=partial(data_faults.die_in_handover, when))
    assert outcome.codes == [71], outcome.output
    assert 'Traceback' not in outcome.output
    last = outcome.output.splitlines()[-1]
    assert last.startswith('error: rank 0, iteration 1: ')
    assert 'is killed by signal: Killed' in last and 'lack of memory' in last


def test_a_loader_process_that_hangs_up_and_lives(data, tmp_path):
    sabotage = partial(data_faults.hang_up, ConnectionResetError)
    outcome = train(recipe(data, tmp_path / 'run', workers=1), sabotage=sabotage)
    assert outcome.codes == [71], outcome.output
    last = outcome.output.splitlines()[-1]
    assert 'closed its connection while it handed over a batch (ConnectionResetError)' in last


@pytest.mark.parametrize(
    ('sabotage', 'cause'),
    [(data_faults.fill_shared_memory, '/dev/shm has'), (data_faults.start_no_process, 'unavailable')],
)
def test_loader_processes_without_means(data, tmp_path, sabotage, cause):
    outcome = train(recipe(data, tmp_path / 'run', workers=1), sabotage=sabotage)
    assert outcome.codes == [71], outcome.output
    last = outcome.output.splitlines()[-1]
    assert last.startswith('error: rank 0, iteration ') and 'DataLoader worker' in last and cause in last


def test_a_batch_that_cannot_be_sent_for_another_reason_is_an_error_of_the_program(monkeypatch):
    """Where Python alone drops the batch, and the training would wait for ever."""
    monkeypatch.setattr(Queue, '_on_queue_feeder_error', Queue._on_queue_feeder_error)  # set back afterwards
    send_errors_in_place_of_batches()
    batches = iter(DataLoader([lambda: None], num_workers=1, collate_fn=list))
    with pytest.raises(Exception, match='pickle') as raised:
        next(batches)
    assert worker_death_reason(raised.value) is None


def test_connections_that_are_not_the_loaders(data):
    """As of a visualizer that sends what it is given to another machine."""
    try:
        raise ConnectionResetError(104, 'Connection reset by peer')
    except ConnectionResetError as error:
        assert worker_death_reason(error) is None
    assert worker_death_reason(RuntimeError('Pin memory thread exited unexpectedly')) is not None


def test_what_a_loader_process_died_of():
    said = explain_dead_worker('DataLoader worker (pid(s) 17) exited unexpectedly')
    assert 'MiB of memory' in said and '/dev/shm has' in said and '\n' not in said

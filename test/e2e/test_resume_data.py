"""A resumed run goes on with the samples that come next, and reads none that came before."""

from __future__ import annotations

from functools import partial
from itertools import islice

import pytest
import torch
from mmengine.dataset import InfiniteSampler

from recipe.data.resumable_sampler import ResumableInfiniteSampler
from recipe.engine.checkpoint import load_from_local
from resume_faults import compare_table_gradients, count_opened_images, kill_before_iter, record_images
from resume_job import TRAIN_IMAGES, recipe, train, write_cityscapes


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('data'))


def plain(data, work_dir, **options):
    """Return the config with mmengine's own runner, loop, sampler and checkpoints."""
    cfg = recipe(data, work_dir, equipped=False, **options)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=4)
    return cfg


def indices(sampler, rank, world, count):
    sampler.rank, sampler.world_size = rank, world
    return list(islice(iter(sampler), count))


@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize(('size', 'world', 'start'), [(7, 1, 0), (7, 1, 30), (7, 2, 14), (5, 8, 40), (2975, 8, 8000)])
def test_same_stream_as_mmengine(shuffle, size, world, start):
    for rank in range(world):
        expected = indices(InfiniteSampler(range(size), shuffle, seed=5), rank, world, start // world + 50)
        sampler = ResumableInfiniteSampler(range(size), shuffle, seed=5)
        sampler.start = start
        found = indices(sampler, rank, world, 50)
        assert found == expected[start // world :]
        assert [index.position for index in found] == list(range(start + rank, start + rank + 50 * world, world))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match='is empty'):
        ResumableInfiniteSampler([])


@pytest.mark.parametrize('key', ['train_loop', None], ids=['ours', 'plain'])
def test_skipping_to_iteration_50000_opens_no_image(data, tmp_path, key):
    cfg = recipe(data, tmp_path, **{'train_cfg.max_iters': 2})
    assert train(cfg).codes == [0]
    checkpoint = load_from_local(tmp_path / 'iter_2.pth')
    checkpoint['meta']['iter'] = checkpoint['train_loop']['iter'] = 50_000
    checkpoint['train_loop']['position'] = 100_000
    if key is None:
        del checkpoint['train_loop']
    torch.save(checkpoint, tmp_path / 'iter_50000.pth')
    cfg.train_cfg.max_iters = 50_001
    opened = tmp_path / 'opened.txt'
    outcome = train(cfg, resume=True, sabotage=partial(count_opened_images, opened))
    assert outcome.codes == [0], outcome.output
    assert f'50001 {" ".join(name[:11] for name in opened.read_text().split())}\n' == line(50_001, 100_000, 2)


def line(iteration, position, count):
    """What record_images writes for an iteration, by the stream of mmengine's sampler."""
    stream = islice(InfiniteSampler(range(TRAIN_IMAGES), seed=3), position, position + count)
    return f'{iteration} {" ".join(f"city_{index:06d}" for index in stream)}\n'


def test_checkpoint_of_plain_mmsegmentation(data, tmp_path):
    cfg = plain(data, tmp_path, **{'train_cfg.max_iters': 6})
    images = tmp_path / 'images.txt'
    outcome = train(cfg, sabotage=partial(record_images, images))
    assert outcome.codes == [0], outcome.output
    seen = images.read_text().splitlines()
    images.unlink()
    (tmp_path / 'iter_6.pth').unlink()
    outcome = train(
        recipe(data, tmp_path, **{'train_cfg.max_iters': 6}), resume=True, sabotage=partial(record_images, images)
    )
    assert outcome.codes == [0], outcome.output
    assert 'RESUMED iter_4.pth' in outcome.output
    assert 'not bit by bit as if it had never been stopped: the checkpoint was not written by' in outcome.output
    assert images.read_text().splitlines() == seen[4:]


def test_other_number_of_processes_goes_on_behind_the_used_samples(data, tmp_path):
    cfg = recipe(data, tmp_path, **{'train_cfg.max_iters': 5})
    assert train(cfg, world=2, sabotage=partial(kill_before_iter, 5)).codes == [-9, -9]
    images = tmp_path / 'images.txt'
    outcome = train(cfg, resume=True, sabotage=partial(record_images, images))
    assert outcome.codes == [0], outcome.output
    assert 'not bit by bit as if it had never been stopped: world_size 2 -> 1.' in outcome.output
    assert images.read_text() == line(5, 4 * 2 * 2, 2)


def test_needs_the_resumable_sampler(data, tmp_path):
    cfg = recipe(data, tmp_path)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    outcome = train(cfg)
    assert outcome.codes == [1]
    assert "needs train_dataloader.sampler.type='ResumableInfiniteSampler', but got InfiniteSampler" in outcome.output


def test_gradients_do_not_depend_on_the_order_of_threads(data, tmp_path):
    outcome = train(recipe(data, tmp_path, **{'train_cfg.max_iters': 1}), sabotage=compare_table_gradients)
    assert outcome.codes == [0], outcome.output


def test_gradients_depend_on_it_upstream(data, tmp_path):
    """Shows that the test above can fail."""
    outcome = train(plain(data, tmp_path, **{'train_cfg.max_iters': 1}), sabotage=compare_table_gradients)
    assert 'the sum depends on the threads' in outcome.output


def test_times_of_the_iterations(data, tmp_path):
    cfg = recipe(data, tmp_path, **{'train_cfg.max_iters': 5})
    assert train(cfg, sabotage=partial(kill_before_iter, 5)).codes == [-9]
    assert train(cfg, resume=True).codes == [0]
    killed, resumed = (path.read_text().splitlines() for path in sorted(tmp_path.glob('*/vis_data/steps.csv')))
    assert killed[0] == resumed[0] == 'iter,data_s,step_s'
    # lines are written in bundles, and when there is a validation
    assert [row.split(',')[0] for row in killed[1:]] == ['1', '2', '3', '4']
    assert [row.split(',')[0] for row in resumed[1:]] == ['5']
    for row in killed[1:] + resumed[1:]:
        _, data_s, step_s = map(float, row.split(','))
        assert 0 < data_s < step_s

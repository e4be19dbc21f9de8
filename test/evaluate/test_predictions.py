"""Predictions do not depend on the number of ranks and on interruptions; a stand-in labels the pictures."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from recipe.core import console
from recipe.evaluate import predict
from recipe.evaluate.inference import Inference

COUNT, BATCH = 10, 3


class Labeller:
    """Labels by colour, and remembers what it has labelled."""

    def __init__(self):
        self.paths, self.batches = [], []

    def __call__(self, paths, pictures):
        self.paths += paths
        self.batches.append(len(paths))
        return iter([picture[..., 0] % 19 for picture in pictures])


@pytest.fixture
def labeller(monkeypatch):
    made = Labeller()
    monkeypatch.setattr(predict, '_labeller', lambda *_: made)
    return made


@pytest.fixture
def task(labeller, tmp_path):
    rng = np.random.default_rng(0)
    named = [(f'a_{number}.png', str(tmp_path / f'{number}.png')) for number in range(COUNT)]
    for _, path in named:
        cv2.imwrite(path, rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    made = predict.Task('', None, str(tmp_path), named, BATCH, 2, 'cpu', 'whole', False, 'off', True, None)
    made.predictions.mkdir()
    return made


def run(task, world_size=1):
    for rank in range(world_size):
        predict.run(task, rank, rank, world_size, lambda done: None)


def contents(task):
    return {path.name: path.read_bytes() for path in task.predictions.iterdir()}


def clear(task, labeller):
    for path in task.predictions.iterdir():
        path.unlink()
    labeller.__init__()


@pytest.mark.parametrize('world_size', [2, 3, 7])
def test_ranks_share_the_pictures_and_predict_the_same(task, labeller, world_size):
    run(task)
    one = contents(task)
    assert len(one) == len(labeller.paths) == COUNT
    clear(task, labeller)
    run(task, world_size)
    assert contents(task) == one
    assert sorted(labeller.paths) == sorted(path for _, path in task.pictures)  # each of them once
    assert sorted(labeller.batches) == [1, 3, 3, 3]  # the batches are the same ones
    assert predict.speed(task.predictions.parent)['pictures'] == COUNT


@pytest.mark.parametrize('workers', [0, 1, 2])
@pytest.mark.parametrize('at', [0, 1, 4, 9])
def test_an_interrupted_rank_goes_on_and_predicts_the_same(task, labeller, monkeypatch, workers, at):
    task = dataclasses.replace(task, num_workers=workers)
    run(task)
    whole = contents(task)
    clear(task, labeller)

    def fail_there(path, labels, write=predict.write):
        if path.name == f'a_{at}.png':
            raise OSError(28, 'No space left on device')
        write(path, labels)

    with monkeypatch.context() as patch:
        patch.setattr(predict, 'write', fail_there)
        with pytest.raises(OSError, match='No space left'):
            run(task)
    kept = contents(task)
    assert f'a_{at}.png' not in kept
    times = {path.name: path.stat().st_mtime_ns for path in task.predictions.iterdir()}
    labeller.__init__()
    run(task)
    assert contents(task) == whole
    groups = [range(first, min(first + BATCH, COUNT)) for first in range(0, COUNT, BATCH)]
    missing = [number for group in groups if any(f'a_{one}.png' not in kept for one in group) for number in group]
    assert labeller.paths == [task.pictures[number][1] for number in missing]
    done = {name: time for name, time in times.items() if int(name[2:-4]) not in missing}
    assert {name: (task.predictions / name).stat().st_mtime_ns for name in done} == done


def test_half_a_prediction_counts_as_none(task, labeller):
    run(task)
    whole = contents(task)
    for number, content in ((0, b''), (4, whole['a_4.png'][:-5])):  # as a lost machine may leave them
        (task.predictions / f'a_{number}.png').write_bytes(content)
    labeller.__init__()
    run(task)
    assert contents(task) == whole
    assert labeller.batches == [3, 3]


def test_an_unreadable_picture_is_named(task):
    path = task.pictures[4][1]
    with open(path, 'wb') as file:
        file.write(b'\x89PNG')
    with pytest.raises(console.UserError, match=f'cannot read {path}') as caught:
        run(task)
    assert caught.value.status == 66


def test_pictures_of_several_sizes_in_one_batch(task, monkeypatch):
    """Those of one size that follow each other go through the model together."""
    monkeypatch.undo()
    shapes = []

    class Model:
        device = 'cpu'

        def scores(self, batch, size):
            shapes.append(tuple(batch.shape))
            return torch.rand(len(batch), 19, *size)

        @staticmethod
        def resized(picture):
            return picture

    monkeypatch.setattr('recipe.predict.trained_model.load_trained_model', lambda *_: Model())
    monkeypatch.setattr('mmseg.engine.device.prepare_device', lambda *_: 'cpu')
    for number, width in enumerate((24, 24, 32, 16)):
        cv2.imwrite(task.pictures[number][1], np.zeros((16, width, 3), np.uint8))
    task = dataclasses.replace(task, pictures=task.pictures[:4], batch_size=4)
    run(task)
    assert shapes == [(2, 3, 16, 24), (1, 3, 16, 32), (1, 3, 16, 16)]
    assert len(contents(task)) == 4


def test_a_score_that_is_not_finite_names_the_picture_and_has_its_status(task, monkeypatch):
    monkeypatch.undo()

    def labels(self, pictures):
        raise FloatingPointError

    monkeypatch.setattr('recipe.predict.trained_model.load_trained_model', lambda *_: None)
    monkeypatch.setattr('mmseg.engine.device.prepare_device', lambda *_: 'cpu')
    monkeypatch.setattr(Inference, 'labels', labels)
    with pytest.raises(console.UserError, match=r'not finite: .*/0\.png or .*; evaluate without --amp') as caught:
        run(dataclasses.replace(task, amp='fp16'))
    assert caught.value.status == 65

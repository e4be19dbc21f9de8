"""Predictions of the demo's trained model: they do not depend on ranks and interruptions, and are the validation's."""

from __future__ import annotations

import dataclasses
import json

import mmcv
import numpy as np
import pytest
import torch
from PIL import Image

import trained_demo
from recipe.core import console
from recipe.evaluate import classes, pictures, predict, result
from recipe.evaluate.inference import Inference
from recipe.predict.trained_model import load_trained_model

pytestmark = pytest.mark.trains


@pytest.fixture(scope='module')
def demo():
    return trained_demo.folder()


@pytest.fixture(scope='module')
def model(demo):
    return load_trained_model(demo / 'run', 'cpu')


@pytest.fixture(scope='module')
def scenes(demo):
    return pictures.find(demo / 'data', 'val')


@pytest.fixture
def task(demo, model, scenes, tmp_path, monkeypatch):
    """A task whose ranks share one loaded model."""
    labeller = Inference(model)

    def label(paths, batch):
        label.paths += paths
        return iter(labeller.labels(batch))

    label.paths = []
    monkeypatch.setattr(predict, '_labeller', lambda *_: label)
    made = predict.Task(
        str(model.path), None, str(tmp_path), [(one.name, one.path) for one in scenes], 3, 2, 'cpu', 'whole', False,
        'off', True, None,
    )  # fmt: skip
    made.predictions.mkdir()
    return made, label


def run(task, world_size=1):
    for rank in range(world_size):
        predict.run(task, rank, rank, world_size, lambda done: None)


def contents(task):
    return {path.name: path.read_bytes() for path in task.predictions.iterdir()}


def test_ranks_share_the_pictures_and_predict_the_same(task):
    task, label = task
    run(task)
    one = contents(task)
    assert len(one) == len(task.pictures) == len(label.paths) == 10
    for world_size in (2, 3, 7):
        for path in task.predictions.iterdir():
            path.unlink()
        label.paths.clear()
        run(task, world_size)
        assert contents(task) == one
        assert sorted(label.paths) == sorted(path for _, path in task.pictures)  # each of them once
    assert predict.speed(task.predictions.parent)['pictures'] == 10


@pytest.mark.parametrize('workers', [0, 2])
def test_an_interrupted_rank_goes_on_and_predicts_the_same(task, monkeypatch, workers):
    task, label = task
    task = dataclasses.replace(task, num_workers=workers)
    run(task)
    whole = contents(task)
    for path in task.predictions.iterdir():
        path.unlink()
    written = []

    def fail_at_the_fifth(path, labels, write=predict.write):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, labels)

    with monkeypatch.context() as patch:
        patch.setattr(predict, 'write', fail_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            run(task)
    kept = contents(task)
    assert 0 < len(kept) < 10
    half_written = task.predictions / task.pictures[0][0]
    half_written.write_bytes(kept[half_written.name][:-20])  # as a disk that was full may leave it
    label.paths.clear()
    run(task)
    assert contents(task) == whole
    done_batches = [batch for batch in np.split(np.arange(9), 3) if all(task.pictures[i][0] in kept for i in batch)]
    assert len(label.paths) == 10 - 3 * len([batch for batch in done_batches if 0 not in batch])


def test_an_unreadable_picture_is_named(task, tmp_path):
    task, _ = task
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'\x89PNG')
    with pytest.raises(console.UserError, match=f'cannot read {broken}') as caught:
        run(dataclasses.replace(task, pictures=[*task.pictures[:4], ('broken.png', str(broken))]))
    assert caught.value.status == 66


def test_the_metrics_are_those_of_the_validation(task, demo, scenes):
    task, _ = task
    run(task)
    found = result.evaluate(scenes, task.predictions.parent, with_official=True)
    result.require_agreement(found)
    trained = json.loads((demo / 'run' / 'result.json').read_text())
    means = found.scores.means()
    for name, logged in (('miou', 'miou_last_percent'), ('macc', 'macc_last_percent'), ('aacc', 'aacc_last_percent')):
        assert 100 * means[name] == pytest.approx(trained[logged], abs=0.011)  # mmseg rounds to two digits
    content = result.describe(found, {'split': 'val'}, predict.speed(task.predictions.parent))
    written = result.write(found, content, scenes, task.predictions.parent)
    assert [path.name for path in written] == ['result.json', 'confusion.csv', 'confusion.png', 'worst.png']
    read = json.loads(written[0].read_text())
    assert read['miou_percent'] == pytest.approx(100 * means['miou'])
    assert read['official_largest_difference'] < 1e-6
    rows = [line.split(',') for line in written[1].read_text().splitlines()]
    assert rows[0][1:] == classes.NAMES
    assert (np.array([row[1:] for row in rows[1:]], int) == found.counts.confusion).all()
    for path in written[2:]:
        with Image.open(path) as opened:
            opened.load()
    worst = [one['miou_percent'] for one in read['worst_pictures']]
    assert worst == sorted(worst) and len(worst) == 10


def test_augmentation_of_the_trained_model_is_a_plain_loop(model, scenes):
    picture = predict.read(scenes[0].path)
    found = Inference(model, tta=True).scores([picture])
    height, width = picture.shape[:2]
    expected = 0
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        view = torch.from_numpy(mmcv.imrescale(picture, scale).transpose(2, 0, 1).copy())[None]
        for flipped in (False, True):
            scores = model.scores(view.flip(-1) if flipped else view, (height, width))
            expected = expected + (scores.flip(-1) if flipped else scores) / 12
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

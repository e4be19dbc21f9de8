"""The demo's trained model: its evaluation is the validation of its training; scales and flips are a plain loop."""

from __future__ import annotations

import json

import mmcv
import numpy as np
import pytest
import torch
from PIL import Image

import finetune
import trained_demo
from recipe.evaluate import classes, pictures, predict, result
from recipe.evaluate.inference import SCALES, Inference
from recipe.export import class_rows
from recipe.predict.trained_model import load_trained_model

pytestmark = pytest.mark.trains


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Several test processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def demo():
    return trained_demo.folder()


@pytest.fixture(scope='module')
def model(demo):
    return load_trained_model(demo / 'run', 'cpu')


@pytest.fixture(scope='module')
def scenes(demo):
    return pictures.find(demo / 'data', 'val')


def test_the_metrics_are_those_of_the_validation(model, demo, scenes, tmp_path):
    predictions = predict.predictions_of(tmp_path)
    predictions.mkdir()
    for first in range(0, len(scenes), 4):
        batch = scenes[first : first + 4]
        for scene, labels in zip(batch, Inference(model).labels([predict.read(one.path) for one in batch])):
            predict.write(predictions / scene.name, labels)
    found = result.evaluate(scenes, tmp_path, with_official=True)
    result.require_agreement(found)
    trained = json.loads((demo / 'run' / 'result.json').read_text())
    means = found.scores.means()
    for name, logged in (('miou', 'miou_last_percent'), ('macc', 'macc_last_percent'), ('aacc', 'aacc_last_percent')):
        assert 100 * means[name] == pytest.approx(trained[logged], abs=0.011)  # mmseg rounds to two digits
    written = result.write(found, result.describe(found, {'split': 'val'}, None), scenes, tmp_path)
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


def test_augmentation_is_a_plain_loop(model, scenes):
    picture = predict.read(scenes[0].path)[40:104, :128].copy()
    found = Inference(model, tta=True).scores([picture])
    expected = 0
    for scale in SCALES:
        view = torch.from_numpy(mmcv.imrescale(picture, scale).transpose(2, 0, 1).copy())[None]
        for flipped in (False, True):
            scores = model.scores(view.flip(-1) if flipped else view, picture.shape[:2])
            expected = expected + (scores.flip(-1) if flipped else scores) / 12
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_class_map_carries_over_what_was_learned(model, scenes):
    """From 19 classes to seven without any training: rows drawn anew know nothing."""
    categories, names = finetune.table(), [f'class {number}' for number in range(7)]
    pictures_read = [predict.read(one.path) for one in scenes]
    truth = categories[np.stack([np.asarray(Image.open(one.labels)) for one in scenes])]
    known = truth != classes.IGNORED
    head = model.model.decode_head
    old = {name: head.get_parameter(name.partition('.')[2]).detach() for name in class_rows.EMBEDDING}

    def miou(class_map):
        weight, bias = class_rows.carry(old, list(classes.NAMES), names, class_map, seed=0).weights.values()
        layer = torch.nn.Linear(weight.shape[1], len(bias))
        layer.load_state_dict({'weight': weight, 'bias': bias})
        kept, head.cls_embed = head.cls_embed, layer
        try:
            found = Inference(model).labels(pictures_read)
        finally:
            head.cls_embed = kept
        both = np.bincount(7 * truth[known].astype(int) + found[known], minlength=49).reshape(7, 7)
        return np.mean(np.diag(both) / (both.sum(0) + both.sum(1) - np.diag(both)))

    assert miou(finetune.class_map()) > 2 * miou(None)

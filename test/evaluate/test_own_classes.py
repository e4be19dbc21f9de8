"""The figures of a set that is not Cityscapes: by its own names, with labels as the set codes them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import own_sets
from recipe.core import console
from recipe.data.sets import file, inspect
from recipe.evaluate import classes, pictures, predict, result
from recipe.launch import checks, options
from recipe.launch.plan import Plan
from recipe.predict import trained_model


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> file.DataSet:
    root = own_sets.make(tmp_path_factory.mktemp('own') / 'set', 'rgb', sizes=((128, 64), (96, 96)))
    return file.read(file.write(inspect.inspect(root, root / file.NAME, workers=1, progress=False)))


def predicted(data: file.DataSet, folder: Path, wrong: int = 0) -> list:
    """Predictions that are the truth but for so many columns; returns the pictures."""
    found = pictures.of_set(data, 'val')
    of = classes.of_set(data)
    predict.predictions_of(folder).mkdir(parents=True)
    for picture in found:
        labels = of.decoder.read(picture.labels)
        labels = np.where(labels == classes.IGNORED, 3, labels).astype(np.uint8)
        labels[:, :wrong] = (labels[:, :wrong] + 1) % 4
        predict.write_train_ids(predict.predictions_of(folder) / picture.name, labels)
    return found


def test_perfect_predictions_have_perfect_figures(data: file.DataSet, tmp_path: Path) -> None:
    found = predicted(data, tmp_path)
    scores = result.evaluate(found, tmp_path, False, classes.of_set(data)).scores
    assert scores.class_iou == dict.fromkeys(data.names, 1.0)
    assert scores.class_boundary_iou == dict.fromkeys(data.names, 1.0)
    assert scores.category_iou == scores.class_iiou == {}


def test_figures_are_those_of_the_counted_pixels(data: file.DataSet, tmp_path: Path) -> None:
    found = predicted(data, tmp_path, wrong=16)
    evaluated = result.evaluate(found, tmp_path, False, classes.of_set(data))
    of = classes.of_set(data)
    truth = np.concatenate([of.decoder.read(one.labels).ravel() for one in found])
    files = [predict.predictions_of(tmp_path) / one.name for one in found]
    ours = np.concatenate([np.array(Image.open(path)).ravel() for path in files])
    kept = truth != classes.IGNORED
    for number, name in enumerate(data.names):
        both = ((truth == number) & (ours == number) & kept).sum()
        either = (((truth == number) | (ours == number)) & kept).sum()
        assert evaluated.scores.class_iou[name] == pytest.approx(both / either)
    content = result.describe(evaluated, {}, None)
    written = result.write(evaluated, content, found, tmp_path)
    assert all(path.stat().st_size for path in written)
    stored = json.loads((tmp_path / 'result.json').read_text())
    assert list(stored['class_iou_percent']) == data.names
    assert stored['boundary_width_px'] is None  # the pictures have two sizes
    assert 'category_miou_percent' not in stored


def test_a_prediction_with_a_class_that_is_none_is_named(data: file.DataSet, tmp_path: Path) -> None:
    found = predicted(data, tmp_path)
    path = predict.predictions_of(tmp_path) / found[0].name
    predict.write_train_ids(path, np.full((64, 128), 9, np.uint8))
    with pytest.raises(console.UserError, match=r'holds other values than the 4 evaluated train ids'):
        result.evaluate(found, tmp_path, False, classes.of_set(data))


def test_pictures_of_one_name_in_two_folders_have_two_predictions(tmp_path: Path) -> None:
    root = own_sets.make(
        tmp_path, place=lambda s, n: (f'images/{s}/t{n % 2}/{n // 2}.jpg', f'labels/{s}/t{n % 2}/{n // 2}.png')
    )
    own = file.read(file.write(inspect.inspect(root, root / file.NAME, workers=1, progress=False)))
    names = [one.name for one in pictures.of_set(own, 'val')]
    assert len(names) == len(set(names)) == 4


@pytest.mark.parametrize(
    ('named', 'said'),
    [
        (['name_0', 'name_1', 'name_2'], 'has 3 classes, and'),
        (['name_0', 'name_2', 'name_1', 'name_3'], "has 'name_2' as class 1, and"),
    ],
)
def test_a_checkpoint_of_other_classes_is_refused(data, tmp_path, monkeypatch, named, said) -> None:
    checkpoint = tmp_path / 'iter_1.pth'
    checkpoint.write_bytes(b'weights')
    trained = SimpleNamespace(path=checkpoint, classes=named, config={}, model=None)
    monkeypatch.setattr(trained_model, 'load_trained_model', lambda *_, **__: trained)
    asked = options.read('evaluate', [f'--dataset={data.path}', f'--checkpoint={checkpoint}'])
    plan = Plan(asked, starts=False, device='cpu', nproc=1)
    with pytest.raises(console.UserError) as refused:
        for check in checks.EVALUATION:
            if check.name in ('data path', 'checkpoint'):
                list(check.examine(plan))
    assert said in str(refused.value)

"""The counts and metrics: against the official evaluation and against the definition of Boundary IoU."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as all_labels
from PIL import Image

from recipe.core import console
from recipe.evaluate import classes, official, scores
from recipe.evaluate import counts as counting

SIZE = (48, 96)
IDS = [label.id for label in all_labels if label.id >= 0]


def blobs(rng, values, size=SIZE, cell=8):
    """A map of random blocks."""
    small = rng.choice(values, (size[0] // cell, size[1] // cell))
    return np.kron(small, np.ones((cell, cell), int)).astype(np.uint8)


def write_set(folder, seed, present, pictures=3, with_instances=True):
    """Labels of some ids, with and without evaluation, and predictions of evaluated classes; returns the jobs."""
    rng = np.random.default_rng(seed)
    jobs = []
    for number in range(pictures):
        label_ids = blobs(rng, present)
        prediction = np.where(rng.random(SIZE) < 0.6, label_ids, blobs(rng, classes.LABEL_IDS, cell=4))
        prediction = classes.TO_LABEL_ID[classes.TO_TRAIN_ID[prediction]]
        prediction[prediction == 0] = classes.LABEL_IDS[0]
        instances = label_ids.astype(np.uint16)
        for one in (24, 25, 26, 29, 33):  # two instances of each class; caravans (29) are not evaluated
            mask = label_ids == one
            instances[mask] = one * 1000 + (np.nonzero(mask)[1] > SIZE[1] // 2)
        stem = folder / f'town_{number:06d}_000019_gtFine'
        Image.fromarray(label_ids).save(f'{stem}_labelIds.png')
        Image.fromarray(classes.TO_TRAIN_ID[label_ids]).save(f'{stem}_labelTrainIds.png')
        if with_instances:
            Image.fromarray(instances).save(f'{stem}_instanceIds.png')
        Image.fromarray(prediction).save(folder / f'{number}.png')
        sizes = official.instance_sizes()
        names = [f'{folder / str(number)}.png', f'{stem}_labelTrainIds.png']
        jobs.append(counting.Job(*names, f'{stem}_instanceIds.png', sizes) if with_instances else counting.Job(*names))
    return jobs


def total(jobs):
    found = counting.Counts.zero()
    for job in jobs:
        found.add(counting.count(job))
    return found


PRESENT = {
    'all ids': IDS,
    'ignored regions and four classes': [0, 1, 3, 4, 7, 11, 24, 26],
    'no instance, one category': [0, 7, 8],
    'only classes of one pixel map': [26],
}


@pytest.mark.parametrize('with_instances', [True, False])
@pytest.mark.parametrize('present', PRESENT.values(), ids=PRESENT)
def test_the_official_evaluation_finds_the_same(tmp_path, present, with_instances):
    jobs = write_set(tmp_path, len(present), present, with_instances=with_instances)
    ours = official.flat(scores.Scores.of(total(jobs), with_instances))
    label_ids = [job.labels.replace('labelTrainIds', 'labelIds') for job in jobs]
    theirs = official.evaluate([job.prediction for job in jobs], label_ids, with_instances)
    assert official.differences(ours, theirs) == []
    assert np.isfinite(theirs['miou'])
    assert ('iiou' in theirs) == ('iiou' in ours) == with_instances


def test_a_difference_from_the_official_evaluation_is_noticed():
    nan = float('nan')
    ours = {'miou': 0.5, 'class_iou/car': nan, 'class_iou/bus': 0.1}
    assert official.differences(ours, {'miou': 0.5 + 1e-7, 'class_iou/car': nan}) == []
    for theirs in ({'miou': 0.5 + 2e-6}, {'class_iou/car': 0.0}, {'class_iou/bus': nan}, {'iiou': 0.2}):
        assert len(official.differences(ours, theirs)) == 1


def test_what_the_official_module_reads_and_lacks_is_put_back(monkeypatch):
    monkeypatch.setenv('CITYSCAPES_EXPORT_DIR', '/no/such/folder')  # its import fails with that
    had = hasattr(np, 'in1d')
    assert official.instance_sizes()[13] == pytest.approx(12794.02, abs=0.01)
    assert os.environ['CITYSCAPES_EXPORT_DIR'] == '/no/such/folder'
    assert hasattr(np, 'in1d') == had


def test_a_label_file_of_another_size_ends_the_official_evaluation_in_one_line(tmp_path):
    (job,) = write_set(tmp_path, 0, IDS, pictures=1)
    label_ids = job.labels.replace('labelTrainIds', 'labelIds')
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(label_ids)
    with pytest.raises(console.UserError, match=r'the official evaluation gave up: ERROR: Image widths'):
        official.evaluate([job.prediction], [label_ids], False)


@pytest.mark.parametrize('seed', range(3))
def test_boundaries_are_those_of_each_mask_eroded(seed):
    """As the paper's code finds them: a 3 x 3 erosion, as often as the zone is wide, of each padded mask."""
    labels = blobs(np.random.default_rng(seed), [0, 1, 2, 18, classes.IGNORED])
    for width in (1, 2, 5):
        expected = np.zeros(SIZE, bool)
        for one in np.unique(labels):
            padded = np.pad((labels == one).astype(np.uint8), 1)
            eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
            expected |= (padded - eroded)[1:-1, 1:-1].astype(bool)
        assert (counting.near_boundary(labels, width) == expected).all()


def test_boundary_iou_by_class():
    labels, prediction = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    labels[:, 50:], prediction[:, 52:] = 1, 1
    labels[:4] = classes.IGNORED
    width = counting.boundary_width(SIZE)
    assert width == 2  # 2 % of 107 pixels
    found = counting.count_boundaries(prediction, labels)
    for one in (0, 1):
        true, ours = labels == one, (prediction == one) & (labels != classes.IGNORED)
        masks = []
        for mask in (true, ours):
            padded = np.pad(mask.astype(np.uint8), 1)
            masks.append((padded - cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width))[1:-1, 1:-1] > 0)
        assert found[:, one].tolist() == [(masks[0] & masks[1]).sum(), masks[1].sum(), masks[0].sum()]
    assert not found[:, 2:].any()
    same = counting.count_boundaries(np.where(labels == classes.IGNORED, 0, labels).astype(np.uint8), labels)
    assert (same[0] == same[1]).all() and (same[0] == same[2]).all()  # whatever is predicted where labels are ignored


def test_the_width_of_a_boundary_on_cityscapes():
    assert counting.boundary_width((1024, 2048)) == 46


@pytest.mark.parametrize(
    ('fault', 'said'),
    [
        (lambda job: Image.fromarray(np.zeros((8, 8), np.uint8)).save(job.labels), r'labelTrainIds.png is 8x8 pixels'),
        (lambda job: Image.fromarray(np.zeros((8, 8), np.uint16)).save(job.instances), r'instanceIds.png is 8x8'),
        (lambda job: Image.fromarray(np.zeros(SIZE, np.uint8)).save(job.prediction), 'the 19 evaluated label ids'),
        (lambda job: Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(job.prediction), 'is coloured'),
        (lambda job: open(job.prediction, 'wb').close(), r'cannot read .*0\.png'),
        (lambda job: os.truncate(job.instances, 60), r'cannot read .*instanceIds\.png'),
        (lambda job: Path(job.labels).unlink(), 'No such file'),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, fault, said):
    (job,) = write_set(tmp_path, 0, IDS, pictures=1)
    fault(job)
    with pytest.raises(console.UserError, match=said):
        counting.count(job)


def test_classes_are_cityscapes():
    assert classes.COUNT == 19 and classes.NAMES[0] == 'road' and classes.NAMES[-1] == 'bicycle'
    assert list(classes.CATEGORIES) == ['flat', 'construction', 'object', 'nature', 'sky', 'human', 'vehicle']
    assert classes.CATEGORIES_WITH_INSTANCES == ['human', 'vehicle']
    assert classes.TO_TRAIN_ID[classes.TO_LABEL_ID[:19]].tolist() == list(range(19))

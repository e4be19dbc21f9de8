"""The procedural scenes: determinism, labels that fit the pixels, all classes, no colour code."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label, trainId2label
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from recipe.data import scenes as streetscenes
from recipe.data.scenes import light
from recipe.data.scenes.camera import Camera, Frame
from recipe.data.scenes.canvas import Canvas

NUM_CLASSES = 19
# Classes that a street is hardly ever without.
USUAL = {'road', 'sidewalk', 'building', 'vegetation', 'sky', 'car', 'person', 'pole', 'traffic sign'}


def label_of(annotation: dict, encoding: str = 'trainIds') -> np.ndarray:
    parsed = Annotation()
    parsed.fromJsonText(json.dumps(annotation))
    return np.array(createLabelImage(parsed, encoding))


@pytest.fixture(scope='module')
def street() -> dict:
    """24 training scenes and 8 for validation: pictures and labels, uint8 (N, H, W, 3) and (N, H, W)."""
    scenes = {}
    for split, count in (('train', 24), ('val', 8)):
        rendered = [streetscenes.render(0, split, index, 192, 96) for index in range(count)]
        scenes[split] = (
            np.stack([scene.image for scene in rendered]),
            np.stack([label_of(scene.annotation) for scene in rendered]),
        )
    return scenes


def test_a_scene_is_the_same_each_time_it_is_made() -> None:
    first, second = (streetscenes.render(3, 'train', 5, 128, 64) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert first.annotation == second.annotation


@pytest.mark.parametrize(('seed', 'split', 'index'), [(4, 'train', 5), (3, 'val', 5), (3, 'train', 6)])
def test_another_seed_split_or_number_gives_another_scene(seed: int, split: str, index: int) -> None:
    other = streetscenes.render(seed, split, index, 128, 64)
    assert not np.array_equal(other.image, streetscenes.render(3, 'train', 5, 128, 64).image)


@pytest.mark.parametrize(('width', 'height'), [(64, 64), (101, 67), (256, 128), (90, 300)])
def test_any_size_gives_a_picture_and_polygons_of_that_size(width: int, height: int) -> None:
    scene = streetscenes.render(0, 'train', 1, width, height)
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert (scene.annotation['imgWidth'], scene.annotation['imgHeight']) == (width, height)
    for item in scene.annotation['objects']:
        corners = np.array(item['polygon'])
        assert item['label'].replace('group', '') in name2label
        assert corners.dtype.kind == 'i'
        assert (corners >= 0).all()
        assert (corners < (width, height)).all()


@pytest.mark.parametrize('factor', [1, 2, 3])
def test_a_label_covers_the_pixels_that_its_strokes_cover_at_least_half(factor: int) -> None:
    width, height = 96, 48
    camera = Camera(width * factor, height * factor, 100.0, 48.0 * factor, 20.0 * factor, 1.4, 0.0)
    rng = np.random.default_rng(factor)
    canvas = Canvas(width, height, factor, camera, light.sample_light(rng), rng)
    corners = np.array([(10.2, 8.7), (80.6, 15.1), (60.3, 44.8), (20.9, 30.5)]) * factor
    with canvas.thing('car'):
        canvas.fill(corners, (255, 255, 255))
    share = canvas.finished()[..., 0] / 255.0
    labelled = (
        label_of({'imgWidth': width, 'imgHeight': height, 'objects': canvas.objects}) == name2label['car'].trainId
    )
    assert labelled[share > 0.6].all()
    assert not labelled[share < 0.3].any()


def test_a_thing_that_is_closed_leaves_nothing_to_the_next() -> None:
    rng = np.random.default_rng(0)
    camera = Camera(180, 90, 100.0, 90.0, 40.0, 1.4, 0.0)
    canvas = Canvas(60, 30, 3, camera, light.sample_light(rng), rng)
    with canvas.thing('car'):
        canvas.line(np.array([(3.0, 3.0), (170.0, 80.0)]), (0, 0, 0), 9.0)
    with canvas.thing('person'):
        canvas.fill(np.array([(30.0, 60.0), (60.0, 60.0), (60.0, 88.0), (30.0, 88.0)]), (9, 9, 9))
    assert len([item for item in canvas.objects if item['label'] == 'person']) == 1
    xs, ys = np.array(canvas.objects[-1]['polygon']).T
    assert xs.min() >= 9
    assert xs.max() <= 20
    assert ys.min() >= 19


def test_a_thing_out_of_the_picture_has_no_polygon() -> None:
    rng = np.random.default_rng(0)
    camera = Camera(180, 90, 100.0, 90.0, 40.0, 1.4, 0.0)
    canvas = Canvas(60, 30, 3, camera, light.sample_light(rng), rng)
    with canvas.thing('car'):
        canvas.fill(np.array([(-50.0, 3.0), (-20.0, 3.0), (-20.0, 50.0)]), (0, 0, 0))
    assert canvas.objects == []


def test_projection_halves_a_thing_at_twice_the_depth() -> None:
    camera = Camera(200, 100, 150.0, 100.0, 40.0, 1.5, 0.0)
    near, far = (np.ptp(camera.project(Frame(0.0, z).to_world([(0, -1, 0), (0, 1, 2)])), axis=0) for z in (5.0, 10.0))
    assert near == pytest.approx(2 * far)
    assert camera.project(np.array([(0.0, 1.5, 7.0)]))[0] == pytest.approx((100.0, 40.0))


def test_all_classes_occur_and_the_usual_ones_nearly_everywhere(street: dict) -> None:
    for split, often in (('train', 0.15), ('val', 0.1)):
        labels = street[split][1]
        counts = np.stack([np.bincount(label.ravel(), minlength=256) for label in labels])
        seen = (counts >= 8).mean(0)
        for train_id in range(NUM_CLASSES):
            name = trainId2label[train_id].name
            assert seen[train_id] >= (0.7 if name in USUAL else often), (split, name, seen[train_id])
        assert seen[255] == 1.0  # the camera car's hood is ignored
        assert not counts[:, NUM_CLASSES:255].any()


def test_colour_alone_does_not_tell_the_class(street: dict) -> None:
    def bins(pictures: np.ndarray) -> np.ndarray:
        coarse = pictures.astype(np.int64) >> 4
        return (coarse[..., 0] << 8) + (coarse[..., 1] << 4) + coarse[..., 2]

    pictures, labels = street['train']
    votes = np.zeros((4096, NUM_CLASSES))
    known = labels < NUM_CLASSES
    np.add.at(votes, (bins(pictures)[known], labels[known]), 1)
    pictures, labels = street['val']
    known = labels < NUM_CLASSES
    guessed = votes.argmax(1)[bins(pictures)][known]
    confusion = np.bincount(labels[known] * NUM_CLASSES + guessed, minlength=NUM_CLASSES**2)
    confusion = confusion.reshape(NUM_CLASSES, NUM_CLASSES)
    right = np.diag(confusion)
    iou = right / np.maximum(confusion.sum(0) + confusion.sum(1) - right, 1)
    # A colour code would reach 1; half of the classes must be out of reach.
    assert iou.mean() < 0.35
    assert np.median(iou) < 0.2


def test_pictures_have_texture_and_noise_everywhere(street: dict) -> None:
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in street['train'][0]]
    for picture in grey:
        tiles = picture[: 96 // 16 * 16].reshape(6, 16, 12, 16).std(axis=(1, 3))
        assert (tiles > 0).all()

"""Windows, scales and flips, with a stand-in for the model; the real one is in test_predictions.py."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder
from torch.nn import functional

from recipe.evaluate import inference
from recipe.evaluate.inference import Inference


class Toy:
    """Scores that depend on a pixel's neighbours and on which side they are."""

    device = 'cpu'
    config = Config({'model': {'data_preprocessor': {'size': (24, 32)}}})
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def scores(self, batch, size=None):
        found = functional.conv2d(batch.float() / 255, self.weight, padding=1).sigmoid()
        return functional.interpolate(found, size or batch.shape[-2:], mode='bilinear', align_corners=False)

    @staticmethod
    def resized(picture):
        return picture


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 72, 3), dtype=np.uint8) for _ in range(2)]


def tensor(picture):
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


def plain_augmentation(model, picture):
    """Mean of the raw scores over scales and flips, written out."""
    height, width = picture.shape[:2]
    found = []
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        view = mmcv.imrescale(picture, scale)
        assert view.shape[:2] == (int(height * scale + 0.5), int(width * scale + 0.5))
        found.append(model.scores(tensor(view), (height, width)))
        found.append(model.scores(tensor(view[:, ::-1]), (height, width)).flip(-1))
    assert len(found) == 12
    return torch.stack(found).mean(0)


def test_augmentation_is_a_plain_loop(pictures):
    found = Inference(Toy(), tta=True).scores(pictures)
    expected = torch.cat([plain_augmentation(Toy(), picture) for picture in pictures])
    torch.testing.assert_close(found, expected)
    softened = torch.cat([Toy().scores(tensor(picture)) for picture in pictures])
    assert not torch.allclose(found, softened, atol=1e-3)


def test_augmentation_holds_one_view_at_a_time(pictures):
    """Never more than the sum and one result: 12 of them would not fit at full size."""
    alive, most = [], 0

    class Counting(Toy):
        def scores(self, batch, size=None):
            nonlocal most
            found = super().scores(batch, size)
            alive[:] = [one for one in alive if one() is not None]
            alive.append(weakref.ref(found))
            most = max(most, len(alive))
            return found

    Inference(Counting(), tta=True).scores(pictures)
    assert most == 2  # the sum, which began as the first result, and the newest result


@pytest.mark.parametrize('size', [(40, 72), (24, 32), (16, 20), (25, 33), (100, 32)])
@pytest.mark.parametrize('stride', [(16, 21), (24, 32)])
def test_windows_are_those_of_mmseg(size, stride):
    crop = (24, 32)

    def encode_decode(inputs, _):
        return Toy().scores(inputs)

    theirs = SimpleNamespace(
        test_cfg=SimpleNamespace(stride=stride, crop_size=crop), out_channels=5, encode_decode=encode_decode
    )
    batch = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    expected = EncoderDecoder.slide_inference(theirs, batch.float(), [{}])
    found = inference.in_windows(Toy().scores, crop, stride)(batch, size)
    torch.testing.assert_close(found, expected)


def test_window_and_stride_come_from_the_config():
    sizes = inference.slide_sizes(Toy.config)
    assert sizes == ((24, 32), None)
    test = {'crop_size': [10, 20], 'stride': [5, 6]}
    assert inference.slide_sizes(Config({'model': {'test_cfg': test}})) == ((10, 20), (5, 6))


def test_windows_are_scored_when_they_are_asked_for(pictures):
    whole, slide = (Inference(Toy(), mode).scores(pictures) for mode in inference.MODES)
    assert whole.shape == slide.shape
    assert not torch.equal(whole, slide)  # a window's edge has no neighbours
    assert Inference(Toy(), 'slide', tta=True).scores(pictures).shape == whole.shape


def test_labels_are_the_first_largest_score(pictures):
    class Tied(Toy):
        def scores(self, batch, size=None):
            return super().scores(batch, size)[:, [0, 1, 1, 0]]

    scores = Inference(Tied()).scores(pictures)
    found = Inference(Tied()).labels(pictures)
    assert found.dtype == np.uint8 and found.shape == (2, 40, 72)
    assert (found == np.argmax(scores.numpy(), axis=1)).all()


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_score_that_is_not_finite_is_noticed(pictures, value):
    class Broken(Toy):
        def scores(self, batch, size=None):
            found = super().scores(batch, size)
            found[1, 2, 7, 9] = value
            return found

    with pytest.raises(FloatingPointError):
        Inference(Broken()).labels(pictures)

"""``from recipe import load``: from a picture in any form to its label map."""

from __future__ import annotations

import io
import threading

import mmcv
import numpy as np
import pytest
from PIL import Image

import recipe
from oriented_pictures import all_ways
from recipe.predict.picture import UnreadableError, read
from recipe.predict.segmenter import Segmenter


@pytest.fixture(scope='module')
def segment(trained):
    return Segmenter(trained)


def test_a_path_an_array_and_a_pillow_image_are_alike(segment, street, tmp_path):
    street.save(tmp_path / 'a.png')
    labels = segment(tmp_path / 'a.png')
    assert labels.shape == street.size[::-1] and labels.dtype == np.uint8 and len(np.unique(labels)) > 1
    for same in (str(tmp_path / 'a.png'), np.asarray(street), street, street.convert('RGBA')):
        assert np.array_equal(segment(same), labels)
    assert not np.array_equal(segment(np.asarray(street)[..., ::-1]), labels)  # BGR
    scores = segment.scores(street)
    assert scores.shape == (19, *labels.shape) and np.array_equal(scores.argmax(0), labels)


def test_it_is_what_the_package_gives(run, street):
    segment = recipe.load(run, device='cpu')
    assert segment(street).max() < len(segment.classes) == len(segment.palette)
    assert 'best_mIoU_iter_4.pth, 19 classes, on cpu' in repr(segment)
    with pytest.raises(AttributeError, match='has no attribute'):
        recipe.unload  # noqa: B018


def test_threads_do_not_disturb_each_other(segment, street):
    pictures = [np.roll(np.asarray(street), 16 * number, axis=1)[: 60 + number % 2] for number in range(6)]
    alone = [segment(one) for one in pictures]
    together = [None] * len(pictures)

    def work(number):
        together[number] = segment(pictures[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(pictures))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))


@pytest.mark.parametrize('value', range(9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_files_are_turned_as_their_exif_data_asks(tmp_path, street, kind, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = tmp_path / 'a'
    street.crop((0, 0, 64, 32)).save(path, kind, exif=exif)
    with Image.open(path) as opened:
        turn = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }.get(value)
        expected = np.asarray(opened if turn is None else opened.transpose(turn))[..., ::-1]
    assert read(path).shape == expected.shape
    if kind == 'JPEG':  # decoders differ by rounding; ours is that of mmseg's loading
        assert np.array_equal(read(path), mmcv.imread(path))
        assert np.abs(read(path).astype(int) - expected).max() <= 3
    else:
        assert np.array_equal(read(path), expected)


def test_every_way_to_ask_for_a_turn_counts(tmp_path, street):
    png = io.BytesIO()
    street.crop((0, 0, 40, 20)).save(png, 'PNG')
    for number, data in enumerate(all_ways(png.getvalue()).values()):
        (tmp_path / f'{number}.png').write_bytes(data)
        assert read(tmp_path / f'{number}.png').shape == (40, 20, 3)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'])
def test_pictures_of_other_modes_are_read(tmp_path, street, mode):
    path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    if mode == 'I;16':
        Image.fromarray(np.asarray(street.convert('L')).astype(np.uint16) * 257).save(path)
    else:
        street.convert(mode).save(path)
    assert read(path).shape == (128, 256, 3)
    assert read(path).std() > 10


def test_a_picture_that_is_a_program_is_not_read(tmp_path, street):
    street.save(tmp_path / 'a.eps')
    with pytest.raises(UnreadableError, match='is not a picture in a known format'):
        read(tmp_path / 'a.eps')


@pytest.mark.parametrize(
    ('image', 'error', 'message'),
    [
        (np.zeros((4, 4), np.uint8), TypeError, r'not uint8 of shape \(4, 4\)'),
        (np.zeros((3, 4, 4), np.uint8), TypeError, r'not uint8 of shape \(3, 4, 4\)'),
        (np.zeros((4, 4, 3)), TypeError, 'not float64'),
        (np.zeros((0, 4, 3), np.uint8), UnreadableError, 'no pixels'),
        (None, TypeError, 'not NoneType'),
        (b'abc', TypeError, 'not bytes'),
        ('/nowhere.png', UnreadableError, '/nowhere.png cannot be read'),
        (Image.new('F', (4, 4)), UnreadableError, 'mode F'),
    ],
)
def test_no_picture(segment, image, error, message):
    with pytest.raises(error, match=message) as raised:
        segment(image)
    assert '\n' not in str(raised.value)

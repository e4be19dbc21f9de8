"""The archive for the test server, and the faults that its check finds."""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from recipe.core import console
from recipe.evaluate import classes, predict, submission
from recipe.evaluate.pictures import Picture

SIZE = (32, 16)  # width, height


def picture_file(content, kind='PNG', **options):
    file = io.BytesIO()
    Image.fromarray(content).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """Three pictures and their predictions, written as the ranks write them."""
    found = []
    (tmp_path / 'predictions').mkdir()
    for number in range(3):
        name = f'berlin_{number:06d}_000019_leftImg8bit.png'
        path = tmp_path / name
        Image.fromarray(np.zeros((*SIZE[::-1], 3), np.uint8)).save(path)
        found.append(Picture(name, str(path), '', '', ''))
        train_ids = np.random.default_rng(number).integers(0, 19, SIZE[::-1]).astype(np.uint8)
        predict.write(tmp_path / 'predictions' / name, train_ids)
    return found


def test_the_archive_holds_label_ids_under_the_names_of_the_pictures(tmp_path, pictures):
    archive = tmp_path / 'sub.zip'
    submission.write(archive, pictures, tmp_path / 'predictions')
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == [picture.name for picture in pictures]
        for number, name in enumerate(packed.namelist()):
            with Image.open(io.BytesIO(packed.read(name))) as opened:
                assert (opened.format, opened.mode, opened.size) == ('PNG', 'L', SIZE)
                pixels = np.array(opened)
            train_ids = np.random.default_rng(number).integers(0, 19, SIZE[::-1])
            assert (pixels == np.array(classes.LABEL_IDS)[train_ids]).all()


GOOD = picture_file(np.full(SIZE[::-1], 7, np.uint8))
FAULTS = {
    'train ids': (lambda members: {**members, 'a.png': picture_file(np.full(SIZE[::-1], 2, np.uint8))}, 'holds 2'),
    'ignored': (lambda members: {**members, 'a.png': picture_file(np.full(SIZE[::-1], 255, np.uint8))}, 'holds 255'),
    'caravan': (lambda members: {**members, 'a.png': picture_file(np.full(SIZE[::-1], 29, np.uint8))}, 'holds 29'),
    'half size': (lambda members: {**members, 'a.png': picture_file(np.full((8, 16), 7, np.uint8))}, 'is 16x8 pixels'),
    'turned': (lambda members: {**members, 'a.png': picture_file(np.full(SIZE, 7, np.uint8))}, 'is 16x32 pixels'),
    'colours': (lambda members: {**members, 'a.png': picture_file(np.zeros((16, 32, 3), np.uint8))}, 'of mode RGB'),
    'wide': (lambda members: {**members, 'a.png': picture_file(np.full(SIZE[::-1], 7, np.uint16))}, 'of mode I'),
    'JPEG': (lambda members: {**members, 'a.png': picture_file(np.full(SIZE[::-1], 7, np.uint8), 'JPEG')}, 'is JPEG'),
    'empty': (lambda members: {**members, 'a.png': b''}, 'a.png is damaged'),
    'cut': (lambda members: {**members, 'a.png': GOOD[:50]}, 'a.png is damaged'),
    'one too few': (lambda members: {'a.png': GOOD}, 'lacks b.png; it should hold 2'),
    'one too many': (lambda members: {**members, 'c.png': GOOD}, 'should not, c.png'),
    'other name': (lambda members: {'a.png': GOOD, 'b_pred.png': GOOD}, 'lacks b.png'),
    'in a folder': (lambda members: {'a.png': GOOD, 'out/b.png': GOOD}, 'lacks b.png'),
}


def pack(path, members):
    with zipfile.ZipFile(path, 'w') as packed:
        for name, content in members.items():
            packed.writestr(name, content)


@pytest.mark.parametrize(('plant', 'said'), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(tmp_path, plant, said):
    archive, expected = str(tmp_path / 'sub.zip'), {'a.png': SIZE, 'b.png': SIZE}
    members = {'a.png': GOOD, 'b.png': GOOD}
    pack(archive, members)
    submission.check(archive, expected)
    pack(archive, plant(members))
    with pytest.raises(console.UserError, match=said):
        submission.check(archive, expected)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_member_that_is_there_twice_and_a_damaged_archive_are_found(tmp_path):
    archive = tmp_path / 'sub.zip'
    with zipfile.ZipFile(archive, 'w') as packed:
        for name in ('a.png', 'a.png', 'b.png'):
            packed.writestr(name, GOOD)
    with pytest.raises(console.UserError, match=r'holds twice a\.png'):
        submission.check(str(archive), {'a.png': SIZE, 'b.png': SIZE})
    pack(archive, {'a.png': GOOD})
    content = archive.read_bytes()
    for damaged in (content[:40], content.replace(GOOD[40:60], bytes(20))):
        archive.write_bytes(damaged)
        with pytest.raises(console.UserError, match='archive'):
            submission.check(str(archive), {'a.png': SIZE})


def test_nothing_is_left_of_an_archive_with_a_fault(tmp_path, pictures):
    before = sorted(tmp_path.iterdir())
    (tmp_path / 'predictions' / pictures[1].name).write_bytes(GOOD[:50])
    with pytest.raises(console.UserError, match=re.escape(f'{pictures[1].name} is damaged')):
        submission.write(tmp_path / 'sub.zip', pictures, tmp_path / 'predictions')
    assert sorted(tmp_path.iterdir()) == before

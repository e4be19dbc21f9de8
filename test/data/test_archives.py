"""Archives that no official one is like are refused before anything is unpacked, and named."""

from __future__ import annotations

import stat
import warnings
import zipfile
from pathlib import Path
from typing import Callable

import pytest

from cityscapes_sets import digests
from recipe.core import console
from recipe.data import layout
from recipe.data import prepare as cityscapes_prepare

IMAGE = 'leftImg8bit/train/town/town_000000_000019_leftImg8bit.png'
Spoiler = Callable[[zipfile.ZipFile], None]


def member(name: str, content: bytes = b'x', kind: int = 0, flags: int = 0) -> Spoiler:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = kind << 16
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # zipfile's own about a name that is there twice
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        archive.infolist()[-1].flag_bits |= flags

    return add


def unpack(folder: Path, *spoilers: Spoiler, name: str = layout.ZIPS[layout.IMAGES]) -> Path:
    """Make both zips, the first with more members, and unpack them; returns the root."""
    zips = folder / 'zips'
    zips.mkdir()
    for part, title in layout.ZIPS.items():
        with zipfile.ZipFile(zips / title, 'w') as archive:
            for spoil in (
                member(IMAGE.replace('leftImg8bit', part, 1), b'first'),
                *(spoilers if title == name else ()),
            ):
                spoil(archive)
    root = folder / 'root'
    cityscapes_prepare.unpack(root, zips, progress=False)
    return root


def test_a_good_archive_is_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    others = [member('README'), member('leftImg8bit/train/', b''), member('__MACOSX/leftImg8bit/._x')]
    root = unpack(tmp_path, *others, member('leftImg8bit/train/town/._x_leftImg8bit.png'))
    assert 'passed over 1 files whose names begin with a dot' in capsys.readouterr().out
    assert sorted(digests(root)) == ['gtFine/' + IMAGE.partition('/')[2], IMAGE]


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (member(IMAGE, b'second'), f"the member '{IMAGE}' twice"),
        (member(IMAGE.replace('/train', '/./train')), 'twice'),
        (member(IMAGE.replace('/train', '//train')), 'twice'),
        (member(IMAGE.upper()), 'differ in case only'),
        (member(IMAGE.replace('town_', 'Town_')), 'differ in case only'),
        (member(IMAGE + '/below.png'), 'as a file, and'),
        (member('leftImg8bit/train/town'), 'as a file, and'),
        (member('../out.png'), 'points outside'),
        (member('leftImg8bit/../../out.png'), 'points outside'),
        (member('/out.png'), 'points outside'),
        (member('C:/out.png'), 'points outside'),
        (member('leftImg8bit\\..\\out.png'), 'points outside'),
        (member('leftImg8bit/train/link', b'/etc', stat.S_IFLNK | 0o777), 'points outside'),
        (member('leftImg8bit/train/pipe', b'', stat.S_IFIFO | 0o666), 'no regular file'),
        (member('leftImg8bit/train/device', b'', stat.S_IFCHR | 0o666), 'no regular file'),
        (member('leftImg8bit/train/a.png', flags=1), 'is encrypted'),
        (member('leftImg8bit/train/a.png', bytes(65 << 20)), 'which unpacks to 65 MiB'),
        (member('gtCoarse/train/\x1b[2J.png', kind=stat.S_IFLNK), r'\x1b[2J.png'),
    ],
)
def test_an_odd_member_is_refused_and_named(tmp_path: Path, spoil: Spoiler, said: str) -> None:
    with pytest.raises(console.UserError) as refused:
        unpack(tmp_path, spoil)
    assert said in str(refused.value)
    assert str(tmp_path / 'zips' / layout.ZIPS[layout.IMAGES]) in str(refused.value)
    assert str(refused.value).isprintable()
    assert not list(tmp_path.rglob('*.png'))


def test_many_members_that_are_small_when_packed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(console.UserError, match=r'would unpack from 0 to 72 MiB'):
        unpack(tmp_path, *(member(f'leftImg8bit/train/{index}.png', bytes(12 << 20)) for index in range(6)))


@pytest.mark.parametrize('part', layout.ZIPS)
def test_a_folder_in_place_of_a_zip_is_named(tmp_path: Path, part: str) -> None:
    folder = tmp_path / layout.ZIPS[part]
    (folder / part).mkdir(parents=True)
    with pytest.raises(console.UserError, match='is a folder, not a zip') as refused:
        cityscapes_prepare.unpack(tmp_path, progress=False)
    assert str(folder) in str(refused.value)


def test_a_broken_link_in_place_of_a_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / layout.ZIPS[layout.IMAGES]).symlink_to('nowhere')
    with pytest.raises(console.UserError, match='broken symbolic link'):
        cityscapes_prepare.unpack(tmp_path, progress=False)


@pytest.mark.parametrize(
    'text',
    [
        '[' * 50_000,
        '{"imgWidth": 9, "imgHeight": 9, "objects": ' + '[' * 50_000,
        '{"imgWidth": 1e999, "imgHeight": 9, "objects": []}',
        '{"imgWidth": 99999999999999999999999, "imgHeight": 9, "objects": []}',
        '{"imgWidth": 100000, "imgHeight": 100000, "objects": []}',
        '{"imgWidth": -1, "imgHeight": 9, "objects": []}',
        '{"imgWidth": true, "imgHeight": 9, "objects": []}',
        '{"imgWidth": 9, "imgHeight": 9, "objects": 5}',
        '{"imgWidth": 9, "imgHeight": 9, "objects": [5]}',
        '{"imgWidth": 9, "imgHeight": 9, "objects": [{"label": "road", "polygon": [[1e999, 0], [5, 5], [0, 5]]}]}',
        '{"imgWidth": 9, "imgHeight": 9, "objects": [{"label": "road", "polygon": [["a", 0], [5, 5], [0, 5]]}]}',
        '{"imgWidth": 9, "imgHeight": 9, "objects": [{"label": "\\ud800", "polygon": [[0, 0], [5, 5], [0, 5]]}]}',
        '{"imgWidth": 9, "imgHeight": 9, "objects": [{"label": ["x"], "polygon": [[0, 0], [5, 5], [0, 5]]}]}',
    ],
)
def test_damaged_polygons_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / f'a{layout.POLYGON_SUFFIX}'
    path.write_text(text)
    converted = cityscapes_prepare.convert(str(path))
    assert converted.fault
    assert len(converted.fault) < 300
    assert '\n' not in converted.fault
    assert [item.name for item in tmp_path.iterdir()] == [path.name]

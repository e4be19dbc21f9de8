"""tools/cityscapes.py prepare: labels as upstream's converter makes them, restarts, and the official zips."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from cityscapes_sets import ROOT, digests, make_demo, make_prepared, run_tool, start_tool, wait_until
from recipe.core import console, files
from recipe.data import layout, parallel
from recipe.data import prepare as cityscapes_prepare
from running import processes_with

CONVERTER = ROOT / 'mmsegmentation' / 'tools' / 'dataset_converters' / 'cityscapes.py'
SUFFIX = layout.TRAIN_IDS_SUFFIX


def prepare(root: Path, **options: object) -> int:
    return cityscapes_prepare.prepare(root, workers=1, progress=False, **options)


def labels(root: Path) -> list:
    return sorted(path for path in root.rglob(f'*{SUFFIX}') if not path.name.startswith('.'))


@pytest.fixture
def upstream_converter() -> Path:
    if not CONVERTER.is_file():
        pytest.skip(f'no mmsegmentation checkout: {CONVERTER} is missing (bash tools/setup.sh makes it)')
    return CONVERTER


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return make_demo(tmp_path / 'set')


@pytest.fixture(scope='module')
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a demo set's files in zips of the official names."""
    base = tmp_path_factory.mktemp('zips')
    root = make_demo(base / 'set')
    folder = base / 'downloads'
    folder.mkdir()
    for part, name in layout.ZIPS.items():
        with zipfile.ZipFile(str(folder / name), 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('README', 'see the web page')
            for path in sorted((root / part).rglob('*')):
                archive.write(str(path), str(path.relative_to(root)))
    return folder


def copy_zips(zips: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in zips.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels_equal_those_of_upstreams_converter(demo: Path, tmp_path: Path, upstream_converter: Path) -> None:
    ours = make_demo(tmp_path / 'ours')
    prepare(ours)
    subprocess.run([sys.executable, str(upstream_converter), str(demo)], check=True, capture_output=True, timeout=600)
    assert len(labels(ours)) == 6
    for path in labels(ours):
        other = np.array(Image.open(demo / path.relative_to(ours)))
        assert np.array_equal(np.array(Image.open(path)), other)


def test_labels_hold_train_ids_and_nothing_else_is_written(demo: Path) -> None:
    before = digests(demo)
    assert prepare(demo) == 6
    after = digests(demo)
    assert before.items() <= after.items()
    assert {name for name in after if name not in before} == {
        name.replace(layout.POLYGON_SUFFIX, SUFFIX) for name in before if name.endswith(layout.POLYGON_SUFFIX)
    }
    for path in labels(demo):
        assert set(np.unique(np.array(Image.open(path)))) <= {*range(19), 255}


def test_two_workers_make_the_same_labels_as_one(demo: Path, tmp_path: Path) -> None:
    cityscapes_prepare.prepare(demo, workers=2, progress=False)
    assert digests(demo) == digests(make_prepared(tmp_path / 'one'))


def test_labels_that_exist_are_kept_unless_forced(demo: Path) -> None:
    prepare(demo)
    first = labels(demo)[0]
    good = first.read_bytes()
    first.write_bytes(b'mine')
    assert prepare(demo) == 0
    assert first.read_bytes() == b'mine'
    assert prepare(demo, force=True) == 6
    assert first.read_bytes() == good


def test_an_empty_label_is_made_again(demo: Path) -> None:
    prepare(demo)
    labels(demo)[0].write_bytes(b'')
    assert prepare(demo) == 1
    assert labels(demo)[0].stat().st_size > 0


@pytest.mark.parametrize('workers', [1, 2])
def test_a_killed_run_leaves_only_whole_labels_and_is_completed_by_the_next(tmp_path: Path, workers: int) -> None:
    root = make_demo(tmp_path / 'set')
    city = root / 'gtFine' / 'train' / 'large'
    city.mkdir()
    template = next(root.rglob('*_polygons.json'))
    annotation = json.dumps(dict(json.loads(template.read_text()), imgWidth=2048, imgHeight=1024))
    polygons = [city / f'large_{index:06d}_000019{layout.POLYGON_SUFFIX}' for index in range(20)]
    for path in polygons[:-1]:
        path.write_text(annotation)
    os.mkfifo(polygons[-1])  # whoever reads it waits, so that the work is not over before the kill
    mark = f'CITYSCAPES_TEST_MARK={tmp_path.name}'
    environment = dict(os.environ, CITYSCAPES_TEST_MARK=tmp_path.name)
    process = start_tool('prepare', '--data_path', root, '--num_workers', workers, env=environment)
    wait_until(lambda: labels(root), 'the first label')
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not processes_with(mark), 'the end of the workers')
    assert 0 < len(labels(root)) < 26
    for path in labels(root):
        Image.open(path).load()
    polygons[-1].unlink()
    polygons[-1].write_text(annotation)
    prepare(root)
    assert len(labels(root)) == 26
    for path in labels(root):
        Image.open(path).load()
    assert not list(root.rglob(f'{files.PARTIAL_PREFIX}*'))


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('{"imgWidth": 9, "imgHeight": 9, "objects": [{"label": "ufo", "polygon": [[0, 0], [5, 5], [0, 5]]}]}', 'ufo'),
        ('{"imgWidth": 9, "imgHeight": 9, "obj', 'not a whole polygon file'),
        ('{"imgWidth": 9}', 'imgHeight'),
        ('[]', 'not a whole polygon file'),
        ('', 'not a whole polygon file'),
    ],
)
@pytest.mark.parametrize('workers', [1, 2])
def test_a_bad_polygon_file_is_named_and_the_others_are_converted(
    demo: Path, capsys: pytest.CaptureFixture, text: str, said: str, workers: int
) -> None:
    bad = sorted(demo.rglob('*_polygons.json'))[2]
    bad.write_text(text)
    with pytest.raises(console.UserError, match='1 of 6 polygon files') as caught:
        cityscapes_prepare.prepare(demo, workers=workers, progress=False)
    assert str(bad) in str(caught.value)
    assert said in str(caught.value)
    assert str(bad) in capsys.readouterr().out
    assert len(labels(demo)) == 5
    assert not list(demo.rglob(f'{files.PARTIAL_PREFIX}*'))


@pytest.mark.parametrize('reaped', [True, False], ids=['gone', 'zombie'])
def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_kept(tmp_path: Path, reaped: bool) -> None:
    dead = subprocess.Popen([sys.executable, '-c', ''], stdout=subprocess.PIPE)
    dead.stdout.read()  # at its end
    if reaped:
        dead.wait()
    else:
        wait_until(lambda: ') Z ' in Path(f'/proc/{dead.pid}/stat').read_text(), 'the end of the process')
    target = tmp_path / 'a.png'
    with files.whole(target) as live:
        live.write_bytes(b'x')
        old = live.with_name(live.name.replace(f'.{os.getpid()}.', f'.{dead.pid}.'))
        old.write_bytes(b'y')
        files.sweep(tmp_path)
        assert live.exists()
        assert not old.exists()
    dead.wait()
    assert target.read_bytes() == b'x'
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / 'a.png'
    target.write_bytes(b'old')
    with pytest.raises(RuntimeError), files.whole(target) as partial:
        partial.write_bytes(b'half')
        raise RuntimeError
    assert target.read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_a_worker_that_dies_ends_the_run_with_one_line() -> None:
    with pytest.raises(console.UserError, match='jobs: a worker process was killed'):
        parallel.run(os._exit, [9, 9], 'jobs', workers=2, progress=False)


def test_a_job_that_fails_raises_its_error_and_no_thread_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are stopped while the others' jobs wait; Python's pool must not print a traceback over that."""
    of_threads: list = []
    monkeypatch.setattr(threading, 'excepthook', of_threads.append)
    for _ in range(3):
        with pytest.raises(ValueError, match='math domain error'):
            parallel.run(math.sqrt, [-1, *range(2000)], 'jobs', workers=2, progress=False)
    assert not of_threads


def test_results_come_in_order_from_several_processes(capsys: pytest.CaptureFixture) -> None:
    assert parallel.run(abs, list(range(-50, 0)), 'jobs', workers=2) == list(range(50, 0, -1))
    assert 'jobs: 50/50' in capsys.readouterr().out


# --- zips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('inside', [True, False], ids=['zips in the root', 'zips elsewhere'])
def test_the_official_zips_are_unpacked_and_prepared(zips: Path, tmp_path: Path, inside: bool) -> None:
    if inside:
        root = copy_zips(zips, tmp_path / 'root')
        assert prepare(root) == 6
    else:
        root = tmp_path / 'new' / 'root'
        assert prepare(root, zips=zips) == 6
    expected = make_prepared(tmp_path / 'expected')
    for part in layout.ZIPS:
        assert digests(root / part) == digests(expected / part)
    assert not (root / 'README').exists()


def test_members_that_are_whole_are_not_unpacked_again_and_short_ones_are(zips: Path, tmp_path: Path) -> None:
    root = tmp_path / 'root'
    prepare(root, zips=zips)
    expected = digests(root)
    first, second, third, *_ = sorted(root.rglob('*_leftImg8bit.png'))
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    kept = third.stat().st_mtime_ns, third.stat().st_ino
    prepare(root, zips=zips)
    assert digests(root) == expected
    assert (third.stat().st_mtime_ns, third.stat().st_ino) == kept


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    with zipfile.ZipFile(str(path)) as archive:
        member = next(item for item in archive.infolist() if item.filename.endswith('.png'))
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + 40] ^= 0xFF
    path.write_bytes(bytes(data))


def not_a_zip(path: Path) -> None:
    path.write_bytes(b'<html>please log in</html>')


def another_archive(path: Path) -> None:
    with zipfile.ZipFile(str(path), 'w') as archive:
        archive.writestr('gtCoarse/train/x.png', 'x')


def with_member(name: str, mode: int = 0) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        with zipfile.ZipFile(str(path), 'a') as archive:
            archive.writestr(info, '/etc')

    return spoil


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (cut_short, 'damaged or not downloaded to its end'),
        (flip_a_byte, 'damaged or not downloaded to its end'),
        (not_a_zip, 'damaged or not downloaded to its end'),
        (another_archive, 'holds no leftImg8bit/'),
        (with_member('../outside.png'), 'points outside'),
        (with_member('leftImg8bit/../../outside.png'), 'points outside'),
        (with_member('/outside.png'), 'points outside'),
        (with_member('leftImg8bit/train', stat.S_IFLNK | 0o777), 'points outside'),
    ],
    ids=['cut short', 'flipped byte', 'no zip', 'another', 'parent', 'inner parent', 'absolute', 'link'],
)
def test_a_bad_zip_is_one_clear_line(zips: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    downloads = copy_zips(zips, tmp_path / 'downloads')
    bad = downloads / layout.ZIPS['leftImg8bit']
    spoil(bad)
    result = run_tool('prepare', '--data_path', tmp_path / 'root', '--zips', downloads)
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
    assert said in result.stderr
    assert str(bad) in result.stderr
    assert not list(tmp_path.rglob('outside.png'))
    assert not list(tmp_path.rglob(f'{files.PARTIAL_PREFIX}*'))
    for path in (tmp_path / 'root').rglob('*.png'):
        Image.open(path).load()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (('--data_path', '{tmp}/none'), 'no such folder'),
        (('--data_path', '{tmp}'), 'no gtFine/'),
        (('--data_path', '{tmp}/root', '--zips', '{tmp}/none'), 'no such folder'),
        (('--data_path', '{tmp}/root', '--zips', '{tmp}'), 'no leftImg8bit_trainvaltest.zip'),
        (('--data_path', '{tmp}/empty'), 'no *_gtFine_polygons.json'),
    ],
)
def test_nothing_to_prepare_is_one_clear_line(tmp_path: Path, arguments: tuple, said: str) -> None:
    (tmp_path / 'empty' / 'gtFine' / 'train').mkdir(parents=True)
    result = run_tool('prepare', *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
    assert said in result.stderr


def test_too_small_a_disk_is_refused_before_unpacking(
    zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one thing here that no test can bring about: a full disk.
    monkeypatch.setattr(cityscapes_prepare.shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=1))
    with pytest.raises(console.UserError, match=r'needs .* GB in .*, where 0\.0 GB are free'):
        prepare(tmp_path / 'root', zips=zips)
    assert digests(tmp_path / 'root') == {}

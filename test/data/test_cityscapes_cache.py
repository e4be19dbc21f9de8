"""tools/cityscapes.py cache: what it holds, interruption, staleness, room; and loading from it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from cityscapes_sets import TOOL, make_demo, run_tool
from recipe.core import console, files
from recipe.data import cache, layout, prepare

pytest.importorskip('recipe.data.transforms.decoded_cache', reason='no patched mmseg; run bash tools/setup.sh')


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_demo(tmp_path_factory.mktemp('cache') / 'set')
    prepare.prepare(root, progress=False)
    return root


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(str(data), str(tmp_path / 'set')))


def pictures(root: Path) -> list:
    """All pictures and labels that training reads."""
    return sorted([*root.rglob(f'*{layout.IMAGE_SUFFIX}'), *root.rglob(f'*{layout.TRAIN_IDS_SUFFIX}')])


def cache_of(root: Path, folder: Path):
    from recipe.data.transforms.decoded_cache import DecodedCache

    return DecodedCache(str(folder), str(root))


def build(root: Path, folder: Path):
    return cache.build(root, folder, workers=1, progress=False)


@pytest.mark.trains
def test_it_holds_what_opencv_decodes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    built = build(root, tmp_path / 'decoded')
    files = pictures(root)
    assert (built.pictures, built.made) == (len(files), len(files))
    for path in files:
        pixels = cache_of(root, tmp_path / 'decoded').get(str(path))
        flag = cv2.IMREAD_COLOR if path.name.endswith(layout.IMAGE_SUFFIX) else cv2.IMREAD_GRAYSCALE
        np.testing.assert_array_equal(pixels, cv2.imread(str(path), flag))
        assert not pixels.flags.writeable
    said = capsys.readouterr().out
    assert f'{len(files)} of {len(files)} pictures to decode' in said and 'GB free' in said
    cache.require_fresh(root, tmp_path / 'decoded')


def test_a_second_build_makes_only_what_changed(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'decoded'
    build(root, folder)
    assert build(root, folder).made == 0
    image, label = pictures(root)[-1], pictures(root)[0]
    cv2.imwrite(str(image), 255 - cv2.imread(str(image)))
    os.utime(str(label), ns=(1, 1))
    with pytest.raises(console.UserError, match=r'is stale, 2 of \d+ pictures .*cityscapes.py cache'):
        cache.require_fresh(root, folder)
    assert build(root, folder).made == 2
    np.testing.assert_array_equal(cache_of(root, folder).get(str(image)), cv2.imread(str(image)))


def test_pictures_that_are_still_to_be_drawn_are_in_no_cache(root: Path, tmp_path: Path) -> None:
    build(root, tmp_path / 'decoded')
    with pytest.raises(console.UserError, match=r'holds no pictures yet; train without it first, then run python'):
        cache.require_fresh(tmp_path / 'demo', tmp_path / 'decoded')


@pytest.mark.parametrize('damage', ['short', 'header', 'missing'])
def test_a_damaged_entry_is_noticed_and_made_again(root: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / 'decoded'
    build(root, folder)
    entry = Path(cache_of(root, folder).entry_path(str(pictures(root)[0])))
    if damage == 'missing':
        entry.unlink()
    elif damage == 'short':
        os.truncate(str(entry), entry.stat().st_size - 1)
    else:
        entry.write_bytes(b'x' * 64 + entry.read_bytes()[64:])
    with pytest.raises(console.UserError, match=r'1 of \d+ pictures'):
        cache.require_fresh(root, folder)
    assert build(root, folder).made == 1


def test_wrong_pixels_are_found_by_the_spot_check(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'decoded'
    build(root, folder)
    monkeypatch.setattr(cache, 'SPOT_CHECKS', 1000)
    entry = Path(cache_of(root, folder).entry_path(str(pictures(root)[0])))
    content = bytearray(entry.read_bytes())
    content[-1] ^= 255
    entry.write_bytes(content)
    with pytest.raises(console.UserError, match='does not hold the pixels'):
        build(root, folder)


def test_too_little_room_stops_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda _: _Free)
    with pytest.raises(console.UserError, match=r'need .* GB in .*, where 0.00 GB are free'):
        build(root, tmp_path / 'decoded')
    assert not (tmp_path / 'decoded').exists()


class _Free:
    free = 1000


def test_a_killed_build_goes_on(root: Path, tmp_path: Path) -> None:
    """Killed while it writes, it leaves no entry that is not whole, and the next build completes it."""
    folder, read, write = tmp_path / 'decoded', *os.pipe()
    child = os.fork()
    if not child:
        from recipe.data.transforms import decoded_cache

        whole = decoded_cache.write_entry

        def half(path: str, *rest: object) -> None:
            if len(list(folder.rglob('*.pixels'))) >= 3:
                Path(path).write_bytes(b'half')
                os.write(write, b'.')
                time.sleep(60)
            whole(path, *rest)

        decoded_cache.write_entry = half
        build(root, folder)
        os._exit(0)
    assert os.read(read, 1) == b'.'
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    paths = pictures(root)
    good = [path for path in paths if cache_of(root, folder).fault(str(path)) is None]
    assert len(good) == 3
    assert build(root, folder).made == len(paths) - 3
    assert not list(folder.rglob(f'{files.PARTIAL_PREFIX}*'))


def test_bad_input_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    done = run_tool('cache', '--data_path', str(tmp_path / 'empty'))
    assert done.returncode == 1 and 'no pictures' in done.stderr and len(done.stderr.splitlines()) == 1
    broken = pictures(root)[-1]
    broken.write_bytes(b'no picture')
    with pytest.raises(console.UserError, match=f'{broken.name}.*verify'):
        build(root, tmp_path / 'decoded')


def test_training_pipeline_from_the_cache(root: Path, tmp_path: Path) -> None:
    """Same samples from the cache; a stale entry is passed over with a warning, in favour of the file."""
    from mmengine.registry import init_default_scope

    from recipe.data.transforms.fast_loading import LoadResizedCrop

    init_default_scope('mmseg')
    folder = tmp_path / 'decoded'
    build(root, folder)
    images = sorted(root.rglob(f'train/*/*{layout.IMAGE_SUFFIX}'))
    labels = [
        str(path).replace(layout.IMAGES, layout.LABELS, 1).replace(layout.IMAGE_SUFFIX, layout.TRAIN_IDS_SUFFIX)
        for path in images
    ]
    height, width = cv2.imread(str(images[0])).shape[:2]
    settings = dict(
        resize=dict(type='RandomChoiceResize', scales=[height, 3 * height // 2], resize_type='ResizeShortestEdge'),
        crop=dict(type='RandomCrop', crop_size=(height // 2, width // 2), cat_max_ratio=0.75),
    )
    settings['resize']['max_size'] = 10_000
    cached = dict(folder=str(folder), data_root=str(root))
    cv2.imwrite(str(images[0]), 255 - cv2.imread(str(images[0])))
    for seed, (image, label) in enumerate(zip(images, labels)):
        samples = []
        for extra in ({}, {'decoded_cache': cached}):
            np.random.seed(seed)
            given = dict(img_path=str(image), seg_map_path=label, seg_fields=[], reduce_zero_label=False)
            samples.append(LoadResizedCrop(**settings, **extra)(given))
        for key in ('img', 'gt_seg_map'):
            np.testing.assert_array_equal(samples[0][key], samples[1][key])


@pytest.mark.trains
def test_a_disk_that_runs_full_amid_the_build(root: Path, tmp_path: Path) -> None:
    """No room for more files, while there are bytes enough; with room, the same command goes on."""
    place = tmp_path / 'disk'
    place.mkdir()
    script = """
mount -t tmpfs -o size=64m,nr_inodes=9 none "$1" || exit 90
place=$1
shift
"$@" >"$place.out" 2>"$place.err"
echo $? >"$place.status"
find "$place" -type f | sort >"$place.kept"
find "$place" -type f -exec touch -h -d 2020-01-01 {} +
mount -o remount,nr_inodes=1000 "$place" && "$@"
status=$?
find "$place" -type f ! -newermt 2020-01-02 | sort >"$place.untouched"
exit $status
"""
    tool = [sys.executable, str(TOOL), 'cache', f'--data_path={root}', f'--to={place}/decoded', '--num_workers=2']
    done = subprocess.run(
        ['unshare', '-rm', 'bash', '-c', script, 'bash', str(place), *tool], capture_output=True, text=True, check=False
    )
    if not (tmp_path / 'disk.status').exists():
        pytest.skip(f'no file system can be mounted here: {done.stderr.strip()}')
    error = (tmp_path / 'disk.err').read_text()
    assert (tmp_path / 'disk.status').read_text().strip() == '1', error
    assert [line for line in error.splitlines() if line.startswith('error: No space left on device')], error
    assert 'Traceback' not in error
    assert done.returncode == 0, done.stderr
    kept = (tmp_path / 'disk.kept').read_text().split('\n')
    assert len(kept) > 1
    assert (tmp_path / 'disk.untouched').read_text().split('\n') == kept, 'what was whole was made again'

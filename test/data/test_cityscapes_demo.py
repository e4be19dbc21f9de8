"""tools/cityscapes.py demo: layout, reproducibility, reuse, and folders it must not touch."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from cityscapes_sets import WANTED, digests, make_demo, run_tool, start_tool, wait_until
from recipe.core import console, files
from recipe.data import demo, layout
from running import processes_with


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp('demo') / 'set')


def test_layout_is_that_of_cityscapes(made: Path) -> None:
    for split, count in (('train', WANTED.train), ('val', WANTED.val)):
        images = layout.stems(made / 'leftImg8bit' / split, '_leftImg8bit.png')
        assert len(images) == count
        for suffix in ('_gtFine_polygons.json', '_gtFine_labelIds.png'):
            assert list(layout.stems(made / 'gtFine' / split, suffix)) == list(images)
        for stem in images:
            city, name = stem.split('/')
            assert name.split('_')[0] == city
            assert [len(part) for part in name.split('_')[1:]] == [6, 6]
    train, val = ({path.parent.name for path in made.glob(f'leftImg8bit/{split}/*/*')} for split in ('train', 'val'))
    assert train.isdisjoint(val)


def test_label_ids_are_what_cityscapesscripts_makes_of_the_polygons(made: Path, tmp_path: Path) -> None:
    for polygons in made.rglob('*_polygons.json'):
        again = tmp_path / 'again.png'
        json2labelImg(str(polygons), str(again), 'ids')
        stored = Path(str(polygons).replace('_polygons.json', '_labelIds.png'))
        assert np.array_equal(np.array(Image.open(again)), np.array(Image.open(stored)))
        picture = Image.open(
            str(stored).replace('gtFine', 'leftImg8bit').replace('_leftImg8bit_labelIds', '_leftImg8bit')
        )
        assert picture.size == Image.open(stored).size == (WANTED.width, WANTED.height)
        assert picture.mode == 'RGB'


@pytest.mark.trains
def test_the_files_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    demo.demo(tmp_path / 'two', WANTED, workers=2, progress=False)
    assert digests(tmp_path / 'two') == digests(made)


def test_a_scene_does_not_depend_on_how_many_there_are(made: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / 'fewer', dataclasses.replace(WANTED, train=2, val=1))
    fewer, more = digests(tmp_path / 'fewer'), digests(made)
    fewer.pop('demo.json')
    assert fewer.items() <= more.items()


def test_a_second_call_makes_nothing(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob('*')}
    assert demo.demo(made, WANTED, progress=False) == 0
    assert {path: path.stat().st_mtime_ns for path in made.rglob('*')} == before


@pytest.mark.parametrize('suffix', ['_leftImg8bit.png', '_polygons.json', '_labelIds.png'])
def test_what_is_missing_is_made_again(tmp_path: Path, made: Path, suffix: str) -> None:
    root = make_demo(tmp_path / 'set')
    next(root.rglob(f'*{suffix}')).unlink()
    assert demo.demo(root, WANTED, workers=1, progress=False) == 1
    assert digests(root) == digests(made)


@pytest.mark.parametrize('change', [{'train': 5}, {'val': 3}, {'width': 256}, {'height': 96}, {'seed': 2}])
def test_another_demo_set_is_refused_and_left_alone(made: Path, change: dict) -> None:
    before = digests(made)
    with pytest.raises(console.UserError, match=f'holds another demo set .*{next(iter(change))}'):
        demo.demo(made, dataclasses.replace(WANTED, **change), progress=False)
    assert digests(made) == before


@pytest.mark.parametrize(
    'name', ['leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png', 'notes.txt', '.git/x']
)
def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    with pytest.raises(console.UserError, match='no demo made'):
        demo.demo(tmp_path, WANTED, progress=False)
    assert digests(tmp_path) == {name: digests(tmp_path)[name]}


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'demo.json').write_text('{')
    with pytest.raises(console.UserError, match=r'demo\.json is damaged'):
        demo.demo(tmp_path, WANTED, progress=False)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(console.UserError, match='is a file'):
        demo.demo(tmp_path / 'file', WANTED, progress=False)


@pytest.mark.parametrize(
    'change', [{'train': 0}, {'val': 0}, {'width': 63}, {'height': 9000}, {'seed': -1}, {'train': 1_000_000}]
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, change: dict) -> None:
    with pytest.raises(console.UserError, match=f'--{next(iter(change))}='):
        demo.demo(tmp_path / 'set', dataclasses.replace(WANTED, **change), progress=False)
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize('workers', [1, 2])
def test_a_killed_run_leaves_only_whole_files_and_is_completed_by_the_next(
    tmp_path: Path, made: Path, workers: int
) -> None:
    root, mark = tmp_path / 'set', f'CITYSCAPES_TEST_MARK={tmp_path.name}'
    options = [f'--{key}={value}' for key, value in dataclasses.asdict(WANTED).items()]
    environment = dict(os.environ, CITYSCAPES_TEST_MARK=tmp_path.name)
    process = start_tool('demo', '--data_path', root, '--num_workers', workers, *options, env=environment)
    wait_until(lambda: list(root.glob('leftImg8bit/*/*/[!.]*.png')), 'the first scene')
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # Its workers end as well, though nobody told them.
    wait_until(lambda: not processes_with(mark), 'the end of the workers')
    whole = digests(made)
    for name, digest in digests(root).items():
        assert Path(name).name.startswith(files.PARTIAL_PREFIX) or digest == whole[name]
    demo.demo(root, WANTED, workers=1, progress=False)
    assert digests(root) == whole


def test_the_command_makes_reuses_and_refuses(tmp_path: Path) -> None:
    arguments = ('demo', '--data_path', tmp_path / 'd', '--train=1', '--val', '1', '--width=64', '--height=64')
    first, second = run_tool(*arguments), run_tool(*arguments)
    assert first.returncode == second.returncode == 0
    assert '2 demo scenes, 2 of them made now' in first.stdout
    assert '2 demo scenes, 0 of them made now' in second.stdout
    described = json.loads((tmp_path / 'd' / 'demo.json').read_text())
    assert (described['train'], described['val'], described['width'], described['height']) == (1, 1, 64, 64)
    refused = run_tool(*arguments, '--seed', '7')
    assert refused.returncode == 1
    assert refused.stderr.startswith('error: ')
    assert refused.stderr.count('\n') == 1


@pytest.mark.parametrize('arguments', [('--train=x',), ('--widht=64',), ('--width',), ('--num_workers=0',)])
def test_bad_options_are_usage_errors(tmp_path: Path, arguments: tuple) -> None:
    result = run_tool('demo', '--data_path', tmp_path / 'd', *arguments)
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'd').exists()

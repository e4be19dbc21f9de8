"""Paths are text: none runs, none is cut, none becomes something else on its way from an option to the config."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.core import console, paths
from recipe.launch import options

ODD = [
    'two words',
    "it's",
    '"quoted"',
    'new\nline',
    'tab\tbell\a',
    'ünï 中文 🚗',
    '%s {0} $HOME `touch ran` $(touch ran); touch ran & | > ran',
    '[bold]*?',
    'back\\slash\\',
    '-lead',
    '#hash',
    '\u2028',
    '\'\'\'"""',
    '~',
    '!!',
]
PATHS = ('data_path', 'work_dir', 'config', 'pretrained')


@pytest.mark.parametrize('name', ODD)
def test_a_folder_of_any_name_reaches_the_checks_as_it_is(tmp_path, name):
    """Through bash's front door, up to where something would be installed."""
    data = tmp_path / name
    for part in ('leftImg8bit', 'gtFine'):
        (data / part).mkdir(parents=True)
    (data / 'c.py').write_text('x = 1')
    argv = [
        f'--data_path={data}',
        '--work_dir',
        str(data / 'run'),
        f'--config={data}/c.py',
        '--pretrained',
        str(data / 'c.py'),
    ]
    command = ['bash', '-c', 'exec "$0" "$@"', sys.executable, str(paths.TOOLS / 'launch.py'), 'check', 'full', *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=str(tmp_path), check=False)
    assert (done.returncode, done.stderr) == (0, '')
    read = options.read('full', argv)
    assert (read.data_path, read.work_dir) == (str(data), str(data / 'run'))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    # and the same names, one letter off, are refused in one line
    bad = subprocess.run(
        [*command, f'--data_path={data}x'], capture_output=True, text=True, cwd=str(tmp_path), check=False
    )
    assert bad.returncode == console.EXIT_FAILURE
    assert bad.stderr.startswith('error: --data_path: ') and 'x: no such folder; ' in bad.stderr
    assert bad.stderr.count('\n') == 1


@pytest.mark.parametrize('option', PATHS)
def test_a_relative_path_that_begins_with_a_dash_is_written_with_its_folder(option):
    with pytest.raises(console.UserError, match=r'looks like an option \(a file: \./-x\)'):
        options.parse('full', [f'--{option}=-x'])
    assert getattr(options.parse('full', [f'--{option}=./-x']), option) == './-x'


@pytest.mark.parametrize('text', ['/x/{{ fileDirname }}', '/x/{{$HOME:1}}', os.fsdecode(b'/x/\xff')])
@pytest.mark.parametrize('option', PATHS)
def test_what_a_config_file_cannot_hold_is_refused(option, text):
    with pytest.raises(console.UserError, match='rename it') as caught:
        options.parse('full', [f'--{option}={text}'])
    assert caught.value.status == console.EXIT_USAGE


texts = st.text(min_size=1, max_size=30).filter(lambda text: '\0' not in text)


@settings(deadline=None, max_examples=50)
@given(name=texts)
def test_any_data_root_reads_back_from_the_config_that_is_written(name, tmp_path_factory):
    run_config = pytest.importorskip('recipe.engine.config')
    config_module = pytest.importorskip('mmengine.config')
    try:
        data_root = options.parse('full', ['--demo', f'--data_path=/{name}']).data_path
    except console.UserError:
        assert '{{' in name
        return
    # As small as may be: formatting the recipe's own takes seconds.
    config = config_module.Config({'train_dataloader': {'dataset': {'data_root': data_root}}, 'x': 1})
    path = tmp_path_factory.mktemp('run') / 'config.py'
    config.dump(str(path))
    assert config_module.Config.fromfile(str(path)).train_dataloader.dataset.data_root == data_root
    assert run_config.differences(path, config) == []

"""Modules on PYTHONPATH or in the current folder that are not those of the recipe: one line, or no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import imported_packages, paths, refuse_hidden_stdlib

BROKEN = 'raise RuntimeError("not meant to be imported")\n'
OUR_NAMES = ('console', 'options', 'progress', 'watchdog', 'network', 'metrics', 'processes', 'run_lock')


def package(folder, name):
    (folder / name).mkdir(parents=True)
    (folder / name / '__init__.py').write_text(BROKEN)
    return folder / name / '__init__.py'


def call(tool, *argv, path, cwd):
    command = [sys.executable, str(paths.TOOLS / f'{tool}.py'), *map(str, argv)]
    env = {**os.environ, 'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1'}
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


def refused(done):
    assert done.returncode == 1 and done.stdout.count('Traceback') == 0, done
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith('warning: ')]
    assert line.startswith('error: '), line
    return line


DOORS = {
    'launch': ('run', 'full', '--demo', '--nproc=1', '--device=cpu'),
    'replay_step': ('dump.pth',),
    'bench': ('step',),
    'cityscapes': ('cache', '--data_path=.'),
}


@pytest.mark.parametrize('door', ['launch', 'replay_step', 'bench', 'cityscapes'])
@pytest.mark.parametrize('name', ['mmseg', 'mmengine'])
def test_another_package_is_named_before_it_is_imported(tmp_path, door, name):
    init = package(tmp_path / 'foreign', name)
    line = refused(call(door, *DOORS[door], path=str(tmp_path / 'foreign'), cwd=tmp_path))
    assert f'package {name}: {name} is imported from {init.parent}' in line
    assert 'off PYTHONPATH' in line


@pytest.mark.parametrize(('name', 'door'), [('torch', 'launch'), ('numpy', 'metrics'), ('matplotlib', 'metrics')])
def test_a_stray_module_with_the_name_of_a_package_is_named(tmp_path, name, door):
    stray = tmp_path / f'{name}.py'
    stray.write_text(BROKEN)
    line = refused(call(door, *DOORS.get(door, [tmp_path]), path=str(tmp_path), cwd='/'))
    assert f'{name} is imported from {stray}, which hides ' in line


def test_the_doctor_lists_it_and_imports_nothing(tmp_path):
    (tmp_path / 'torch.py').write_text(BROKEN)
    done = call('doctor', '--demo', '--nproc=1', path=str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1 and not done.stderr, done
    assert f'torch is imported from {tmp_path}/torch.py' in done.stdout


def test_a_folder_of_installed_packages_may_be_meant(tmp_path):
    for name in ('numpy', 'mmengine'):
        package(tmp_path, name)
    (tmp_path / 'numpy-1.0.dist-info').mkdir()
    found = imported_packages.hiding(['numpy', 'mmengine', 'rich'], [str(tmp_path), *sys.path])
    assert [one.is_fatal for one in found] == [False, True]
    assert imported_packages.hiding(['numpy', 'mmengine'], sys.path) == []


@pytest.mark.parametrize('name', ['json', 'random', 'typing', 'dataclasses', 'argparse'])
@pytest.mark.parametrize('place', ['PYTHONPATH', 'current folder'])
def test_a_stray_module_that_hides_the_standard_library_is_named(tmp_path, name, place):
    """An empty entry of PYTHONPATH, as a shell's ``:$PYTHONPATH`` leaves one, is the current folder."""
    stray = tmp_path / f'{name}.py'
    stray.write_text(BROKEN)
    path, cwd = (str(tmp_path), '/') if place == 'PYTHONPATH' else (':/nowhere', tmp_path)
    for tool, *argv in [('launch', 'check', 'full', '--demo'), ('metrics', tmp_path)]:
        line = refused(call(tool, *argv, path=path, cwd=cwd))
        assert f'error: {stray} hides {name} of the standard library; take {tmp_path} off PYTHONPATH' in line


def test_modules_with_names_of_ours_do_no_harm(tmp_path):
    for name in OUR_NAMES:
        (tmp_path / f'{name}.py').write_text(BROKEN)
    for path in (str(tmp_path), ':'):
        done = call('launch', 'check', 'full', '--demo', path=path, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, '')


def test_what_hides_nothing_is_left_alone(tmp_path):
    package(tmp_path, 'test')  # a user's own
    for name in ('sitecustomize.py', 'my_hooks.py', 'json.txt'):
        (tmp_path / name).touch()
    (tmp_path / 'random').mkdir()  # no package, so Python passes over it
    root, stdlib = str(paths.ROOT), str(Path(os.__file__).parent)
    assert refuse_hidden_stdlib.hidden([root, str(tmp_path), stdlib], root) is None
    (tmp_path / 'json.py').touch()
    assert refuse_hidden_stdlib.hidden([root, stdlib, str(tmp_path)], root) is None
    assert refuse_hidden_stdlib.hidden([str(tmp_path), stdlib], root) == (str(tmp_path / 'json.py'), 'json')

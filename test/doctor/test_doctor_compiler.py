"""Whether the doctor knows a machine on which torch.compile could not turn graphs into code."""

from __future__ import annotations

import os

import pytest

from recipe.doctor import compiler
from recipe.doctor.finding import FAILURE, OK
from recipe.doctor.subject import Subject
from recipe.launch import checks, options

GRAPHS = {'custom_hooks': [{'type': 'LoaderPaceHook'}, {'type': 'CompileHook'}]}


@pytest.fixture
def program(tmp_path):
    """Make a program of a name in a folder that is all of PATH."""

    def make(name):
        path = tmp_path / name
        path.write_text('#!/bin/sh\n')
        path.chmod(0o755)
        return path

    return make


def findings(tmp_path, device='cpu', config=GRAPHS, **env):
    asked = options.settle(options.parse('full', ['--demo', f'--device={device}']))
    return compiler.examine(Subject(asked, device, 1, config, env={'PATH': str(tmp_path), **env}))


@pytest.mark.parametrize(('device', 'name'), [('cpu', 'g++'), ('cuda', 'gcc')])
def test_a_missing_compiler_ends_the_training_before_it_starts(tmp_path, device, name):
    (found,) = findings(tmp_path, device)
    assert found.level == FAILURE
    assert f'there is no {name}' in found.found
    assert f'apt-get install {name}' in found.fix and '--compile=1' in found.fix


def test_one_that_is_there_is_named(tmp_path, program):
    program('g++')
    (found,) = findings(tmp_path)
    assert (found.level, found.found) == (OK, str(tmp_path / 'g++'))


def test_the_environment_s_choice_counts_alone(tmp_path, program):
    program('g++')
    program('wrapper')
    (found,) = findings(tmp_path, CXX='nothing -O2')
    assert found.level == FAILURE and 'CXX=nothing -O2 is no program' in found.found
    (found,) = findings(tmp_path, CXX="g++ '")
    assert found.level == OK
    (found,) = findings(tmp_path, CXX='wrapper g++')
    assert (found.level, found.found) == (OK, str(tmp_path / 'wrapper'))


@pytest.mark.parametrize(('installed', 'level'), [(None, FAILURE), (object(), OK)])
def test_a_gpu_needs_triton_too(tmp_path, program, monkeypatch, installed, level):
    program('clang')
    monkeypatch.setattr(compiler.importlib.util, 'find_spec', lambda name: installed)
    (found,) = findings(tmp_path, 'cuda')
    assert found.level == level
    assert ('package triton' in found.found) == (level == FAILURE)


@pytest.mark.parametrize('config', [None, {}, {'custom_hooks': [{'type': 'CompileHook', 'backend': 'aot_eager'}]}])
def test_trainings_that_compile_nothing_need_none(tmp_path, config):
    assert findings(tmp_path, config=config) == []


def test_the_launchers_ask_for_it(tmp_path):
    asked = options.settle(options.parse('full', ['--demo', '--device=cpu']))
    env = {**os.environ, 'CXX': str(tmp_path / 'gone')}
    said = checks.machine(Subject(asked, 'cpu', 1, GRAPHS, env=env))
    assert [found.level for found in said if found.check == 'compiler'] == [FAILURE]

"""Which stack tools/setup.sh picks, on machines told apart by real files and programs on PATH."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from recipe.core import console
from recipe.setup import cli
from recipe.setup import stack as setup_stack
from recipe.setup.stack import STACKS, Python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty machine: a file system and a PATH to put things into."""
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'dev').mkdir()
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    for name in ('ASCEND_HOME_PATH', 'ASCEND_TOOLKIT_HOME'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def program(machine, name, script):
    path = machine / 'bin' / name
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)


def python(torch=None, version=(3, 10, 1)):
    return Python('/usr/bin/python3', version, torch, ())


def picked(machine, which=None):
    stack, why = setup_stack.pick(which or python(), machine)
    return stack.name, why


def test_an_empty_machine_is_a_cpu(machine):
    assert picked(machine)[0] == 'cpu'


@pytest.mark.parametrize('sign', ['dev/davinci0', 'usr/local/Ascend/ascend-toolkit/version', 'bin/npu-smi'])
def test_each_sign_of_an_npu_is_seen_and_told(machine, sign):
    (machine / sign).parent.mkdir(parents=True, exist_ok=True)
    program(machine, 'npu-smi', '') if sign == 'bin/npu-smi' else (machine / sign).touch()
    name, why = picked(machine)
    assert name == 'npu-2.1'
    assert 'Ascend NPU' in why


def test_cann_elsewhere_is_found_by_its_variable(machine, monkeypatch):
    (machine / 'opt/cann').mkdir(parents=True)
    monkeypatch.setenv('ASCEND_HOME_PATH', '/opt/cann')
    assert picked(machine)[0] == 'npu-2.1'


def test_the_manager_device_alone_is_no_npu(machine):
    (machine / 'dev/davinci_manager').touch()
    assert picked(machine)[0] == 'cpu'


@pytest.mark.parametrize(
    ('torch', 'name'),
    [
        (None, 'npu-2.1'),
        ('2.1.0', 'npu-2.1'),
        ('2.1.0+cpu', 'npu-2.1'),
        ('2.6.0', 'npu-2.7'),
        ('2.7.1', 'npu-2.7'),
        ('2.8.0', 'npu-2.8'),
    ],
)
def test_the_installed_torch_decides_between_the_npu_stacks(machine, torch, name):
    (machine / 'dev/davinci3').touch()
    found, why = picked(machine, python(torch))
    assert found == name
    assert torch is None or torch in why


def test_an_npu_comes_before_a_gpu(machine):
    (machine / 'dev/davinci0').touch()
    program(machine, 'nvidia-smi', 'echo "CUDA Version: 12.4"')
    assert picked(machine)[0] == 'npu-2.1'


def test_a_working_driver_is_cuda_and_limits_torch(machine):
    program(machine, 'nvidia-smi', 'echo "| Driver Version: 550.1   CUDA Version: 12.4  |"')
    name, why = picked(machine)
    assert name == 'cuda'
    assert '12.4' in why
    assert list(setup_stack.constraints(STACKS['cuda'])) == ['torch<2.11']
    assert setup_stack.constraints(STACKS['cpu']) == {}
    program(machine, 'nvidia-smi', 'echo "CUDA Version: 13.0"')
    assert setup_stack.constraints(STACKS['cuda']) == {}


def test_nvidia_smi_without_a_gpu_is_a_cpu(machine):
    program(machine, 'nvidia-smi', 'echo "No devices were found"; exit 6')
    assert picked(machine)[0] == 'cpu'


def test_the_next_python_is_taken_where_the_first_does_not_fit(machine):
    for name, version in (('python3', '[3, 13, 0]'), ('python3.11', '[3, 11, 2]'), ('python3.10', '[3, 10, 2]')):
        program(
            machine, name, f'echo \'{{"executable": "/{name}", "version": {version}, "torch": null, "missing": []}}\''
        )
    assert setup_stack.find_python(STACKS['npu-2.1']).path == '/python3.11'
    assert setup_stack.find_python(STACKS['cpu']).path == '/python3'


def test_a_shim_that_does_not_run_is_passed_over(machine):
    program(machine, 'python3', 'echo "pyenv: python3: command not found" >&2; exit 127')
    program(machine, 'python3.9', 'echo \'{"executable": "/p", "version": [3, 9, 1], "torch": null, "missing": []}\'')
    assert setup_stack.find_python(STACKS['cpu']).minor == (3, 9)


def test_where_none_fits_the_versions_are_named(machine):
    program(machine, 'python3', 'echo \'{"executable": "/p", "version": [3, 8, 1], "torch": null, "missing": []}\'')
    with pytest.raises(console.UserError, match=r'cpu needs Python 3\.9 or newer; found: 3\.8\.1 \(/p\)'):
        setup_stack.find_python(STACKS['cpu'])


@pytest.mark.parametrize('name', list(STACKS))
def test_every_stack_has_its_requirements_and_a_size(name):
    files = cli.requirement_files(ROOT / f'requirements/{name}.txt')
    text = '\n'.join(file.read_text() for file in files)
    assert ROOT / 'requirements.txt' in [file.resolve() for file in files]
    assert re.search(r'^torch[=><]', text, re.MULTILINE)
    assert name in cli.FREE_GB


@pytest.mark.parametrize('name', [name for name in STACKS if name.startswith('npu')])
def test_an_npu_stack_installs_versions_that_the_doctor_knows(name):
    table = json.loads((ROOT / 'recipe/doctor/known_good.json').read_text())
    text = (ROOT / f'requirements/{name}.no-deps.txt').read_text()
    torch = re.search(r'^torch==(\S+)', (ROOT / f'requirements/{name}.txt').read_text(), re.MULTILINE)[1]
    for package in ('torch_npu', 'mx_driving'):
        version = re.search(rf'^{package}\S*[<=]=(\S+)', text, re.MULTILINE)[1]  # pip takes the newest
        (row,) = [row for row in table[package]['rows'] if row[package] == version]
        assert row['torch'] == torch if package == 'torch_npu' else SpecifierSet(row['torch']).contains(torch)


def test_no_requirement_brings_the_opencv_that_needs_libgl():
    for file in ROOT.glob('requirements/*.txt'):
        assert not re.search(r'^opencv-python\b(?!-headless)', file.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ('files', 'jobs', 'said'),
    [
        ({'proc/meminfo': 'MemTotal: 9 kB\nMemAvailable:   9437184 kB\n'}, 3, '9.0 GiB of free memory'),
        ({'proc/meminfo': 'MemAvailable: 900000000 kB\n'}, 6, '6 cores'),
        ({'proc/meminfo': 'MemAvailable: 1000 kB\n'}, 1, '0.0 GiB'),
        ({'sys/fs/cgroup/memory.max': '5368709120\n', 'sys/fs/cgroup/memory.current': '1073741824\n'}, 1, '4.0 GiB'),
        ({'sys/fs/cgroup/memory.max': 'max\n', 'proc/meminfo': 'MemAvailable: 6291456 kB\n'}, 2, '6.0 GiB'),
        ({'proc/meminfo': 'MemAvailable: 900000000 kB\n', 'sys/fs/cgroup/cpu.max': '200000 100000\n'}, 2, '2 cores'),
        ({}, 6, 'not known'),
    ],
)
def test_compilers_at_a_time_follow_cores_and_memory(machine, monkeypatch, files, jobs, said):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(6)))
    for name, text in files.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(text)
    found, why = setup_stack.compile_jobs(None, machine)
    assert found == jobs
    assert said in why
    assert setup_stack.compile_jobs('3', machine)[0] == 3
    with pytest.raises(console.UserError, match='MAX_JOBS=many is no number'):
        setup_stack.compile_jobs('many', machine)


def test_a_digest_tells_inputs_apart(tmp_path):
    file = tmp_path / 'a'
    missing = cli.digest(file)
    file.write_text('x')
    assert len({missing, cli.digest(file), cli.digest('x', ''), cli.digest('', 'x')}) == 4

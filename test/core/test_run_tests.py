"""test/run_tests.sh with stand-ins for what it runs: the parts of each tier, none of which hides another's failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import own_tests

ROOT = Path(__file__).resolve().parents[2]
# Notes how it was called, and ends with the status that an environment variable has for it.
STAND_IN = """#!/usr/bin/env bash
call="$(basename "$(dirname "$0")")/$(basename "$0") $*"
echo "$call" >>"$CALLS"
case $call in
  *--print_python*) echo "$STAND_INS/bin/python" ;;
  *"-m pytest"*) exit "${PYTEST:-0}" ;;
  *"-m mypy"*) exit "${MYPY:-0}" ;;
  *"-m ruff"* | */lint-imports* | */codespell*) exit "${RUFF:-0}" ;;
  *--prepare*) echo 'said by the preparation' && exit "${PREPARE:-0}" ;;
  npu/*) exit "${NPU:-0}" ;;
  tools/setup.sh*) exit "${SETUP:-0}" ;;
esac
"""
PROGRAMS = [
    'tools/setup.sh',
    'bin/python',
    'bin/shellcheck',
    'bin/shfmt',
    'bin/lint-imports',
    'bin/codespell',
    'test/npu/run.sh',
    'test/faults/run.sh',
]


@pytest.fixture
def run(tmp_path):
    """Run the script; its exit status, what it printed, and how it called the stand-ins."""
    for name in PROGRAMS:
        path = tmp_path / 'recipe' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN)
        path.chmod(0o755)
    script = tmp_path / 'recipe' / 'test' / 'run_tests.sh'
    shutil.copy(ROOT / 'test' / 'run_tests.sh', script)

    def call(*argv, **statuses):
        calls = tmp_path / 'calls'
        calls.write_text('')
        env = {**os.environ, 'CALLS': str(calls), 'STAND_INS': str(tmp_path / 'recipe')}
        env.update({name: str(status) for name, status in statuses.items()})
        done = subprocess.run(['bash', str(script), *argv], env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr + done.stdout, calls.read_text()

    return call


def test_all_parts_pass(run):
    status, said, calls = run()
    assert status == 0, said
    assert 'bin/python -m pytest -n 3 --dist loadfile test -m not release --ignore=test/npu' in calls
    assert calls.count('npu/run.sh') == 2 and 'npu/run.sh --prepare' in calls
    summary = said.partition('== summary')[2].strip().splitlines()
    assert [line.split()[0] for line in summary] == ['lint', 'tests', 'NPU,']


@pytest.mark.parametrize('failing', ['RUFF', 'MYPY', 'PYTEST', 'NPU', 'PREPARE'])
def test_a_part_that_fails_hides_no_other(run, failing):
    part = {'RUFF': 'lint', 'MYPY': 'lint', 'PYTEST': 'tests'}.get(failing, 'NPU,')
    status, said, calls = run(**{failing: 3})
    assert status == 1, said
    assert '-m pytest' in calls and 'npu/run.sh' in calls
    failed = [line.split()[0] for line in said.partition('== summary')[2].splitlines() if 'FAILED' in line]
    assert failed == [part]
    assert 'said by the preparation' in said


def test_the_quick_tier_has_nothing_that_trains(run):
    status, said, calls = run('--quick', '--', '-k', 'options')
    assert status == 0, said
    folders = ' '.join(f'--ignore=test/{name}' for name in ('npu', 'e2e', 'parity', 'setup', 'upstream', 'patches'))
    assert f'-m pytest -n 2 --dist loadfile test -m not release and not trains {folders} -k options' in calls
    assert 'npu/run.sh' not in calls


def test_the_release_tier_leaves_nothing_out(run):
    status, said, calls = run('--release')
    assert status == 0, said
    assert '--dist loadfile test --ignore=test/npu\n' in calls
    for part in ('--emulator', '--ranks=8 -- test/npu/test_demo.py', '--stack=npu-2.7', '--stack=npu-2.8'):
        assert f'npu/run.sh {part}\n' in calls
    assert 'faults/run.sh --count=40' in calls and 'faults/environments.py --count=30' in calls


@pytest.mark.parametrize(('argv', 'statuses'), [(['--fast'], {}), (['--quick', '--release'], {}), ([], {'SETUP': 1})])
def test_a_bad_option_and_a_failed_set_up_run_nothing(run, argv, statuses):
    status, said, calls = run(*argv, **statuses)
    assert status == 2 and said.splitlines()[-1].startswith('error: ')
    assert '-m pytest' not in calls


def test_the_emulators_own_tests_run_when_a_file_of_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(own_tests, 'ROOT', tmp_path)
    monkeypatch.setattr(own_tests, 'HERE', tmp_path / 'test' / 'npu')
    monkeypatch.setattr(own_tests, 'NOTE', tmp_path / 'test' / 'npu' / 'note')
    for name in (
        'test/npu/emulator/a.cpp',
        'test/npu/emulator/kernels/b.cpp',
        'requirements/npu-2.1.txt',
        'test/npu/test_demo.py',
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert own_tests.needed()
    own_tests.NOTE.write_text(own_tests.digest() + '\n')
    assert not own_tests.needed()
    (tmp_path / 'test/npu/test_demo.py').write_text('of the recipe')
    assert not own_tests.needed()
    for name in ('test/npu/emulator/kernels/b.cpp', 'requirements/npu-2.1.txt'):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text('changed')
        assert own_tests.needed()
        (tmp_path / name).write_text(before)
    (tmp_path / 'test/npu/emulator/c.h').write_text('new')
    assert own_tests.needed()


def test_a_misspelt_word_is_found(tmp_path):
    (tmp_path / 'text.md').write_text('CANN is needed, and nothing is received.\n'.replace('ei', 'ie'))
    codespell = Path(sys.executable).with_name('codespell')
    command = [str(codespell), '--ignore-words-list=cann', str(tmp_path / 'text.md')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and done.stdout.count('==>') == 1

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from recipe.core import console, paths
from recipe.doctor import report
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding, attempt, failure
from recipe.doctor.subject import Subject
from recipe.launch import checks, collective, examine, options

TOOL = paths.TOOLS / 'doctor.py'
GOOD = Finding('cores', OK, '8')
ODD = Finding('driver', WARNING, '24.1 is [old]', 'update it')
BAD = Finding('/dev/shm', FAILURE, '64 MiB', 'give it more')
needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')


def subject(device: str, nproc: int) -> Subject:
    return Subject(options.parse('full', []), device, nproc)


def test_a_finding_has_a_fix_exactly_where_something_is_wrong():
    for level, fix in ((OK, 'x'), (WARNING, ''), (FAILURE, ''), ('odd', '')):
        with pytest.raises(ValueError):
            Finding('x', level, 'found', fix)


def test_findings_are_single_lines():
    found = Finding('x', WARNING, 'a\nb', 'c\n\td')
    assert (found.found, found.fix) == ('a b', 'c d')


def test_an_error_becomes_what_was_found_and_the_fix():
    found = failure('disk', console.UserError('no space: 1 of 2', 'free some'))
    assert (found.level, found.found, found.fix) == (FAILURE, 'no space: 1 of 2', 'free some')
    assert failure('x', console.UserError('no; fix')).fix

    def refuse() -> str:
        raise console.UserError('no', 'do')

    assert attempt('x', refuse) == [Finding('x', FAILURE, 'no', 'do')]
    assert attempt('x', lambda: 'yes') == [Finding('x', OK, 'yes')]


def test_the_worst_level_counts():
    assert report.worst([]) == OK
    assert report.worst([GOOD, ODD]) == WARNING
    assert report.worst([ODD, BAD, GOOD]) == FAILURE


def test_warnings_are_printed_and_the_first_failure_stops(capsys):
    report.require([GOOD, ODD])
    assert capsys.readouterr().err == 'warning: driver: 24.1 is [old]; update it\n'
    with pytest.raises(console.UserError, match=r'^/dev/shm: 64 MiB; give it more \(and 1 more failures'):
        report.require([ODD, BAD, BAD])


@pytest.mark.parametrize('terminal', [False, True])
def test_the_table_holds_every_finding_with_its_fix(terminal, capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stdout), 'isatty', lambda _: terminal, raising=False)
    report.print_table([GOOD, ODD, BAD])
    out = capsys.readouterr().out
    assert all(text in out for text in ('cores', '24.1 is [old]', 'fix: update it', 'fix: give it more'))
    assert out.splitlines()[-1] == '1 ok, 1 warning, 1 failure'


def test_the_launcher_lets_the_cards_speak_to_each_other_only_where_all_else_is_well(monkeypatch):
    asked = []
    monkeypatch.setattr(collective, 'examine', lambda of: asked.append(of) or [Finding('all-reduce', OK, 'x')])
    for findings in ([GOOD], [GOOD, BAD]):
        monkeypatch.setattr(checks, 'MACHINE', (lambda of, findings=findings: findings,))
        checks.machine(subject('cuda', 8))
    assert len(asked) == 1
    checks.machine(subject('cpu', 2))
    assert len(asked) == 1


def test_an_all_reduce_of_one_rank_is_none():
    (found,) = collective.examine(subject('cpu', 1))
    assert found.level == OK


@needs_torch
@pytest.mark.trains
def test_two_ranks_add_up():
    (found,) = collective.examine(subject('cpu', 2))
    assert found.level == OK
    assert found.found.startswith('4 MiB over 2 ranks (gloo) in ')


@needs_torch
@pytest.mark.trains
@pytest.mark.skipif(importlib.util.find_spec('torch_npu') is not None, reason='torch_npu is installed')
def test_ranks_that_cannot_are_a_failure_that_says_why():
    (found,) = collective.examine(subject('npu', 2))
    assert (found.level, 'HCCL' in found.fix) == (FAILURE, True)
    assert "No module named 'torch_npu'" in found.found


@needs_torch
def test_cards_that_hang_are_given_up(monkeypatch):
    monkeypatch.setattr(collective, 'PATIENCE_S', 0.5)
    (found,) = collective.examine(subject('cpu', 2))
    assert (found.level, found.found) == (FAILURE, 'the cards did not finish within 0.5 s')


def test_clocks_that_differ_between_machines():
    figures = {'world_size': 16, 'backend': 'hccl', 'seconds': [0.5, 0.001, 0.002], 'clocks_apart_s': 90}
    found = collective.judge(figures)
    assert [one.level for one in found] == [OK, WARNING]
    assert found[0].found == '4 MiB over 16 ranks (hccl) in 2.0 ms'
    assert 'differ by 90 s' in found[1].found


def run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *argv], capture_output=True, text=True, check=False)


def test_bad_options_are_named():
    for argv, said in ((['--batch_sise=1'], '--batch_size'), (['performance', '--resume=1'], '--resume=1')):
        done = run(*argv)
        assert done.returncode == console.EXIT_USAGE
        assert said in done.stderr
        assert done.stderr.count('\n') == 1


@pytest.mark.trains
@needs_torch
def test_by_hand_every_fault_is_listed_as_json(tmp_path):
    """Behind a failure the other checks are still made."""
    argv = ['--device=cuda', '--nproc=99', f'--data_path={tmp_path}', f'--config={paths.ROOT}/configs/demo.py']
    done = run('performance', '--json', *argv)
    assert done.returncode == console.EXIT_FAILURE, done.stderr
    answer = json.loads(done.stdout)
    assert answer['worst'] == FAILURE
    found = {row['check']: row for row in answer['findings']}
    assert (found['data set']['level'], found['model']['level']) == (FAILURE, OK)
    assert 'has neither leftImg8bit/' in found['data set']['found']
    assert set(found) >= {'checkouts', 'device', 'config', 'packages', '/dev/shm', 'clock', 'run folder', 'disk'}
    assert all(set(row) == {'check', 'level', 'found', 'fix'} for row in answer['findings'])
    assert not list(tmp_path.iterdir())


@needs_torch
def test_weights_that_the_launcher_will_download_are_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    argv = ['--json', '--device=cpu', '--nproc=1', f'--data_path={tmp_path}']
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *argv])
    assert examine.main() == console.EXIT_FAILURE  # of the data set
    found = {row['check']: row for row in json.loads(capsys.readouterr().out)['findings']}
    assert 'the launcher will download' in found['weights file']['found']
    assert found['weights file']['level'] == WARNING
    assert 'weights' not in found  # nothing is known of them yet

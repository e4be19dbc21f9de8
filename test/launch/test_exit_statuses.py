"""The launcher's last line: which rank, what it said, what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recipe.core import exit_status, paths
from recipe.launch import ranks, restarts

LINES = ['some output', 'error: an earlier one', 'error: iteration 7 is not finite: rank 3: loss_cls nan']


def explained(status, lines):
    return restarts.explain(ranks.Failure(f'rank 3 ended with exit status {status}', Path('log'), status, lines))


def test_the_trainer_s_own_words_and_what_to_do():
    assert explained(65, LINES) == (
        'rank 3 ended with exit status 65: iteration 7 is not finite: rank 3: loss_cls nan; '
        + exit_status.advice(exit_status.NONFINITE)
    )


def test_the_words_are_taken_from_stderr_whichever_log_came_last(tmp_path):
    (tmp_path / 'stderr.log').write_text('error: the reason\n')
    failure = ranks.Failure('rank 3 ended with exit status 66', tmp_path / 'stdout.log', 66, ['a line of the log'])
    assert restarts.explain(failure).startswith('rank 3 ended with exit status 66: the reason; bring the file again')


def test_other_failures_are_named_as_they_are():
    assert explained(1, ['Traceback (most recent call last):', 'ValueError: no']) == 'rank 3 ended with exit status 1'
    assert explained(1, ['error: no']) == 'rank 3 ended with exit status 1: no'


def test_a_signal_that_the_launcher_did_not_get():
    assert 'go on with --resume=1' in explained(143, [])


@pytest.mark.parametrize('status', [one.number for one in exit_status.TABLE])
def test_each_status_is_documented(status):
    for page in ('docs/operations.md', 'docs/schedulers.md'):
        rows = re.findall(r'^\| ([0-9, ]+) \|', (paths.ROOT / page).read_text(encoding='utf-8'), re.MULTILINE)
        assert str(status) in re.findall(r'[0-9]+', ' '.join(rows)), page


def test_numbers_and_names_are_unique():
    assert len(exit_status.BY_NUMBER) == len({one.name for one in exit_status.TABLE}) == len(exit_status.TABLE)


@pytest.mark.parametrize('code', [65, 66, 69, 143, -15, 138, -10])
def test_another_start_would_end_likewise(code):
    assert code in exit_status.WITHOUT_RESTART


@pytest.mark.parametrize('code', [1, 71, 124, 134, -9, -6, 137])
def test_another_start_may_help(code):
    assert code not in exit_status.WITHOUT_RESTART

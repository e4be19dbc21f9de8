"""The launcher's last line: which rank, what it said, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmseg.engine import exit_status

from recipe.core import paths
from recipe.launch import endings, ranks

LINES = ['some output', 'error: an earlier one', 'error: iteration 7 is not finite: rank 3: loss_cls nan']


def explained(status, lines):
    return endings.explain(ranks.Failure(f'rank 3 ended with exit status {status}', Path('log'), status, lines))


def test_the_trainer_s_own_words_and_what_to_do():
    assert explained(65, LINES) == (
        'rank 3 ended with exit status 65: iteration 7 is not finite: rank 3: loss_cls nan; '
        + endings.ADVICE[endings.NONFINITE]
    )


def test_the_words_are_taken_from_stderr_whichever_log_came_last(tmp_path):
    (tmp_path / 'stderr.log').write_text('error: the reason\n')
    failure = ranks.Failure('rank 3 ended with exit status 66', tmp_path / 'stdout.log', 66, ['a line of the log'])
    assert endings.explain(failure).startswith('rank 3 ended with exit status 66: the reason; bring the file again')


def test_other_failures_are_named_as_they_are():
    assert explained(1, ['Traceback (most recent call last):', 'ValueError: no']) == 'rank 3 ended with exit status 1'
    assert explained(1, ['error: no']) == 'rank 3 ended with exit status 1: no'


def test_a_signal_that_the_launcher_did_not_get():
    assert 'go on with --resume=1' in explained(143, [])


@pytest.mark.parametrize('name', ['NONFINITE', 'UNREADABLE', 'LOADER_DIED'])
def test_the_statuses_are_the_trainer_s_and_documented(name):
    status = getattr(exit_status, name)
    assert getattr(endings, name) == status
    for page in ('README.md', 'README.zh-CN.md', 'docs/schedulers.md'):
        assert f'| {status} |' in (paths.ROOT / page).read_text(encoding='utf-8')

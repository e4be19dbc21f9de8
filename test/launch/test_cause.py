"""Which of a rank's two logs is shown."""

from __future__ import annotations

import os

import pytest

from recipe.launch import ranks

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nValueError: the cause\n'


@pytest.mark.parametrize(
    ('stdout', 'stderr', 'newer', 'shown'),
    [
        ('Iter(train) [5/9]\n', 'a warning\n', None, 'stderr.log'),  # written in the same moment
        ('Iter(train) [5/9]\n', 'a warning\n', 'stdout', 'stdout.log'),
        ('Iter(train) [5/9]\n', 'a warning\n', 'stderr', 'stderr.log'),
        ('Iter(train) [5/9]\n', TRACEBACK, 'stdout', 'stderr.log'),
        ('Iter(train) [5/9]\n', TRACEBACK + '[W] a warning\n' * 50, 'stdout', 'stderr.log'),
        ('Iter(train) [5/9]\n', '\nerror: iteration 7 is not finite\n', 'stdout', 'stderr.log'),
        (
            'Iter(train) [5/9]\n',
            "terminate called after throwing an instance of 'c10::Error'\n",
            'stdout',
            'stderr.log',
        ),
        ('Iter(train) [5/9]\n', '', 'stderr', 'stdout.log'),
        ('', '', None, ''),
    ],
)
def test_the_log_that_holds_the_cause(tmp_path, stdout, stderr, newer, shown):
    for name, text in (('stdout', stdout), ('stderr', stderr)):
        path = tmp_path / f'{name}.log'
        path.write_text(text)
        os.utime(path, (1e9 + (name == newer), 1e9 + (name == newer)))
    assert ranks.log_with_cause(tmp_path) == (tmp_path / shown if shown else tmp_path)

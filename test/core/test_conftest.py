"""What conftest.py takes back between two tests; the tests of a file run in its order."""

import os


def test_leave_a_variable():
    os.environ['LEFT_BY_A_TEST'] = '1'
    os.environ.pop('PATH')


def test_the_next_test_does_not_see_it():
    assert 'LEFT_BY_A_TEST' not in os.environ and 'PATH' in os.environ

"""What the patches add obeys the rules that tools/ obeys, at upstream's line length."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RULES = [
    '--isolated',
    '--target-version=py38',
    '--line-length=79',
    '--select=B,D,E,F,W',
    # As in pyproject.toml; upstream's packages and modules have no docstrings of their own.
    '--ignore=D100,D104,D105,D107',
    '--config=lint.pydocstyle.convention="google"',
]


def lint(files):
    """Run ruff on some files and return what it says, nothing where all is well."""
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--quiet', '--output-format=concise', *RULES, *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize('name', ['mmcv', 'mmdetection', 'mmsegmentation'])
def test_new_files_are_clean(name):
    checkout = ROOT / name
    if not (checkout / '.git').is_dir():
        pytest.skip(f'no checkout of {name}; bash tools/setup.sh makes it')
    added = subprocess.run(
        ['git', 'diff', '--diff-filter=A', '--name-only', 'refs/recipe/base', 'HEAD', '--', '*.py', ':!configs'],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not added or lint([checkout / path for path in added]) == ''


@pytest.mark.parametrize(
    ('source', 'rule'),
    [
        ('"""A module."""\n\n\ndef public():\n    return 1\n', 'D103'),
        ('"""A module."""\nimport os\n', 'F401'),
        ('"""A module."""\nname = "' + 'x' * 80 + '"\n', 'E501'),
        ('"""A module."""\nmatch = 1\nmatch match:\n    case 1:\n        pass\n', 'syntax'),
    ],
)
def test_a_fault_is_noticed(tmp_path, source, rule):
    (tmp_path / 'added.py').write_text(source)
    assert rule in lint([tmp_path / 'added.py'])


def authors(patch):
    """Who is named in the headers of a series; long headers go on in lines that begin with a space."""
    return {' '.join(name.split()) for name in re.findall(r'^From: (.*(?:\n .*)*)$', patch, re.MULTILINE)}


@pytest.mark.parametrize('name', ['mmcv', 'mmdetection', 'mmsegmentation'])
def test_the_recipe_is_the_author(name):
    """Not whoever, on whatever machine, made a commit last."""
    assert authors((ROOT / f'{name}.patch').read_text()) == {'Recipe authors <recipe@localhost>'}


def test_another_author_is_noticed():
    assert authors('From: A B\n <a@b.example>\nDate: x\n\nFrom the text\n') == {'A B <a@b.example>'}

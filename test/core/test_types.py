import importlib.util
import shutil
import subprocess
import sys

import pytest

from recipe.core.paths import ROOT

PLANTED = 'def planted(x: int) -> str:\n    return x\n'

pytestmark = pytest.mark.skipif(not importlib.util.find_spec('mypy'), reason='mypy is not installed (Python < 3.10)')


def check(root):
    """Run mypy on a copy of recipe.core in ``root``, with a cache of its own."""
    command = [sys.executable, '-m', 'mypy', 'recipe/core']
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    (tmp_path / 'recipe').mkdir()
    shutil.copy(ROOT / 'recipe' / '__init__.py', tmp_path / 'recipe')
    leave_out = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / 'recipe' / 'core', tmp_path / 'recipe' / 'core', ignore=leave_out)
    return tmp_path


def test_a_wrong_type_is_reported_with_its_line(copy):
    (copy / 'recipe' / 'core' / 'planted.py').write_text(PLANTED)
    done = check(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].startswith('recipe/core/planted.py:2: error: Incompatible return value type')
    assert 'Found 1 error in 1 file' in done.stdout


def test_a_function_of_core_without_annotations_is_reported(copy):
    (copy / 'recipe' / 'core' / 'planted.py').write_text('def planted(x):\n    return x\n')
    done = check(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'recipe/core/planted.py:1: error: Function is missing a type annotation' in done.stdout

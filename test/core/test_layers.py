"""The rooms of the package import only what lies below them, and the bare ones nothing but the standard library."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import paths

BARE = ('core', 'upstream', 'setup')
OPTIONS = 'launch/options.py'  # test/lib.sh checks the options before anything is installed


def imported(path: Path) -> set:
    """Top-level packages that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or '').split('.')[0])
    return found


def bare_files(package: Path) -> list:
    return [*(path for room in BARE for path in sorted((package / room).glob('*.py'))), package / OPTIONS]


@pytest.mark.skipif(sys.version_info < (3, 10), reason='sys.stdlib_module_names came with Python 3.10')
def test_bare_rooms_import_the_standard_library_alone():
    allowed = {*sys.stdlib_module_names, 'recipe', 'pip'}  # set-up runs in environments that have pip
    strangers = {path.name: imported(path) - allowed for path in bare_files(paths.PACKAGE)}
    assert {name: found for name, found in strangers.items() if found} == {}


def copy_of_the_package(root: Path) -> None:
    shutil.copytree(paths.PACKAGE, root / 'recipe', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy2(paths.ROOT / 'pyproject.toml', root)


def lint_imports(root: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name('lint-imports')), '--no-cache']
    return subprocess.run(command, cwd=str(root), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ('room', 'line'),
    [
        ('core', 'from recipe.launch import options'),
        ('data', 'def late():\n    from recipe.engine import weights'),
        ('doctor', 'import recipe.launch.ranks'),
        ('setup', 'from recipe.data import layout'),
    ],
)
def test_the_import_contract_finds_an_arrow_that_points_upwards(tmp_path, room, line):
    copy_of_the_package(tmp_path)
    assert lint_imports(tmp_path).returncode == 0
    (tmp_path / 'recipe' / room / 'planted.py').write_text(f'"""A fault."""\n\n{line}\n')
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout
    assert f'recipe.{room}.planted' in done.stdout

"""The pinned upstreams without any patch, beside the patched checkouts: ``.pristine/mmcv`` and so on.

They are made from the checkouts' own history, so nothing is downloaded. Standard library and git only, Python 3.8 on;
``pristine_imports.py`` makes a Python process use them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Dict, List, Optional

from recipe.core import console
from recipe.core.paths import ROOT
from recipe.upstream import fetch
from recipe.upstream import pins as upstream_pins
from recipe.upstream.git import Repo
from recipe.upstream.pins import Pin
from recipe.upstream.state import inspect

FOLDER = '.pristine'


def lay_out(root: Path = ROOT, pins: Optional[Dict[str, Pin]] = None) -> Dict[str, Path]:
    """Make the unpatched trees that are missing, edited, or of another commit.

    Args:
        root: Folder of the checkouts.
        pins: Which ones; default: the whole pin table.

    Returns:
        Folder of each tree by name.

    Raises:
        console.UserError: A checkout is missing or not made from its pin.
    """
    with fetch.lock(root):
        return {name: _lay_out_one(root, pin) for name, pin in (pins or upstream_pins.load(root)).items()}


def _lay_out_one(root: Path, pin: Pin) -> Path:
    found = inspect(root, pin)
    if found.base is None:
        what = found.reason or f'{found.state}; run: python tools/upstream.py fetch {pin.name}'
        raise console.UserError(f'{found.repo.path}: {what}; its unpatched sources cannot be laid out')
    target, index = root / FOLDER / pin.name, root / FOLDER / f'{pin.name}.index'
    if differences(found.repo, found.base, target, index) == []:
        return target
    target.parent.mkdir(exist_ok=True)
    # Made beside its place and renamed, so that an unfinished one is never used. The index lets git see quickly, next
    # time, that no file has changed.
    with tempfile.TemporaryDirectory(prefix=f'{pin.name}-', dir=str(target.parent)) as folder:
        tree = Path(folder, 'tree')
        tree.mkdir()
        index.unlink() if index.exists() else None
        env = _environment(tree, index)
        found.repo.run('read-tree', found.base, env=env)
        found.repo.run('checkout-index', '--all', '--index', env=env)
        if target.exists():
            shutil.rmtree(str(target))
        tree.rename(target)
    return target


def differences(repo: Repo, base: str, tree: Path, index: Path) -> Optional[List[str]]:
    """Files of a tree that differ from the commit. Files added by Python or a build do not count.

    Args:
        repo: Checkout that holds the commit.
        base: Commit.
        tree: Folder to look at.
        index: Git's index file of that folder.

    Returns:
        Paths; None if there is no tree of this commit.
    """
    if not tree.is_dir() or not index.is_file():
        return None
    env = _environment(tree, index)
    repo.run('update-index', '-q', '--refresh', check=False, env=env)
    if repo.lines('diff-index', '--cached', '--name-only', '-z', base, env=env):
        return None
    return repo.lines('diff-files', '--name-only', '-z', env=env)


def _environment(tree: Path, index: Path) -> Dict[str, str]:
    return {'GIT_WORK_TREE': str(tree), 'GIT_INDEX_FILE': str(index)}

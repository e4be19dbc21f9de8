"""The state of a checkout: its base, the commits on it, and who made them.

``upstream.py`` keeps three refs in a checkout, to tell a developer's commits from its own: ``refs/recipe/base`` (the
unpatched sources), ``refs/recipe/applied`` (the last commit that it made) and ``refs/recipe/patch`` (the patch file's
content at that time). Standard library and git only, Python 3.8 on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

from recipe.core import temporary
from recipe.upstream.git import GitError, Repo
from recipe.upstream.pins import Pin

BASE_REF = 'refs/recipe/base'
APPLIED_REF = 'refs/recipe/applied'
PATCH_REF = 'refs/recipe/patch'
BRANCH = 'refs/heads/recipe'

MISSING = 'missing'  # no checkout
BASE = 'base'  # the pinned sources, unpatched
PATCHED = 'patched'  # base + the commits of the patch file
OUTDATED = 'outdated'  # base + the commits of an older patch file, as upstream.py made them
BY_HAND = 'patched by hand'  # the same files as base + patch, through plain `git apply`
EDITED = 'edited'  # changes that are not committed
FOREIGN = 'foreign'  # not made from the pin, or with commits of somebody else


@dataclass
class Checkout:
    """One checkout as found.

    Attributes:
        pin: Its row of the pin table.
        repo: The folder.
        state: One of this module's constants.
        origin: ``git`` or ``sdist``; None if there is no base.
        base: Commit of the unpatched sources, None if none is known.
        head: Checked-out commit.
        files: Changed files that are not committed.
        commits: ``<short hash> <subject>`` of commits that neither upstream nor the patch file holds.
        reason: Why the checkout is foreign, or what is unfinished in it.
    """

    pin: Pin
    repo: Repo
    state: str
    origin: Optional[str] = None
    base: Optional[str] = None
    head: Optional[str] = None
    files: List[str] = field(default_factory=list)
    commits: List[str] = field(default_factory=list)
    reason: str = ''

    def as_dict(self) -> Dict[str, object]:
        """The state for ``status --json``."""
        return {
            'state': self.state,
            'origin': self.origin,
            'base': self.base,
            'head': self.head,
            'files': self.files,
            'commits': self.commits,
            'reason': self.reason,
            'patch': self.pin.patch,
        }

    def trouble(self) -> str:
        """Why the checkout cannot be worked on, in a few words; names files or commits."""
        if self.files:
            return f'local edits in {some(self.files)}'
        if self.commits:
            return f'commits that {self.pin.patch} does not hold: {some(self.commits)}'
        return self.reason


def some(items: List[str], most: int = 5) -> str:
    """The first few items and how many more there are: ``a, b and 3 more``."""
    shown = ', '.join(items[:most])
    return f'{shown} and {len(items) - most} more' if len(items) > most else shown


def _find_base(repo: Repo, pin: Pin) -> Optional[str]:
    candidates = [pin.commit, *(commit for _, commit in pin.also_applies_to)]
    if repo.config('recipe.source') in pin.sources:
        candidates.insert(0, repo.resolve(f'{BASE_REF}^{{commit}}') or '')
    for commit in filter(None, candidates):
        if repo.resolve(f'{commit}^{{commit}}') and repo.ok('merge-base', '--is-ancestor', commit, 'HEAD'):
            return commit
    return None


def _unfinished(repo: Repo) -> Optional[str]:
    """A git operation, such as ``git am``, that was begun and not ended in a repository."""
    marks = {'rebase-apply': 'git am', 'rebase-merge': 'git rebase', 'MERGE_HEAD': 'git merge'}
    marks.update({'CHERRY_PICK_HEAD': 'git cherry-pick', 'REVERT_HEAD': 'git revert'})
    for mark, command in marks.items():
        if Path(repo.path, repo.text('rev-parse', '--git-path', mark)).exists():
            return command
    return None


def edited_files(repo: Repo, untracked: bool = False) -> List[str]:
    """Files that differ from the checked-out commit.

    Args:
        repo: Checkout.
        untracked: Also name files that git neither knows nor ignores.
    """
    options = ['--no-renames', '--ignore-submodules', f'--untracked-files={"all" if untracked else "no"}']
    entries = repo.lines('status', '--porcelain', '-z', *options)
    return [entry[3:] for entry in entries]


def _has_files_of(repo: Repo, tree: str) -> bool:
    """Whether the work tree holds exactly a tree's files, and no file that only HEAD has."""
    with temporary.folder() as folder:
        env = {'GIT_INDEX_FILE': str(folder / 'index')}
        repo.run('read-tree', tree, env=env)
        repo.run('update-index', '-q', '--refresh', check=False, env=env)
        if repo.lines('diff-files', '--name-only', '-z', env=env):
            return False
    deleted = repo.lines('diff-tree', '-r', '-z', '--no-renames', '--name-only', '--diff-filter=D', 'HEAD', tree)
    return not any(os.path.lexists(repo.path / name) for name in deleted)


def inspect(root: Path, pin: Pin) -> Checkout:
    """Read the state of a checkout without changing it.

    Args:
        root: Folder of the checkouts and of the patch files.
        pin: Which one.
    """
    repo = Repo(root / pin.name)
    found = Checkout(pin, repo, FOREIGN)
    if not repo.path.is_dir():
        found.state = FOREIGN if os.path.lexists(repo.path) else MISSING
        found.reason = 'not a folder' if found.state == FOREIGN else ''
        return found
    if not any(repo.path.iterdir()):
        found.state = MISSING
        return found
    if not (repo.path / '.git').exists():
        found.reason = 'a folder that is not a git checkout'
        return found
    try:
        found.head = repo.resolve('HEAD^{commit}')
    except GitError as error:
        found.reason = str(error)
        return found
    if found.head is None:
        found.reason = 'a git repository without a commit'
        return found
    found.base = _find_base(repo, pin)
    if found.base is None:
        found.reason = f'not made from the pin {pin.commit[:12]} (it is at {found.head[:12]})'
        return found
    found.origin = repo.config('recipe.origin') or 'git'
    _classify(found, root / pin.patch)
    return found


def _classify(found: Checkout, patch: Path) -> None:
    """Set the state of a checkout whose base is known."""
    repo, base, head = found.repo, str(found.base), str(found.head)
    series = patch.read_bytes() if patch.is_file() else b''
    found.files = edited_files(repo)
    unfinished = _unfinished(repo)
    if unfinished:
        found.state, found.reason = EDITED, f'an unfinished {unfinished}'
    elif head == base:
        # Asked before the edits: a patch that only adds files leaves no edited file behind.
        tree = repo.tree_of(base, series) if series else None
        if tree is not None and _has_files_of(repo, tree):
            found.state, found.files = BY_HAND, []
        else:
            found.state = EDITED if found.files else BASE
    elif found.files:
        found.state = EDITED
    elif series and _holds_series(repo, base, head, series):
        found.state = PATCHED
    elif head == repo.resolve(APPLIED_REF):
        found.state = OUTDATED
    elif series and repo.tree_of(base, series) == repo.text('rev-parse', f'{head}^{{tree}}'):
        found.state = BY_HAND
    else:
        found.state = FOREIGN
        found.commits = _unknown_commits(repo, base, head)


def _holds_series(repo: Repo, base: str, head: str, series: bytes) -> bool:
    # On another base than it was exported from, a series applies but exports with other line numbers. Only the ref
    # tells then that it was applied.
    blob = repo.text('hash-object', '--stdin', data=series)
    applied = head == repo.resolve(APPLIED_REF) and blob == repo.resolve(PATCH_REF)
    return applied or repo.export(base, head) == series


def _unknown_commits(repo: Repo, base: str, head: str) -> List[str]:
    """Commits on top of what upstream.py applied, or on the base if that is not an ancestor of HEAD."""
    applied = repo.resolve(APPLIED_REF)
    if applied and repo.ok('merge-base', '--is-ancestor', applied, head):
        base = applied
    return repo.lines('log', '-z', '--format=%h %s', f'{base}..{head}')

"""Move a patch series to another commit of its upstream. Standard library and git only, Python 3.8 on."""

from __future__ import annotations

from pathlib import Path
from typing import List, Set

from recipe.core import console
from recipe.upstream import git, state
from recipe.upstream.fetch import fetch_commit
from recipe.upstream.git import GitError, Repo
from recipe.upstream.pins import TABLE, Pin


def rebase(root: Path, pin: Pin, commit: str, urls: List[str], wait: float) -> str:
    """Put the commits of a patched checkout on another commit of the upstream, and pin that commit.

    The work is tried in a scratch repository first. If a commit of the series conflicts, nothing is changed, and the
    message gives the commands to resolve the conflict by hand. The same call afterwards records the new pin.

    Args:
        root: Folder of the checkouts, the patch files and the pin table.
        pin: Which upstream.
        commit: 40-hex hash of the new base.
        urls: Repositories to fetch it from, in this order.
        wait: Seconds in which a git server must answer.

    Returns:
        The last commit of the moved series.

    Raises:
        console.UserError: The checkout is not patched and clean, the commit cannot be fetched, or a commit conflicts.
    """
    found = state.inspect(root, pin)
    repo, base, head = found.repo, found.base, found.head
    if head is None:
        raise console.UserError(f'{repo.path}: {found.reason or found.state}; nothing to rebase')
    if state.edited_files(repo, untracked=True):
        raise console.UserError(f'{repo.path} has changes that are not committed', 'commit them or take them out')
    _bring(repo, commit, urls, wait)
    if repo.ok('merge-base', '--is-ancestor', commit, head):
        new_head = head  # rebased by hand
    elif base in (None, head):
        raise console.UserError(f'{repo.path}: {found.reason or "no commits on the base"}; nothing to rebase')
    else:
        new_head = _replay(repo, pin, str(base), head, commit)
    repo.run('update-ref', state.BASE_REF, commit)
    repo.run('config', 'recipe.origin', 'git')
    repo.run('config', 'recipe.source', commit)
    table = root / TABLE
    table.write_text(table.read_text('utf-8').replace(pin.commit, commit), 'utf-8')
    return new_head


def _bring(repo: Repo, commit: str, urls: List[str], wait: float) -> None:
    """Fetch a commit unless the repository has it."""
    if repo.resolve(f'{commit}^{{commit}}'):
        return None
    silent: Set[str] = set()
    failures = []
    for url in urls:
        try:
            return fetch_commit(repo, url, commit, silent, wait)
        except GitError as error:
            failures.append(f'{url}: {"; ".join(error.lines)}')
    raise console.UserError(
        f'{commit[:12]} cannot be fetched ({"; ".join(failures)})', f'give --git_url {repo.path.name}=URL'
    )


def _replay(repo: Repo, pin: Pin, base: str, head: str, commit: str) -> str:
    """Cherry-pick the series onto a commit and check the result out."""
    with git.scratch(repo, commit) as trial:
        try:
            trial.run('cherry-pick', '--allow-empty', f'{base}..{head}')
        except GitError:
            files = trial.lines('diff', '-z', '--name-only', '--diff-filter=U')
            stopped_at = trial.text('log', '-1', '--format=%h %s', 'CHERRY_PICK_HEAD')
            raise console.UserError(
                f'{pin.name}: {stopped_at} conflicts in {state.some(files)}',
                f'nothing was changed. Resolve it with: '
                f'git -C {repo.path} rebase --onto {commit} {base}, then: python tools/upstream.py rebase {pin.name} '
                f'{commit}',
            ) from None
        new_head = trial.resolve('HEAD') or ''
        repo.take_over(trial, new_head, commit)
    return new_head

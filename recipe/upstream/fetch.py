"""Makes the checkouts: from git at the pin, or from the source distribution if git servers cannot be reached.

Standard library, pip and git only, Python 3.8 on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set
from urllib.parse import urlsplit

from recipe.core import console, tied_process
from recipe.upstream import sdist
from recipe.upstream.git import GitError, Repo
from recipe.upstream.pins import Pin
from recipe.upstream.state import BASE_REF, BRANCH, MISSING, inspect

FETCH_SECONDS = 600.0  # for one shallow fetch, at most some 20 MB

# Files that builds and runs leave in a checkout. The distributions come without upstream's .gitignore.
_EXCLUDE = """\
__pycache__/
*.py[cod]
*.so
*.egg-info/
.mim
/build/
/data
/work_dirs/
*.log
*.pth
.pytest_cache/
.ruff_cache/
"""

_TEMPORARY = '.upstream-'


@contextlib.contextmanager
def lock(root: Path) -> Iterator[None]:
    """Keep a second set-up, started at the same time, from working on the same checkouts."""
    descriptor = os.open(str(root), os.O_RDONLY)
    said = 'waiting for another upstream.py that works on these checkouts'
    with tied_process.lock(descriptor, lambda holder: console.say(f'{said}: {holder}')):
        yield


def fetch(
    root: Path, pins: List[Pin], origin: str = 'auto', git_urls: Optional[Dict[str, List[str]]] = None, wait: float = 15
) -> None:
    """Make the missing checkouts; an existing one is left as it is.

    Each is built in a temporary folder beside its place and renamed, so that nobody sees an unfinished one.

    Args:
        root: Folder of the checkouts.
        pins: Which ones.
        origin: ``git``, ``sdist``, or ``auto``: git, then the source distribution if git fails.
        git_urls: Repositories to use in place of the pinned ones, by name.
        wait: Seconds in which a git server must answer.

    Raises:
        console.UserError: Another folder is in the way, no origin could be reached, or a hash differs.
    """
    with lock(root):
        for stale in root.glob(f'{_TEMPORARY}*'):
            shutil.rmtree(str(stale))
        missing = []
        for pin in pins:
            found = inspect(root, pin)
            if found.state == MISSING:
                missing.append(pin)
            elif found.base is None:
                raise console.UserError(
                    f'{found.repo.path}: {found.reason}', 'move it away, then fetch makes a new checkout there'
                )
            else:
                console.say(f'{pin.name}: already here ({found.origin} {found.base[:12]}), left as it is')
        if missing:
            folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=str(root)))
            try:
                _make(missing, root, folder, origin, git_urls or {}, wait)
            finally:
                shutil.rmtree(str(folder))


def _make(pins: List[Pin], root: Path, folder: Path, origin: str, git_urls: Dict[str, List[str]], wait: float) -> None:
    left = list(pins)
    silent: Set[str] = set()  # hosts that did not answer; later checkouts do not wait for them
    for pin in pins if origin != 'sdist' else []:
        try:
            _from_git(pin, git_urls.get(pin.name, [pin.url]), folder / pin.name, silent, wait)
        except GitError as error:
            if origin == 'git':
                raise console.UserError(f'{pin.name}: no checkout from git: {"; ".join(error.lines)}') from None
            console.say(f'{pin.name}: git is out of reach ({error.lines[-1] if error.lines else error})')
            shutil.rmtree(str(folder / pin.name))
            continue
        left.remove(pin)
        _place(pin, folder, root)
        console.say(f'{pin.name}: fetched from git at {pin.commit[:12]}')
    if left:
        archives = sdist.download([pin.sdist for pin in left], folder / 'pip')
        for pin in left:
            sdist.verify(archives[pin.sdist], pin.sdist)
        for pin in left:
            _from_sdist(pin, archives[pin.sdist], folder / pin.name)
            _place(pin, folder, root)
            console.say(f'{pin.name}: made from the source distribution {pin.sdist.requirement}, sha256 verified')


def _from_git(pin: Pin, urls: List[str], target: Path, silent: Set[str], wait: float) -> None:
    """Make a checkout from git. Raises GitError if no URL gives the commit."""
    target.mkdir()
    repo = Repo(target)
    repo.run('init', '--quiet')
    repo.run('symbolic-ref', 'HEAD', BRANCH)
    repo.run('remote', 'add', 'origin', urls[0])
    failure = None
    for url in urls:
        try:
            fetch_commit(repo, url, pin.commit, silent, wait)
            break
        except GitError as error:
            failure = error
    else:
        assert failure is not None  # there is at least one URL
        raise failure
    repo.run('reset', '--quiet', '--hard', pin.commit)
    if repo.resolve('HEAD') != pin.commit:
        raise console.UserError(f'{pin.name}: {urls[0]} gave {repo.resolve("HEAD")} in place of {pin.commit}')
    _remember(repo, 'git', pin.commit)


def fetch_commit(repo: Repo, url: str, commit: str, silent: Set[str], wait: float) -> None:
    """Fetch one commit, without its history, into a repository.

    Args:
        repo: Repository that receives it.
        url: Repository to fetch from.
        commit: 40-hex hash.
        silent: Hosts known not to answer; a new one is added.
        wait: Seconds in which the server must answer.

    Raises:
        GitError: The server was not reached, or does not have the commit.
    """
    host = urlsplit(url).netloc
    if host and host in silent:
        raise GitError(repo.path, ('fetch', url), f'{host} did not answer before')
    try:
        # A firewall that drops packets would block a fetch for minutes, so a short request is made first.
        repo.run('ls-remote', '--quiet', url, 'HEAD', user_config=True, seconds=wait)
    except GitError:
        silent.add(host)
        raise
    slow = {'GIT_HTTP_LOW_SPEED_LIMIT': '1000', 'GIT_HTTP_LOW_SPEED_TIME': '30'}
    options = ['--quiet', '--depth=1', '--no-tags', '--no-recurse-submodules']
    repo.run('fetch', *options, url, commit, user_config=True, seconds=FETCH_SECONDS, env=slow)


def _from_sdist(pin: Pin, archive: Path, target: Path) -> None:
    sdist.unpack(archive, pin, target)
    repo = Repo(target)
    repo.run('init', '--quiet')
    repo.run('symbolic-ref', 'HEAD', BRANCH)
    repo.run('add', '--all', '--force')
    message = f'{pin.sdist.requirement} as in its source distribution\n\nsha256 {pin.sdist.sha256}\n'
    repo.run('commit', '--quiet', '--file=-', data=message.encode())
    _remember(repo, 'sdist', pin.sdist.sha256)


def _remember(repo: Repo, origin: str, source: str) -> None:
    repo.run('update-ref', BASE_REF, 'HEAD')
    repo.run('config', 'recipe.origin', origin)
    repo.run('config', 'recipe.source', source)
    # A patch is bytes: line ends must stay as they are, whatever the user's git is set to.
    repo.run('config', 'core.autocrlf', 'false')
    exclude = repo.path / '.git/info/exclude'
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_text(_EXCLUDE)


def _place(pin: Pin, folder: Path, root: Path) -> None:
    (folder / pin.name).rename(root / pin.name)

"""Runs git for ``upstream.py`` with the same result on every machine, whatever the user's git configuration.

Standard library and git only, Python 3.8 on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from recipe.core import console, temporary, tied_process

OLDEST_GIT = (2, 18)

# Prefixes of git's variables that are kept: how it reaches a server, and where its own programs are. Others would make
# it work in another repository (git sets GIT_DIR and GIT_INDEX_FILE for its hooks) or differently.
_KEPT_VARIABLES = (
    'GIT_ALLOW_PROTOCOL',
    'GIT_ASKPASS',
    'GIT_EXEC_PATH',
    'GIT_HTTP_',
    'GIT_OPTIONAL_LOCKS',
    'GIT_PROXY_',
    'GIT_SSH',
    'GIT_SSL_',
)

# Settings that a checkout's own .git/config may hold and that would change a tree, a commit or a patch.
_PINNED_CONFIG = (
    'advice.detachedHead=false',
    'am.threeWay=false',
    'apply.whitespace=nowarn',
    'commit.gpgSign=false',
    'core.attributesFile=/dev/null',
    'core.autocrlf=false',
    'core.excludesFile=/dev/null',
    'core.hooksPath=/dev/null',
    'core.quotePath=false',
    'core.safecrlf=false',
    'diff.mnemonicPrefix=false',
    'format.signOff=false',
    'gc.auto=0',
    'protocol.version=2',
)

# Each flag removes one reason why two machines, or two runs on one, would write different bytes.
_EXPORT_FLAGS = (
    '--stdout',
    '--zero-commit',  # the commit's own hash changes with its parent: every line "From <hash>" would churn
    '--full-index',  # short blob hashes grow with the number of objects in the repository
    '--no-signature',  # the signature is git's version
    '--no-stat',  # the diffstat is laid out for the terminal's width and reworded between versions
    '--no-numbered',  # "[PATCH 2/5]" would change in all commits when one is added
    '--no-renames',  # rename detection has limits and thresholds; plain deletion plus creation has none
    '--no-color',
    '--no-ext-diff',
    '--no-textconv',
    '--no-attach',
    '--no-thread',  # message ids hold the time of the export
    '--no-cover-letter',
    '--no-to',
    '--no-cc',
    '--no-add-header',
    '--no-notes',
    '--subject-prefix=PATCH',
    '--unified=3',  # git's default context, whatever diff.context says
    '--inter-hunk-context=0',
    '--diff-algorithm=myers',  # others put the same change into other hunks
    '--indent-heuristic',  # as above; on by default since git 2.14
    '--src-prefix=a/',
    '--dst-prefix=b/',
)

_AM_FLAGS = (
    '--quiet',
    '--no-3way',  # a three-way merge would hide that a patch no longer fits its base
    '--keep-non-patch',  # a subject may begin with "[NPU]"
    '--keep-cr',  # upstream files with CRLF line ends keep them
    '--no-scissors',
    '--no-gpg-sign',
    '--committer-date-is-author-date',  # same patch, same base: same commit hashes everywhere
)

IDENTITY = {
    'GIT_AUTHOR_NAME': 'recipe',
    'GIT_AUTHOR_EMAIL': 'recipe@localhost',
    'GIT_COMMITTER_NAME': 'recipe',
    'GIT_COMMITTER_EMAIL': 'recipe@localhost',
    'GIT_AUTHOR_DATE': '2000-01-01T00:00:00+0000',
    'GIT_COMMITTER_DATE': '2000-01-01T00:00:00+0000',
}


class GitError(console.UserError):
    """A git command that failed.

    Args:
        path: Repository.
        arguments: The command, without ``git``.
        output: What it printed to stderr.
    """

    def __init__(self, path: Path, arguments: Tuple[str, ...], output: str) -> None:
        lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith('hint:')]
        self.lines = lines
        super().__init__(f'git {arguments[0]} failed in {path}: {"; ".join(lines) or "no message"}')


def require_git() -> None:
    """Check that git is there and new enough.

    Raises:
        console.UserError: No git, or one older than ``OLDEST_GIT``.
    """
    if shutil.which('git') is None:
        raise console.UserError('git is not installed', 'install it with the package manager of this system')
    text = subprocess.run(['git', '--version'], stdout=subprocess.PIPE, check=True).stdout.decode()
    found = re.search(r'(\d+)\.(\d+)', text)
    if found and tuple(map(int, found.groups())) < OLDEST_GIT:
        raise console.UserError(f'{text.strip()} is too old', f'{OLDEST_GIT[0]}.{OLDEST_GIT[1]} or newer is needed')


class Repo:
    """A git repository with a work tree, used without the user's settings.

    Args:
        path: Work tree; its ``.git`` may not exist yet.
        env: Variables added to every command.
    """

    def __init__(self, path: Path, env: Optional[Dict[str, str]] = None) -> None:
        self.path = path
        self._env = env or {}

    def _environment(self, user_config: bool) -> Dict[str, str]:
        # The user's settings may come as variables too: GIT_CONFIG_GLOBAL, GIT_CONFIG_COUNT and its pairs.
        kept = (*_KEPT_VARIABLES, 'GIT_CONFIG_') if user_config else _KEPT_VARIABLES
        env = {key: value for key, value in os.environ.items() if not key.startswith('GIT_') or key.startswith(kept)}
        # Without a .git of its own, the checkout must not be taken for a part of the repository around it.
        env.update(GIT_CEILING_DIRECTORIES=str(self.path.parent), GIT_TERMINAL_PROMPT='0', LC_ALL='C')
        if not user_config:
            # GIT_CONFIG_GLOBAL exists since git 2.32; older versions find the user's file through these two.
            env.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, GIT_CONFIG_NOSYSTEM='1')
            env.update(GIT_ATTR_NOSYSTEM='1', HOME=os.devnull, XDG_CONFIG_HOME=os.devnull)
            env.update(IDENTITY)
        env.update(self._env)
        return env

    def run(
        self,
        *arguments: str,
        data: Optional[bytes] = None,
        check: bool = True,
        user_config: bool = False,
        seconds: Optional[float] = None,
        env: Optional[Dict[str, str]] = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one git command in the work tree.

        Args:
            arguments: The command, without ``git``.
            data: Standard input.
            check: Whether a non-zero exit status is an error.
            user_config: Read the user's settings too: proxies and mirrors for the commands that use the network.
            seconds: Time limit of a command that uses the network and reads no input. After it, or when this process
                ends,
                the command and its children are ended. A command without a limit is short and always finishes.
            env: More variables.

        Returns:
            The finished command; its stdout and stderr are bytes.

        Raises:
            GitError: The command failed (``check``) or exceeded its time; holds git's message.
        """
        # In containers the checkout often belongs to another user. git then asks for safe.directory, which only the
        # user's configuration and the command line may set.
        settings = [*_PINNED_CONFIG, f'safe.directory={self.path}']
        command = ['git']
        for setting in settings:
            command += ['-c', setting]
        command += arguments
        environment = {**self._environment(user_config), **(env or {})}
        done: Optional[subprocess.CompletedProcess[bytes]]
        if seconds is None:
            done = _finished(command, self.path, environment, data)
        else:
            done = _in_time(command, self.path, environment, seconds)
        if done is None:
            raise GitError(self.path, arguments, f'no end after {seconds:.0f} s')
        if check and done.returncode:
            raise GitError(self.path, arguments, done.stderr.decode('utf-8', 'replace'))
        return done

    def ok(self, *arguments: str, **options: Any) -> bool:
        """Whether a command exits with status 0."""
        return self.run(*arguments, check=False, **options).returncode == 0

    def text(self, *arguments: str, **options: Any) -> str:
        """A command's stdout without its last newline."""
        return self.run(*arguments, **options).stdout.decode('utf-8', 'surrogateescape').rstrip('\n')

    def lines(self, *arguments: str, **options: Any) -> List[str]:
        """A command's NUL-separated stdout (``-z``) as a list."""
        return [item for item in self.text(*arguments, **options).split('\0') if item]

    def resolve(self, name: str) -> Optional[str]:
        """The 40-hex hash of a ref or a commit; None if the repository does not have it."""
        done = self.run('rev-parse', '--verify', '--quiet', name, check=False)
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def config(self, key: str) -> Optional[str]:
        """A value of the repository's own configuration, None if it is not set."""
        done = self.run('config', '--local', '--get', key, check=False)
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def export(self, base: str, head: str) -> bytes:
        """The commits after ``base`` up to ``head`` as an mbox series, the same bytes on every machine."""
        return self.run('format-patch', *_EXPORT_FLAGS, f'{base}..{head}').stdout

    def am(self, series: bytes) -> None:
        """Apply an mbox series as commits.

        Raises:
            GitError: It does not apply; the repository is then in the middle of it.
        """
        self.run('am', *_AM_FLAGS, data=series)

    def take_over(self, trial: Repo, head: str, base: str) -> None:
        """Check out a commit from a scratch repository, on the current branch.

        Args:
            trial: Repository that holds the commit.
            head: The commit.
            base: An ancestor of it that this repository has already.

        Raises:
            GitError: An untracked file is in the way.
        """
        pack = trial.run('pack-objects', '--stdout', '--revs', '--quiet', data=f'{head}\n^{base}\n'.encode()).stdout
        self.run('unpack-objects', '-q', data=pack)
        done = self.run('symbolic-ref', '--quiet', '--short', 'HEAD', check=False)
        branch = done.stdout.decode().strip()
        self.run('checkout', '--quiet', *(['-B', branch] if branch else ['--detach']), head)

    def tree_of(self, base: str, series: bytes) -> Optional[str]:
        """The tree that plain ``git apply`` makes from a commit; None if the series does not apply to it."""
        with temporary.folder() as folder:
            env = {'GIT_INDEX_FILE': str(folder / 'index')}
            self.run('read-tree', base, env=env)
            if not self.ok('apply', '--cached', '-', data=series, env=env):
                return None
            return self.text('write-tree', env=env)


def _finished(
    command: List[str], folder: Path, env: Dict[str, str], data: Optional[bytes]
) -> subprocess.CompletedProcess[bytes]:
    """Run a short command to its end, even if this process is interrupted, so that no checkout stays half done.

    Until then the command holds the locks of this process.
    """
    process = subprocess.Popen(
        command,
        cwd=str(folder),
        env=env,
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=tied_process.held,
        start_new_session=True,  # Ctrl-C does not reach it
    )
    try:
        stdout, stderr = process.communicate(data)
    except BaseException:
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _in_time(
    command: List[str], folder: Path, env: Dict[str, str], seconds: float
) -> Optional[subprocess.CompletedProcess[bytes]]:
    """Run a command that may take long; None if it has not ended in time."""
    options = {'cwd': str(folder), 'env': env, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with contextlib.suppress(subprocess.TimeoutExpired), tied_process.started(command, **options) as process:
        stdout, stderr = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    return None


@contextlib.contextmanager
def scratch(source: Repo, commit: str) -> Iterator[Repo]:
    """A temporary repository with ``commit`` checked out; it reads the objects of ``source`` and writes its own."""
    with temporary.folder() as folder:
        repo = Repo(folder.resolve() / 'tree')
        repo.path.mkdir()
        repo.run('init', '--quiet')
        common = Path(source.path, source.text('rev-parse', '--git-common-dir'))
        Path(repo.path, '.git/objects/info/alternates').write_text(f'{common.resolve() / "objects"}\n')
        if (common / 'shallow').exists():
            shutil.copy(str(common / 'shallow'), str(repo.path / '.git/shallow'))
        repo.run('checkout', '--quiet', '--detach', commit)
        yield repo

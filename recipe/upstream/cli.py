"""Checkouts of the pinned upstreams and the patches on them.

    python tools/upstream.py fetch            # make mmcv/, mmdetection/ and mmsegmentation/ where they are missing
    python tools/upstream.py apply            # put each patch file on its checkout, as commits
    python tools/upstream.py status           # what is there
    python tools/upstream.py export mmcv      # write the checkout's commits to mmcv.patch
    python tools/upstream.py check            # prove that the patch files are in order
    python tools/upstream.py rebase mmcv COMMIT    # move the patch to another commit of its upstream
    python tools/upstream.py pristine         # lay the unpatched sources out in .pristine/, to compare with

The pins are in ``upstream.json``. fetch uses git at the pin. If no git server answers, it gets the source distribution
through pip (with pip's index, mirror and proxy settings: PIP_INDEX_URL, PIP_FIND_LINKS and so on), verifies its sha256
and lays it out like the git checkout. Runs on a bare Python 3.8 with git and pip.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

from recipe.core import console, files, paths, temporary
from recipe.upstream import check as upstream_check
from recipe.upstream import fetch as upstream_fetch
from recipe.upstream import git, pristine, rebase, state
from recipe.upstream import pins as upstream_pins
from recipe.upstream.git import GitError, Repo
from recipe.upstream.pins import Pin
from recipe.upstream.state import BY_HAND, EDITED, FOREIGN, MISSING, OUTDATED, PATCHED, Checkout, inspect


def read_patch(root: Path, pin: Pin) -> bytes:
    """Read a patch file.

    Raises:
        console.UserError: It is missing or empty, or its line ends were converted.
    """
    path = root / pin.patch
    if not path.is_file() or not path.stat().st_size:
        raise console.UserError(f'{path} is {"empty" if path.is_file() else "missing"}', 'get it from the recipe again')
    series = path.read_bytes()
    if series.partition(b'\n')[0].endswith(b'\r'):
        raise console.UserError(
            f'{path} has line ends of Windows (CRLF)', 'clone or copy the recipe without converting text'
        )
    return series


def apply(root: Path, pin: Pin) -> str:
    """Put a patch file's commits on its checkout.

    The commits are made in a temporary repository, and the checkout moves to them in one step. After a failure it is
    unchanged.

    Args:
        root: Folder of the checkouts and the patch files.
        pin: Which one.

    Returns:
        What was done, one line.

    Raises:
        console.UserError: The checkout is missing, has edits or commits of its own, or the patch does not fit.
    """
    series = read_patch(root, pin)
    found = inspect(root, pin)
    if found.state == MISSING:
        raise console.UserError(f'{found.repo.path} is missing', f'run: python tools/upstream.py fetch {pin.name}')
    if found.state in (PATCHED, BY_HAND):
        return f'{pin.name}: {found.state} already, nothing to do'
    if found.state in (EDITED, FOREIGN):
        raise console.UserError(
            f'{found.repo.path}: {found.trouble()}',
            f'nothing was changed. Keep your work as commits (to go into '
            f'{pin.patch}: python tools/upstream.py export {pin.name}) or take it out, then apply again',
        )
    repo, base = found.repo, str(found.base)
    with git.scratch(repo, base) as trial:
        try:
            trial.am(series)
        except GitError as error:
            raise console.UserError(
                f'{root / pin.patch} does not apply to {pin.name} ({found.origin} {base[:12]}): '
                f'{"; ".join(error.lines)}; nothing was changed'
            ) from None
        head = trial.resolve('HEAD') or ''
        repo.take_over(trial, head, base)
    repo.run('update-ref', state.PATCH_REF, repo.text('hash-object', '-w', '--stdin', data=series))
    repo.run('update-ref', state.APPLIED_REF, head)
    count = repo.text('rev-list', '--count', f'{base}..{head}')
    again = ' in place of an older series' if found.state == OUTDATED else ''
    return f'{pin.name}: applied {pin.patch}, {count} commit(s){again}, on {found.origin} {base[:12]}'


def export(root: Path, pin: Pin) -> str:
    """Write the commits of a checkout to its patch file.

    Args:
        root: Folder of the checkouts and the patch files.
        pin: Which one.

    Returns:
        What was done, one line.

    Raises:
        console.UserError: There is nothing to export, or something that a patch file cannot hold.
    """
    found = inspect(root, pin)
    repo, base, head = found.repo, found.base, found.head
    if base is None or head is None:
        raise console.UserError(f'{repo.path}: {found.reason or found.state}; nothing to export')
    edited = state.edited_files(repo, untracked=True)
    if edited or found.state == EDITED:
        what = state.some(edited) or found.reason
        raise console.UserError(f'{repo.path}: not committed: {what}', 'commit it or take it out, then export')
    if base in [commit for _, commit in pin.also_applies_to]:
        raise console.UserError(f'{repo.path} is built on {base[:12]}; patches are exported from the pin {pin.commit}')
    if base == head:
        raise console.UserError(f'{repo.path} has no commits on the base; {pin.patch} was left as it is')
    merges = repo.lines('log', '-z', '--merges', '--format=%h %s', f'{base}..{head}')
    if merges:
        raise console.UserError(f'{repo.path}: a patch file cannot hold merge commits: {state.some(merges)}')
    series = repo.export(base, head)
    for fault in upstream_check.faults(pin.patch, repo, base, series):
        console.warn(fault)
    path = root / pin.patch
    if path.is_file() and path.read_bytes() == series:
        return f'{pin.name}: {pin.patch} holds these commits already'
    with files.whole(path, to_disk=True) as partial:
        partial.write_bytes(series)
    return f'{pin.name}: wrote {repo.text("rev-list", "--count", f"{base}..{head}")} commit(s) to {pin.patch}'


def _rebase(root: Path, pin: Pin, commit: str, git_urls: Dict[str, List[str]], wait: float) -> str:
    rebase.rebase(root, pin, commit, [*git_urls.get(pin.name, []), pin.url], wait)
    said = export(root, upstream_pins.load(root)[pin.name])
    console.warn(
        f'{upstream_pins.TABLE}: the source distribution of {pin.name} still is {pin.sdist.requirement}; enter the one '
        f'that holds the sources of {commit[:12]}, or set up with a git server in reach'
    )
    return said


def check(root: Path, pin: Pin, also: bool, git_urls: Dict[str, List[str]], wait: float) -> List[str]:
    """Find everything that is wrong with a patch file.

    Args:
        root: Folder of the checkouts and the patch files.
        pin: Which one.
        also: Also try the other commits to which the patch should apply, if they can be fetched.
        git_urls: Repositories to use in place of the pinned ones, by name.
        wait: Seconds in which a git server must answer.

    Returns:
        One line for each fault.
    """
    try:
        series = read_patch(root, pin)
    except console.UserError as error:
        return [str(error)]
    found = inspect(root, pin)
    if found.base is None:
        what = found.reason or f'{found.state}; run: python tools/upstream.py fetch {pin.name}'
        return [f'{pin.patch}: cannot be checked without its checkout: {found.repo.path}: {what}']
    own_base = found.base not in [commit for _, commit in pin.also_applies_to]
    faults = upstream_check.faults(pin.patch, found.repo, found.base, series, same_bytes=own_base)
    for url, commit in pin.also_applies_to if also else ():
        faults += _check_other(pin, commit, [*git_urls.get(pin.name, []), url], series, wait)
    return faults


def _check_other(pin: Pin, commit: str, urls: List[str], series: bytes, wait: float) -> List[str]:
    silent: Set[str] = set()
    with temporary.folder() as folder:
        repo = Repo(folder.resolve())
        repo.run('init', '--quiet')
        for url in urls:
            try:
                upstream_fetch.fetch_commit(repo, url, commit, silent, wait)
            except GitError as error:
                console.warn(f'{pin.patch}: not tried on {commit[:12]}: {url}: {"; ".join(error.lines)}')
                continue
            console.say(f'{pin.patch}: tried on {commit[:12]} of {url} too')
            return upstream_check.faults(f'{pin.patch} on {commit[:12]}', repo, commit, series, same_bytes=False)
    return []


def describe(found: Checkout) -> str:
    """One line of ``status``."""
    origin = f'{found.origin} {found.base[:12]}' if found.base else '-'
    return f'{found.pin.name:<15} {found.state:<16} {origin:<19} {found.trouble()}'.rstrip()


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument('names', nargs='*', metavar='NAME', help='mmcv, mmdetection, mmsegmentation; default: all')
    common.add_argument('--root', type=Path, default=paths.ROOT, metavar='DIR')
    net = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    net.add_argument(
        '--git_url', action='append', default=[], metavar='NAME=URL', help='git repository (or path) for NAME'
    )
    net.add_argument('--wait', type=float, default=15, metavar='SECONDS', help='for a git server to answer')
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common, *parents], allow_abbrev=False)

    fetch = add('fetch', 'make the checkouts that are missing', net)
    fetch.add_argument('--origin', choices=['auto', 'git', 'sdist'], default='auto')
    add('apply', 'put the patch files on their checkouts')
    add('status', 'say what each checkout is').add_argument('--json', action='store_true')
    add('export', 'write the commits of the checkouts to the patch files')
    add('pristine', 'lay the unpatched sources out beside the checkouts')
    text = 'move a patch to another commit of its upstream'
    mover = commands.add_parser('rebase', help=text, description=text, parents=[net], allow_abbrev=False)
    mover.add_argument('names', nargs=1, metavar='NAME')
    mover.add_argument('commit', metavar='COMMIT', help='40 hexadecimal digits')
    mover.add_argument('--root', type=Path, default=paths.ROOT, metavar='DIR')
    checker = add('check', 'prove that the patch files are in order', net)
    checker.add_argument('--also', action='store_true', help='on the other commits of the pin table as well')
    return parser.parse_args(arguments)


def _chosen(names: List[str], pins: Dict[str, Pin]) -> List[Pin]:
    for name in names:
        if name not in pins:
            raise console.UserError(f'no upstream {name!r} in the pin table', f'known: {", ".join(pins)}', 2)
    return [pin for name, pin in pins.items() if not names or name in names]


def _git_urls(options: List[str], pins: Dict[str, Pin]) -> Dict[str, List[str]]:
    urls: Dict[str, List[str]] = {}
    for option in options:
        name, _, url = option.partition('=')
        if name not in pins or not url:
            raise console.UserError(f'--git_url {option}: give NAME=URL, NAME one of {", ".join(pins)}', status=2)
        urls.setdefault(name, []).append(url)
    return urls


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; see the module's docstring.

    Returns:
        Exit status: 1 if check found a fault.
    """
    args = parse(arguments)
    git.require_git()
    root = args.root.resolve()
    all_pins = upstream_pins.load(root)
    pins = _chosen(args.names, all_pins)
    if args.command == 'fetch':
        upstream_fetch.fetch(root, pins, args.origin, _git_urls(args.git_url, all_pins), args.wait)
    elif args.command == 'apply':
        with upstream_fetch.lock(root):
            for pin in pins:
                console.say(apply(root, pin))
    elif args.command == 'rebase':
        if not re.fullmatch('[0-9a-f]{40}', args.commit):
            raise console.UserError(f'{args.commit!r} is not a commit', 'give its 40 hexadecimal digits', 2)
        with upstream_fetch.lock(root):
            console.say(_rebase(root, pins[0], args.commit, _git_urls(args.git_url, all_pins), args.wait))
    elif args.command == 'export':
        for pin in pins:
            console.say(export(root, pin))
    elif args.command == 'pristine':
        for folder in pristine.lay_out(root, {pin.name: pin for pin in pins}).values():
            console.say(str(folder))
    elif args.command == 'status':
        found = [inspect(root, pin) for pin in pins]
        if args.json:
            for line in json.dumps({one.pin.name: one.as_dict() for one in found}, indent=2).splitlines():
                console.say(line)
        else:
            for one in found:
                console.say(describe(one))
    else:
        urls = _git_urls(args.git_url, all_pins)
        faults = [fault for pin in pins for fault in check(root, pin, args.also, urls, args.wait)]
        for fault in faults:
            console.say(fault)
        if faults:
            return 1
        console.say(f'{", ".join(pin.patch for pin in pins)}: in order')
    return 0

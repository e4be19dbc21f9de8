"""Finds what is wrong with a patch file. Standard library and git only, Python 3.8 on."""

from __future__ import annotations

import email
import email.header
import email.message
import re
from typing import List

from recipe.upstream.git import GitError, Repo, scratch

MAX_SUBJECT = 72

_START = re.compile(rb'^From (?P<hash>[0-9a-f]{40}) Mon Sep 17 00:00:00 2001$', re.MULTILINE)
_HUNK = re.compile(rb'^(From [0-9a-f]{40} .*|diff --git .*|@@ -.*)\r$', re.MULTILINE)
_WHITESPACE = re.compile(r'^<stdin>:(\d+): (.+)\.$')
_TRAILER = re.compile(r'^[A-Z][A-Za-z-]+: \S')
_PLAIN_FILE = '100644'


def faults(name: str, source: Repo, base: str, series: bytes, same_bytes: bool = True) -> List[str]:
    """Find everything that is wrong with a patch file.

    Args:
        name: Name of the patch file; begins each fault.
        source: Checkout that holds the base; it is not changed.
        base: Commit that the patch belongs to.
        series: Content of the patch file.
        same_bytes: Whether exporting the applied commits must give the same bytes. On another base it does not: hashes
            and line numbers differ.

    Returns:
        One line for each fault; empty if there is none.
    """
    found = _text_faults(series)
    if not found:
        found += _message_faults(series)
        with scratch(source, base) as repo:
            found += _whitespace_faults(repo, series)
            found += _apply_faults(repo, base, series, same_bytes)
    return [f'{name}: {fault}' for fault in found]


def _text_faults(series: bytes) -> List[str]:
    """Faults that make all further checks useless."""
    converted = _HUNK.search(series)
    if converted:
        line = series.count(b'\n', 0, converted.start()) + 1
        return [f'line {line} ends in CRLF: an editor or git (core.autocrlf) converted the file; export it again']
    first = _START.search(series)
    if first is None or first.start() != 0:
        return ['not a series of commits as `upstream.py export` writes it (line 1 is not "From 0000…")']
    return []


def _message_faults(series: bytes) -> List[str]:
    found = []
    starts = [match.start() for match in _START.finditer(series)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(series)]), 1):
        first, _, rest = series[start:end].partition(b'\n')
        if set(first[5:45]) != set(b'0'):
            found.append(f'commit {number}: its hash {first[5:45].decode()} would change with every export')
        mail = email.message_from_bytes(rest)
        found += [f'commit {number}: {fault}' for fault in _mail_faults(mail)]
    return found


def _mail_faults(mail: email.message.Message) -> List[str]:
    found = []
    header = str(email.header.make_header(email.header.decode_header(mail.get('Subject', ''))))
    subject = re.sub(r'^\[PATCH\] ?', '', ' '.join(header.split()))
    if not subject:
        found.append('no subject')
    elif len(subject) > MAX_SUBJECT:
        found.append(f'the subject has {len(subject)} characters, at most {MAX_SUBJECT} are readable: {subject!r}')
    if not mail.get('From') or not mail.get('Date'):
        found.append('no author or no date')
    payload = mail.get_payload(decode=True)
    content = payload.decode('utf-8', 'replace') if isinstance(payload, bytes) else ''  # of a mail in several parts
    message = re.split(r'^(?:---$|diff --git )', content, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in message.splitlines() if line.strip() and not _TRAILER.match(line)]
    if not lines:
        found.append('no text below the subject: say why, on which devices, and when it can be dropped')
    return found


def _whitespace_faults(repo: Repo, series: bytes) -> List[str]:
    done = repo.run('apply', '--check', '--whitespace=error-all', '-', data=series, check=False)
    matches = (_WHITESPACE.match(line) for line in done.stderr.decode('utf-8', 'replace').splitlines())
    return [f'line {match.group(1)}: {match.group(2)}' for match in matches if match]


def _apply_faults(repo: Repo, base: str, series: bytes, same_bytes: bool) -> List[str]:
    done = repo.run('apply', '--check', '-', data=series, check=False)
    if done.returncode:
        said = [line.strip() for line in done.stderr.decode('utf-8', 'replace').splitlines() if line.strip()]
        return [f'git apply: {line}' for line in said]
    plain_tree = repo.tree_of(base, series)
    try:
        repo.am(series)
    except GitError as error:
        return [f'git am: {line}' for line in error.lines]
    found = []
    if repo.text('rev-parse', 'HEAD^{tree}') != plain_tree:
        found.append('git am and plain git apply make different files of it')
    found += _file_faults(repo, base)
    if same_bytes:
        found += _difference(series, repo.export(base, 'HEAD'))
    return found


def _file_faults(repo: Repo, base: str) -> List[str]:
    """Binary files, and file modes that a reader of the patch would not expect."""
    found = []
    for row in repo.lines('diff', '--numstat', '--no-renames', '-z', base, 'HEAD'):
        added, _, name = row.split('\t')
        if added == '-':
            found.append(f'{name}: a binary file')
    rows = repo.lines('diff', '--raw', '--no-renames', '--no-abbrev', '-z', base, 'HEAD')
    for info, name in zip(rows[::2], rows[1::2]):
        old, new = info.lstrip(':').split()[:2]
        if int(new, 8) and new != old and new != _PLAIN_FILE:
            found.append(f'{name}: mode {new} (a program, link or submodule) where plain {_PLAIN_FILE} was expected')
        elif int(old, 8) and int(new, 8) and new != old:
            found.append(f'{name}: mode changes from {old} to {new}')
    return found


def _difference(series: bytes, exported: bytes) -> List[str]:
    if series == exported:
        return []
    ours, theirs = series.split(b'\n'), exported.split(b'\n')
    number = next((i for i, (old, new) in enumerate(zip(ours, theirs)) if old != new), min(len(ours), len(theirs)))
    here, there = (lines[number] if number < len(lines) else b'' for lines in (ours, theirs))
    said = f'line {number + 1}: applied and exported again it differs: it holds {_shown(here)}, its commits give '
    said += f'{_shown(there)}; do not edit it by hand, export it'
    before = [re.match(rb'index ([0-9a-f]{40})\.\.', line) for line in (here, there)]
    if before[0] and before[1] and before[0].group(1) != before[1].group(1):
        # The first hash of an index line is the file's before the change.
        said += '. The file it changes is another one on this base: touch only files that git and the source '
        said += 'distribution have in common'
    return [said]


def _shown(line: bytes) -> str:
    return repr(line.decode('utf-8', 'replace'))

"""Proposes a split, by folder, scene or block of names, so that neighbouring pictures do not come into both parts."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import re
from typing import Callable, Dict, List, NamedTuple, Sequence, Set, Tuple

from recipe.data.sets.file import Split

SHARE = 0.2  # of the pairs, to validate on
_MOST_PATTERNS = 50
_TRIES = 50
# Number of a picture at the end of its name; the first group is the name of its scene.
_NUMBERED = re.compile(r'(.*?)\d+$')


class Proposal(NamedTuple):
    """A split into two, and its reason."""

    train: Split
    val: Split
    why: str


def propose(whole: Split, names: Sequence[str], classes_of: Dict[str, Set[int]]) -> Proposal:
    """Split the pairs of a set into two.

    Args:
        whole: The set.
        names: Names of its pairs, two or more, sorted.
        classes_of: Classes in some of the pairs, by name. Both parts shall have as many as possible.
    """
    for what, group in (
        ('folder', _folder),
        ('scene, the name up to its last number', _scene),
        ('scene', _wider_scene),
    ):
        groups: Dict[str, List[str]] = {}
        for name in names:
            groups.setdefault(group(name), []).append(name)
        if 2 <= len(groups) <= len(names) / 2:
            chosen = _choose(groups, classes_of)
            patterns = tuple(_pattern(key, group) for key in sorted(chosen))
            if len(patterns) <= _MOST_PATTERNS:
                train, val = dataclasses.replace(whole, without=patterns), dataclasses.replace(whole, only=patterns)
                why = f'{len(chosen)} of {len(groups)} groups by {what} validate, so that neighbours do not leak'
                return Proposal(train, val, why)
    first = names[-max(1, round(SHARE * len(names)))]
    train, val = dataclasses.replace(whole, before=first), dataclasses.replace(whole, first=first)
    return Proposal(
        train,
        val,
        'there are no scenes, so the last fifth by name validates, as one block, so that few neighbours leak',
    )


def _folder(name: str) -> str:
    return name.rpartition('/')[0] + '/'


def _scene(name: str) -> str:
    match = _NUMBERED.match(name)
    return match[1] if match else name


def _wider_scene(name: str) -> str:
    return _scene(_scene(name).rstrip('_-. '))


def _pattern(key: str, group: Callable[[str], str]) -> str:
    return glob.escape(key) + ('*' if group is _folder else '[0-9]*')


def _choose(groups: Dict[str, List[str]], classes_of: Dict[str, Set[int]]) -> Set[str]:
    """Groups of about a fifth of the pairs: of many choices the one with which both parts hold the most classes."""
    total = sum(map(len, groups.values()))

    def classes(keys: Set[str]) -> Set[int]:
        return set().union(*(classes_of.get(name, set()) for key in keys for name in groups[key]))

    best: Tuple[float, Set[str]] = (-1.0, set())
    for attempt in range(_TRIES):
        order = sorted(groups, key=lambda key: hashlib.sha256(f'{attempt} {key}'.encode()).hexdigest())
        chosen, count = {order[0]}, len(groups[order[0]])
        for key in order[1:-1]:
            if count + len(groups[key]) / 2 > SHARE * total:
                break
            chosen.add(key)
            count += len(groups[key])
        left = set(groups) - chosen
        # A class that the training lacks counts most, then one that the validation lacks, then the size.
        score = 1e6 * len(classes(left)) + 1e3 * len(classes(chosen)) - abs(count / total - SHARE)
        if score > best[0]:
            best = (score, chosen)
    return best[1]

"""Checks that the checkouts are the patched ones: a training must run on known sources."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Optional

from recipe.core import console
from recipe.core.paths import ROOT
from recipe.upstream import pins, state


def require_patched(root: Path = ROOT) -> Dict[str, Dict[str, Optional[str]]]:
    """Stop if a checkout is missing, unpatched or edited. Further commits on top are accepted and named.

    Args:
        root: Folder of the checkouts and the patch files.

    Returns:
        ``origin``, ``base`` and ``head`` (commits) of each checkout.

    Raises:
        console.UserError: Names the checkout, what is wrong and what to do.
    """
    os.environ['GIT_OPTIONAL_LOCKS'] = '0'  # reading must change nothing, not even git's index
    found = {}
    for name, pin in pins.load(root).items():
        checkout = state.inspect(root, pin)
        if checkout.state == state.FOREIGN and checkout.commits:
            console.warn(f'{checkout.repo.path}: {checkout.trouble()}')
        elif checkout.state not in (state.PATCHED, state.BY_HAND):
            raise console.UserError(_what_to_do(checkout))
        found[name] = {'origin': checkout.origin, 'base': checkout.base, 'head': checkout.head}
    return found


def _what_to_do(checkout: state.Checkout) -> str:
    path, name = checkout.repo.path, checkout.pin.name
    if checkout.state == state.MISSING:
        return f'{path} is missing; run: python tools/upstream.py fetch {name} && python tools/upstream.py apply {name}'
    if checkout.state in (state.BASE, state.OUTDATED):
        what = 'is not patched' if checkout.state == state.BASE else f'has an older {checkout.pin.patch} applied'
        return f'{path} {what}; run: python tools/upstream.py apply {name}'
    return f'{path}: {checkout.trouble()}; commit the edits there or take them out, then start again'

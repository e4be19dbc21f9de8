"""Checks of files and folders that a user names. Standard library only."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Optional

from recipe.core import console
from recipe.core.paths import ROOT

DEFAULT_CITYSCAPES = ROOT / 'mmsegmentation' / 'data' / 'cityscapes'
LAYOUT = ('leftImg8bit', 'gtFine')  # top folders of a Cityscapes root


def absolute(given: str) -> Path:
    """A user's path, made absolute and free of ``..``."""
    return Path(os.path.abspath(Path(given).expanduser()))  # noqa: PTH100  resolve() would rename links


def require_cityscapes(given: Optional[str]) -> Path:
    """Find the Cityscapes root; only its two top folders are checked here.

    Args:
        given: Value of ``--data_path``, or None for the default place.

    Returns:
        The root, absolute.

    Raises:
        console.UserError: Names the folder, what it lacks and, if one is nearby, the right folder.
    """
    root = absolute(given) if given is not None else DEFAULT_CITYSCAPES
    lacking = [f'{name}/' for name in LAYOUT if not (root / name).is_dir()]
    if not lacking:
        return root
    if root.exists() and not root.is_dir():
        raise console.UserError(f'--data_path: {root} is a file', 'give the folder that holds leftImg8bit/ and gtFine/')
    if not root.is_dir():
        what = 'there is no Cityscapes at' if given is None else '--data_path: there is no folder'
        raise console.UserError(
            f'{what} {root}',
            'give --data_path=DIR, the folder that holds leftImg8bit/ and gtFine/, '
            'or try --demo, which needs no data set',
        )
    hint = 'give the folder that holds leftImg8bit/ and gtFine/'
    nearby = [path for path in (root.parent, *sorted(root.iterdir())) if all((path / name).is_dir() for name in LAYOUT)]
    if nearby:
        hint = f'give --data_path={nearby[0]}'
    elif any(root.glob('*.zip')):
        hint = (
            f'unpack and convert the archives: python tools/cityscapes.py prepare --data_path {shlex.quote(str(root))}'
        )
    raise console.UserError(f'--data_path: {root} holds no {" and no ".join(lacking)}', hint)


def require_file(option: str, given: str, suffix: str = '') -> Path:
    """Check that an option names a readable file.

    Args:
        option: Name of the option, for the message.
        given: Path as the user gave it.
        suffix: Required end of the name.

    Returns:
        The path, absolute.

    Raises:
        console.UserError: Names the option and the path.
    """
    path = absolute(given)
    if path.is_dir():
        raise console.UserError(f'{option}: {path} is a folder', 'give a file')
    if not path.is_file():
        raise console.UserError(f'{option}: there is no file {path}', 'check the path')
    if not path.name.endswith(suffix):
        raise console.UserError(f'{option}: {path} does not end with {suffix}', 'give a file that does')
    try:
        with path.open('rb') as opened:
            empty = not opened.read(1)
    except OSError as error:
        raise console.UserError(f'{option}: cannot read {path}: {error.strerror}', 'check its permissions') from None
    if empty:
        raise console.UserError(f'{option}: {path} is empty', 'bring the file again')
    return path

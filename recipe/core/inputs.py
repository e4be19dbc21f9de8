"""Checks of what a user names: files, folders, numbers. Standard library only."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Callable, Optional

from recipe.core import console
from recipe.core.paths import ROOT

DEFAULT_CITYSCAPES = ROOT / 'mmsegmentation' / 'data' / 'cityscapes'


def absolute(given: str) -> Path:
    """A user's path, made absolute and free of ``..``."""
    return Path(os.path.abspath(Path(given).expanduser()))  # noqa: PTH100  resolve() would rename links


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
        raise console.UserError(
            f'{option}: cannot read {path}: {console.reason(error)}', 'check its permissions'
        ) from None
    if empty:
        raise console.UserError(f'{option}: {path} is empty', 'bring the file again')
    return path


def integer(least: int, most: Optional[int] = None) -> Callable[[str], int]:
    """A type of argparse: whole numbers from ``least`` to ``most``; None means no upper limit but 18 digits."""
    wanted = f'a whole number from {least} ' + ('on' if most is None else f'to {most}')

    def read(text: str) -> int:
        if not re.fullmatch(r'[+-]?[0-9]{1,18}', text):
            raise argparse.ArgumentTypeError(f'{text!r} is not {wanted}')
        if int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f'{text} is out of range; give {wanted}')
        return int(text)

    return read

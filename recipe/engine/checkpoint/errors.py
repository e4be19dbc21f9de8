"""Errors of checkpoint files."""

import pickle

_LONGEST_REASON = 1000  # characters


class CheckpointError(RuntimeError):
    """A checkpoint file that cannot be used.

    Args:
        path (str): The file.
        reason (str): What is wrong with it. Characters that are not printable are replaced, because the file may have
            provided part of the text.
    """

    def __init__(self, path: str, reason: str) -> None:
        reason = one_line(reason)
        super().__init__(f'{path}: {reason}')
        self.path = path
        self.reason = reason


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint file could run code, and the user has not allowed that."""


class RefusedError(pickle.UnpicklingError):
    """A file holds something that no checkpoint needs."""


def one_line(text: str) -> str:
    """Replace unprintable characters and cut the text at 1000, so that it can be shown in one line."""
    text = ''.join(char if char.isprintable() else '?' for char in str(text))
    if len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON] + '...'
    return text

"""What can be wrong with a checkpoint file."""

import pickle

_LONGEST_REASON = 1000  # characters


class CheckpointError(RuntimeError):
    """A checkpoint file that cannot be used.

    Args:
        path (str): The file.
        reason (str): What is wrong with it. Line breaks and what a terminal
            would not print are replaced, since part of it may come from the
            file.
    """

    def __init__(self, path: str, reason: str) -> None:
        reason = one_line(reason)
        super().__init__(f'{path}: {reason}')
        self.path = path
        self.reason = reason


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint file that could run code, which was not allowed."""


class RefusedError(pickle.UnpicklingError):
    """Something in a file that no checkpoint needs."""


def one_line(text: str) -> str:
    """Make text that may come from a file fit to be shown in one line."""
    text = ''.join(char if char.isprintable() else '?' for char in str(text))
    if len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON] + '...'
    return text

"""Samples that cannot be read, and which file it is."""

import errno
from contextlib import contextmanager
from typing import Any, Iterator, Optional

# Failures of the machine, not of a file.
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)


class UnreadableSampleError(ValueError):
    """An image or its labels cannot be read.

    Args:
        message (str): Names the file. A loader process hands on the whole
            traceback instead, of which the message is kept.
    """

    def __init__(self, message: str) -> None:
        mark = f'{type(self).__name__}: '
        super().__init__(message.rpartition(mark)[2].strip())


@contextmanager
def naming_the_file(dataset: Any, index: int) -> Iterator[None]:
    """Say which file it is where a sample cannot be read.

    Args:
        dataset (Any): With ``get_data_info``, as mmengine's data sets have.
        index (int): Of the sample that the block reads.

    Raises:
        UnreadableSampleError: In place of what the loading transforms raise.
    """
    try:
        yield
    except UnreadableSampleError:
        raise  # named already
    except (OSError, ValueError) as e:
        if getattr(e, 'errno', None) in _NOT_THE_FILE:
            raise
        raise UnreadableSampleError(_fault(dataset, index, e)) from None


def _fault(dataset: Any, index: int, error: Exception) -> str:
    """Say in one line which file is wrong, and how."""
    info = dataset.get_data_info(index)
    paths = [str(info[key]) for key in ('img_path', 'seg_map_path') if info.get(key)]
    named: Optional[str] = getattr(error, 'filename', None)
    reason = getattr(error, 'strerror', None) or str(error)
    if named is not None:
        return f'cannot read {named}: {reason}'
    if any(path in reason for path in paths):
        return reason
    return f'cannot read {" or ".join(paths)}: {reason}'

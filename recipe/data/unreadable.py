"""Errors of samples that cannot be read; they name the file."""

import errno
from contextlib import contextmanager
from typing import Any, Iterator, Optional

from mmseg.registry import DATASETS

from recipe.core import console

# Failures of the machine, not of a file.
_FAILURES_OF_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)


class UnreadableSampleError(ValueError):
    """An image or its labels cannot be read.

    Args:
        message: Names the file. torch raises a loader process's error again with the whole traceback as its message;
            only
            the original message is kept.
    """

    def __init__(self, message: str) -> None:
        mark = f'{type(self).__name__}: '
        super().__init__(message.rpartition(mark)[2].strip())


@contextmanager
def naming_the_file(dataset: Any, index: int) -> Iterator[None]:
    """Turn an error of reading a sample into one that names the file.

    Args:
        dataset: A data set with ``get_data_info``, as mmengine's have.
        index: Index of the sample that the block reads.

    Raises:
        UnreadableSampleError: Replaces the error of the loading transforms.
    """
    try:
        yield
    except UnreadableSampleError:
        raise  # already names the file
    except (OSError, ValueError) as error:
        info = getattr(dataset, 'get_data_info', None)
        if info is None or getattr(error, 'errno', None) in _FAILURES_OF_MACHINE:
            raise
        raise UnreadableSampleError(_describe(info(index), error)) from None


def _describe(info: dict, error: Exception) -> str:
    """Say in one line which file is wrong, and how."""
    paths = [str(info[key]) for key in ('img_path', 'seg_map_path') if info.get(key)]
    named: Optional[str] = getattr(error, 'filename', None)
    reason = console.reason(error)
    if named is not None:
        return f'cannot read {named}: {reason}'
    if any(path in reason for path in paths):
        return reason
    return f'cannot read {" or ".join(paths)}: {reason}'


@DATASETS.register_module()
class FileNamingDataset:
    """A data set whose errors name the file.

    Everything else is forwarded to the wrapped data set.

    Args:
        dataset: Config of the data set.

    Raises:
        UnreadableSampleError: By indexing, if a sample cannot be read.
    """

    def __init__(self, dataset: dict) -> None:
        self.dataset = DATASETS.build(dataset)

    def __getattr__(self, name: str) -> Any:
        # Special methods are not forwarded: torch looks for __getitems__, which would bypass __getitem__, and
        # unpickling asks for __setstate__ before there is a data set to forward to.
        if name.startswith('__') or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with naming_the_file(self.dataset, index):
            return self.dataset[index]

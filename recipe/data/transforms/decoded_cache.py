"""Pictures kept decoded beside the data set, to be mapped into memory."""

import json
import math
import mmap
import os
import os.path as osp
from typing import NamedTuple, Optional, Tuple

import numpy as np

SUFFIX = '.pixels'
PAGE = 4096  # the pixels begin on a page of their own, behind the header
_FORMAT = 1


class SourceState(NamedTuple):
    """By which a change of a source file is noticed.

    Attributes:
        size (int): Bytes.
        mtime_ns (int): Time of the last change in nanoseconds.
    """

    size: int
    mtime_ns: int


def source_state(path: str) -> SourceState:
    """Look at a source file.

    Raises:
        OSError: If there is none.
    """
    status = os.stat(path)
    return SourceState(status.st_size, status.st_mtime_ns)


def write_entry(path: str, pixels: np.ndarray, state: SourceState) -> None:
    """Write one decoded picture. The name should be one that no reader knows.

    Args:
        path (str): Where to; whoever calls renames it when it is whole.
        pixels (np.ndarray): uint8, shape (H, W) or (H, W, 3) in the order
            BGR, as the loading transforms deliver it.
        state (SourceState): Of the file it was decoded from, looked at before
            it was decoded.
    """
    header = json.dumps(dict(format=_FORMAT, shape=pixels.shape, source=state)).encode()
    with open(path, 'wb') as f:
        f.write(header.ljust(PAGE, b'\n'))
        f.write(np.ascontiguousarray(pixels).data)
        f.flush()
        os.fsync(f.fileno())


def read_entry(path: str) -> Tuple[np.ndarray, SourceState]:
    """Map one decoded picture into memory.

    Returns:
        tuple: The pixels, read-only, and the state of the file they were
        decoded from.

    Raises:
        OSError: If there is no such entry.
        ValueError: If it is damaged or of another format.
    """
    with open(path, 'rb') as f:
        header = f.read(PAGE)
        try:
            found = json.loads(header.rstrip())
            if found['format'] != _FORMAT:
                raise ValueError(f'format {found["format"]}')
            shape, state = found['shape'], SourceState(*found['source'])
            if os.fstat(f.fileno()).st_size != PAGE + math.prod(shape):
                raise ValueError('its size is not that of its pixels')
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f'damaged decoded picture {path}: {e}') from None
        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8, offset=PAGE).reshape(shape), state


class DecodedCache:
    """Decoded pictures of a data set.

    Args:
        folder (str): Where they are kept: one file for each picture, under
            the path that this has below ``data_root``.
        data_root (str): The data set.
    """

    def __init__(self, folder: str, data_root: str) -> None:
        self.folder = folder
        self.data_root = data_root
        self._prefix = osp.join(data_root, '')

    def entry_path(self, source: str) -> str:
        """Where the decoded picture of a source file is kept.

        Raises:
            ValueError: If the source does not lie below ``data_root``.
        """
        if source.startswith(self._prefix) and '..' not in source:
            below = source[len(self._prefix) :]
        else:
            below = osp.relpath(source, self.data_root)
        if below.startswith(osp.pardir):
            raise ValueError(f'{source} does not lie below {self.data_root}, whose decoded pictures are to be used')
        return osp.join(self.folder, below + SUFFIX)

    def fault(self, source: str) -> Optional[str]:
        """What keeps an entry from being used.

        Returns:
            str, optional: None where the entry is good.
        """
        try:
            self._open(source)
        except FileNotFoundError:
            return 'is not there'
        except (OSError, ValueError) as e:
            return str(e)
        return None

    def get(self, source: str) -> Optional[np.ndarray]:
        """The pixels of a source file.

        Args:
            source (str): Path of the picture.

        Returns:
            np.ndarray, optional: uint8, read-only, mapped into memory. None
            where it was not decoded beforehand.

        Raises:
            ValueError: If the entry is damaged, or the source file has
                changed since it was made.
        """
        try:
            return self._open(source)
        except FileNotFoundError:
            return None

    def _open(self, source: str) -> np.ndarray:
        pixels, state = read_entry(self.entry_path(source))
        if state != source_state(source):
            raise ValueError(f'{source} has changed since it was decoded')
        return pixels

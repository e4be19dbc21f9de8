"""A cache of decoded pictures on disk, which are mapped into memory."""

import json
import math
import mmap
import os
import os.path as osp
from typing import NamedTuple, Optional, Tuple

import numpy as np

from recipe.core import json_files

SUFFIX = '.pixels'
PAGE = 4096  # bytes of the header, so that the pixels begin on a page boundary
_FORMAT = 1
_LONGEST = 1 << 20  # pixels along a side


class SourceState(NamedTuple):
    """Size and time of a source file; if one differs, the file has changed.

    Attributes:
        size (int): Size in bytes.
        mtime_ns (int): Time of the last change in nanoseconds since 1970.
    """

    size: int
    mtime_ns: int


def source_state(path: str) -> SourceState:
    """Read the size and time of a source file.

    Raises:
        OSError: There is no such file.
    """
    status = os.stat(path)
    return SourceState(status.st_size, status.st_mtime_ns)


def write_entry(path: str, pixels: np.ndarray, state: SourceState) -> None:
    """Write one decoded picture under a temporary name.

    Args:
        path (str): The file to write; no reader must know its name. The caller renames it afterwards.
        pixels (np.ndarray): uint8, shape (H, W) or (H, W, 3) in BGR order, as the loading transforms return it.
        state (SourceState): State of the source file, read before it was decoded.
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
        tuple: The pixels (uint8, read-only, shape (H, W) or (H, W, 3)) and the state of their source file.

    Raises:
        OSError: There is no such entry.
        ValueError: It is damaged or has another format.
    """
    with open(path, 'rb') as f:
        header = f.read(PAGE)
        try:
            found = json_files.parse(header.rstrip(), dict)
            if found['format'] != _FORMAT:
                raise ValueError('it has another format')
            shape = [json_files.whole_number(side, 1, _LONGEST) for side in found['shape']]
            state = SourceState(*found['source'])
            if not 2 <= len(shape) <= 3 or os.fstat(f.fileno()).st_size != PAGE + math.prod(shape):
                raise ValueError('its size is not that of its pixels')
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f'damaged decoded picture {path}: {e}') from None
        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8, offset=PAGE).reshape(shape), state


class DecodedCache:
    """Decoded pictures of a data set.

    Args:
        folder (str): Folder of the cache. It has one file for each picture, with the picture's path below ``data_root``
            and a suffix.
        data_root (str): Root folder of the data set.
    """

    def __init__(self, folder: str, data_root: str) -> None:
        self.folder = folder
        self.data_root = data_root
        self._prefix = osp.join(data_root, '')

    def entry_path(self, source: str) -> str:
        """Path of the cache file of a source file.

        Raises:
            ValueError: The source file is not below ``data_root``.
        """
        if source.startswith(self._prefix) and '..' not in source:
            below = source[len(self._prefix) :]
        else:
            below = osp.relpath(source, self.data_root)
        if below.startswith(osp.pardir):
            raise ValueError(f'{source} does not lie below {self.data_root}, whose decoded pictures are to be used')
        return osp.join(self.folder, below + SUFFIX)

    def fault(self, source: str) -> Optional[str]:
        """Why the entry of a source file cannot be used.

        Returns:
            str, optional: The reason, None if it can be used.
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
            np.ndarray, optional: uint8, shape (H, W) or (H, W, 3) in BGR order, read-only, mapped into memory. None if
            there is no entry.

        Raises:
            ValueError: The entry is damaged, or the source file has changed since it was made.
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

"""Says why a file is no picture that can be read, and what to do. Shared by all checks of data sets."""

from __future__ import annotations

import contextlib
import os
import shlex
import struct
import zlib
from pathlib import Path
from typing import Iterator, Union

from recipe.core import console

_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError, IndexError),
    *(struct.error, zlib.error),
)


class PictureError(ValueError):
    """A file is no picture of the kind that is needed; the message says why and what to do, without the path."""


@contextlib.contextmanager
def described(data: bytes, path: Union[str, Path] = 'FILE') -> Iterator[None]:
    """Turn what Pillow raises for a file into a ``PictureError``.

    Args:
        data: The file's content.
        path: The file, for the command that mends it.
    """
    from PIL import Image

    try:
        yield
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        begin = f'no picture begins with {data[:12]!r}'
        raise PictureError(f'damaged or truncated picture ({begin}); copy or unpack it again') from None
    except Image.DecompressionBombError as error:
        raise PictureError(f'has too many pixels ({error}); make it smaller') from None
    except _ERRORS as error:
        if 'MAX_TEXT' in str(error):  # Pillow's limits of the text in a PNG file
            raise PictureError(
                'the picture is whole, but holds more text (metadata) than Pillow reads; '
                f'remove the text: exiftool -all= {shlex.quote(str(path))}'
            ) from None
        reason = console.reason(error)
        raise PictureError(f'damaged or truncated picture ({reason}); copy or unpack it again') from None


def content(path: str) -> bytes:
    """Read a file.

    Raises:
        PictureError: It cannot be read, or is empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        if Path(path).is_symlink() and not Path(path).exists():
            raise PictureError(f'broken symbolic link to {os.readlink(path)}; mend the link or copy the file') from None
        raise PictureError(f'cannot be read ({console.reason(error)}); check its permissions and the disk') from None
    if not data:
        raise PictureError('empty file (0 bytes); copy or unpack it again')
    return data

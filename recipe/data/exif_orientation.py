"""Whether a picture is stored in another orientation than it is to be shown in, as its EXIF data says."""

from __future__ import annotations

import contextlib
import struct
import warnings
from typing import Any, Optional

TAG = 0x0112
_TURNED = range(2, 9)  # 1 is upright; what is outside of 1 to 8 means nothing
_PREFIX = b'Exif\0\0'


def turned(picture: Any) -> Optional[int]:
    """The orientation of a picture that is not stored upright, None of one that is.

    Args:
        picture: Of Pillow, loaded whole: a PNG file may hold its EXIF data behind the pixels.
    """
    for value in (_as_opencv_reads(picture.info.get('exif') or b''), _as_pillow_reads(picture)):
        if value in _TURNED:
            return value
    return None


def _as_opencv_reads(exif: bytes) -> Optional[int]:
    """The orientation that OpenCV finds: 16 bits, whatever type the entry says, and also where the rest is cut off."""
    exif = exif[len(_PREFIX) :] if exif.startswith(_PREFIX) else exif
    order = {b'II': '<', b'MM': '>'}.get(exif[:2])
    with contextlib.suppress(struct.error):
        if order:
            (start,) = struct.unpack_from(f'{order}I', exif, 4)
            (count,) = struct.unpack_from(f'{order}H', exif, start)
            for entry in range(start + 2, start + 2 + 12 * count, 12):
                if struct.unpack_from(f'{order}H', exif, entry)[0] == TAG:
                    return struct.unpack_from(f'{order}H', exif, entry + 8)[0]
    return None


def _as_pillow_reads(picture: Any) -> Optional[int]:
    """The orientation that most programs find, also in what ImageMagick and Adobe write in place of EXIF data."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # damaged EXIF data says nothing
        warnings.simplefilter('ignore')
        return picture.getexif().get(TAG)
    return None

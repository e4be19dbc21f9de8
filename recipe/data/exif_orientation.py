"""Detects pictures whose EXIF data asks for another orientation than the stored one."""

from __future__ import annotations

import contextlib
import struct
import warnings
from typing import Any, Optional

TAG = 0x0112
_TURNED = range(2, 9)  # 1 is upright; values outside of 1 to 8 mean nothing
_PREFIX = b'Exif\0\0'


def turned(picture: Any) -> Optional[int]:
    """The orientation of a picture that is not stored upright; None if it is upright.

    Args:
        picture: A Pillow image, loaded whole: a PNG file may hold its EXIF data after the pixels.
    """
    for value in (_as_opencv_reads(picture.info.get('exif') or b''), _as_pillow_reads(picture)):
        if value in _TURNED:
            return value
    return None


def _as_opencv_reads(exif: bytes) -> Optional[int]:
    """The orientation that OpenCV finds: 16 bits, whatever the entry's type, even if the rest is cut off."""
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
    """The orientation that most programs find; it may also be in ImageMagick's or Adobe's metadata instead of EXIF."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # damaged EXIF data counts as none
        warnings.simplefilter('ignore')
        return picture.getexif().get(TAG)
    return None

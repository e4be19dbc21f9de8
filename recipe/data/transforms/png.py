"""Decodes the first rows of a PNG file with the decoder of kornia-rs, if it is installed."""

import struct
import zlib
from typing import NamedTuple, Optional

import numpy as np

try:
    from kornia_rs.io import decode_image_png_u8
except ImportError:  # not installed, or an older kornia-rs without this module
    decode_image_png_u8 = None

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# Chunks that hold the pixels or do not change them. Files with other chunks, such as a palette, a transparent colour or
# an orientation, are left to OpenCV.
_HARMLESS = {
    b'IHDR',
    b'IDAT',
    b'IEND',
    b'cHRM',
    b'gAMA',
    b'sBIT',
    b'sRGB',
    b'iCCP',
    b'pHYs',
    b'tIME',
    b'tEXt',
    b'zTXt',
    b'iTXt',
    b'bKGD',
}
_chunk_head = struct.Struct('>I4s').unpack_from  # length and type
_CHANNELS = {0: 1, 2: 3}  # of PNG's colour types grey and RGB
_HEADER = slice(12, 29)  # type and contents of the first chunk


class PngHeader(NamedTuple):
    """Size and channels of a PNG file.

    Attributes:
        height (int): Rows.
        width (int): Columns.
        channels (int): 1 (grey) or 3 (RGB).
    """

    height: int
    width: int
    channels: int


def read_header(data: bytes) -> Optional[PngHeader]:
    """Read the header of a file that :func:`decode_rows` can decode.

    Args:
        data (bytes): The file.

    Returns:
        PngHeader, optional: None if it is not a PNG file in grey or RGB with 8 bits per channel, or if it is interlaced
        or has chunks that may change the pixels.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b'IHDR' or len(data) < 33:
        return None
    width, height, depth, color, _, _, interlace = struct.unpack('>IIBBBBB', data[16:29])
    if depth != 8 or color not in _CHANNELS or interlace:
        return None
    has_pixels, position, last = False, 8, len(data) - 8
    # Read to the end of the file, because an orientation may follow the pixels.
    while position <= last:
        length, kind = _chunk_head(data, position)
        if kind not in _HARMLESS:
            return None
        has_pixels |= kind == b'IDAT'
        position += 12 + length
    if not has_pixels:
        return None
    return PngHeader(height, width, _CHANNELS[color])


def decode_rows(data: bytes, rows: int) -> Optional[np.ndarray]:
    """Decode the first rows of a PNG file.

    A PNG file holds its rows in one compressed stream, so the time is proportional to the number of rows. The decoder
    gets a changed header with the wanted number of rows, so that it stops after them.

    Args:
        data (bytes): The file.
        rows (int): Number of rows to decode, at most the height.

    Returns:
        np.ndarray, optional: uint8, shape (rows, W) for a grey picture or (rows, W, 3) in RGB order for a coloured one.
        None if the package kornia-rs is not installed or :func:`read_header` returns None.

    Raises:
        ValueError: The file is damaged within these rows.
    """
    header = read_header(data) if decode_image_png_u8 is not None else None
    if header is None:
        return None
    if rows != header.height:
        chunk = bytearray(data[_HEADER])
        chunk[8:12] = struct.pack('>I', rows)
        check = struct.pack('>I', zlib.crc32(chunk))
        data = b''.join((data[:12], chunk, check, memoryview(data)[33:]))
    try:
        pixels = decode_image_png_u8(data, (rows, header.width), 'rgb' if header.channels == 3 else 'mono')
    except Exception as e:  # the class of the error differs between releases
        raise ValueError(f'damaged PNG file: {e}') from None
    return pixels if header.channels == 3 else pixels[..., 0]

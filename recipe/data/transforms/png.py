"""Decoding the first rows of a PNG file, with a faster decoder if there is."""

import struct
import zlib
from typing import NamedTuple, Optional

import numpy as np

try:
    from kornia_rs.io import decode_image_png_u8
except ImportError:  # an older kornia-rs has it elsewhere
    decode_image_png_u8 = None

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# Chunks that hold the pixels or change none of them. Another one, such as a
# palette, a transparent colour or an orientation, is left to OpenCV.
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
    """What the beginning of a PNG file says.

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
        PngHeader, optional: None where it is no PNG, or not one of 8 bits a
        channel in grey or RGB, row by row and without further instructions.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b'IHDR' or len(data) < 33:
        return None
    width, height, depth, color, _, _, interlace = struct.unpack('>IIBBBBB', data[16:29])
    if depth != 8 or color not in _CHANNELS or interlace:
        return None
    has_pixels, position, last = False, 8, len(data) - 8
    # to the end of the file: an orientation may follow the pixels
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

    A PNG holds its rows in one compressed stream from the first to the last,
    so the time goes with the number of rows. The decoder is told to stop by a
    header that claims no more rows than are wanted.

    Args:
        data (bytes): The file.
        rows (int): How many rows are wanted, at most those there are.

    Returns:
        np.ndarray, optional: uint8, shape (rows, W) of a grey picture or
        (rows, W, 3) of a coloured one in the order RGB. None where the
        package kornia-rs is not installed or the file is not one of those
        that :func:`read_header` reads.

    Raises:
        ValueError: If the file is damaged within these rows.
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
    except Exception as e:  # whatever class it has in this release
        raise ValueError(f'damaged PNG file: {e}') from None
    return pixels if header.channels == 3 else pixels[..., 0]

"""PNG files that say in which orientation they are to be shown, written in every way that some program reads."""

from __future__ import annotations

import struct
import zlib
from typing import Dict

HEADER_END = 33  # signature and first chunk
END_SIZE = 12  # the last chunk


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def exif(value: int, order: str = '>', kind: int = 3, count: int = 1) -> bytes:
    """EXIF data with an orientation; kind is TIFF's number of a type: 1 a byte, 3 of 16 bits, 4 of 32 bits."""
    packed = struct.pack(order + {1: 'B', 3: 'H', 4: 'I'}[kind], value).ljust(4, b'\0')
    head = b'II*\0' if order == '<' else b'MM\0*'
    return (
        head + struct.pack(order + 'IH', 8, 1) + struct.pack(order + 'HHI', 0x0112, kind, count) + packed + b'\0\0\0\0'
    )


def after_header(png: bytes, *chunks: bytes) -> bytes:
    return png[:HEADER_END] + b''.join(chunks) + png[HEADER_END:]


def after_pixels(png: bytes, *chunks: bytes) -> bytes:
    return png[:-END_SIZE] + b''.join(chunks) + png[-END_SIZE:]


def all_ways(png: bytes, value: int = 6) -> Dict[str, bytes]:
    """The file with an orientation added, by how it is added."""
    profile = b'\nexif\n%8d\n' % (len(exif(value)) + 6) + (b'Exif\0\0' + exif(value)).hex().encode() + b'\n'
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % value
    return {
        'before the pixels': after_header(png, chunk(b'eXIf', exif(value))),
        'behind the pixels': after_pixels(png, chunk(b'eXIf', exif(value))),
        'the bytes the other way round': after_header(png, chunk(b'eXIf', exif(value, '<'))),
        'of 32 bits': after_header(png, chunk(b'eXIf', exif(value, '<', kind=4))),
        'of 8 bits': after_header(png, chunk(b'eXIf', exif(value, '<', kind=1))),
        'two of them': after_header(png, chunk(b'eXIf', exif(value, '<', kind=4, count=2))),
        'cut off behind it': after_header(png, chunk(b'eXIf', exif(value)[:-4])),
        'as ImageMagick does': after_header(png, chunk(b'tEXt', b'Raw profile type exif\0' + profile)),
        'as ImageMagick does, packed': after_header(
            png, chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(profile))
        ),
        'as Adobe does': after_header(png, chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + xmp)),
    }

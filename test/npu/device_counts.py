"""What ran on the emulated device since the last reset: copies, waits and operators by name."""

from __future__ import annotations

import ctypes
from typing import Dict

_LIBRARY = 'libemulated_cann.so'


def reset() -> None:
    """Start counting anew."""
    ctypes.CDLL(_LIBRARY).emulator_reset_counts()


def read() -> Dict[str, int]:
    """Counts by name."""
    library = ctypes.CDLL(_LIBRARY)
    library.emulator_counts.restype = ctypes.c_size_t
    size = library.emulator_counts(None, ctypes.c_size_t(0)) + (1 << 16)
    buffer = ctypes.create_string_buffer(size)
    library.emulator_counts(buffer, ctypes.c_size_t(size))
    lines = (line.split(' ', 1) for line in buffer.value.decode().splitlines())
    return {name: int(count) for count, name in lines}

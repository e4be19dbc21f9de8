"""Makes checkpoint files that are not what they seem: for the tests of single faults and for fuzz_checkpoints.py."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, Callable, Tuple

import numpy as np
import torch


class Reduced:
    """Pickles as a call of a function, and what BUILD then gives to its result."""

    def __init__(self, function: Callable, args: tuple, *state: Any) -> None:
        self.reduced = (function, args, *state)

    def __reduce__(self) -> tuple:
        return self.reduced


def touching(trace: Path) -> Reduced:
    """An object whose unpickling leaves a file."""
    return Reduced(exec, (f'open({str(trace)!r}, "w")',))


def numpy_type(state: tuple, name: str = 'V8') -> Reduced:
    """A numpy type with a state of its own."""
    return Reduced(np.dtype, (name, False, True), state)


def numpy_faults() -> dict:
    """Arrays and numbers with which numpy follows pointers out of the file, by name."""
    scalar, rebuild = np.empty(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    pointer = numpy_type((3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 0))
    outside = numpy_type((3, '|', None, ('a',), {'a': (np.dtype('f8'), 1 << 30)}, 8, 1, 16))
    empty = (np.ndarray, (0,), b'b')
    return {
        'number with a pointer': Reduced(scalar, (pointer, b'\x41' * 8)),
        'array of pointers': Reduced(rebuild, empty, (1, (1,), pointer, False, b'\x41' * 8)),
        'field out of bounds': Reduced(scalar, (outside, b'\x41' * 8)),
        'array of objects': np.array([{}, None], dtype=object),
        'object type': np.dtype('O'),
        'type with fields': np.dtype([('a', 'f8'), ('b', 'O')]),
        'strings': np.array(['a', 'b']),
        'less data than its shape': Reduced(rebuild, empty, (1, (1 << 40,), np.dtype('f8'), False, b'\x00' * 8)),
    }


def zipped(content: Any) -> bytes:
    """Bytes of a checkpoint as ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def records_of(content: bytes) -> dict:
    """Records of a zip, by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(records: dict, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of records."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return file.getvalue()


def with_pickle(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A checkpoint with another pickle, and checksums that fit."""
    records = records_of(content)
    (name,) = (name for name in records if name.endswith('/data.pkl'))
    return zip_of({**records, name: change(records[name])})


class _Program(torch.nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> Tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), state[0])

    def forward(self) -> str:
        return self.path


def program(trace: Path) -> bytes:
    """A TorchScript archive that leaves a file when it is loaded."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(_Program(str(trace))), file)
    return file.getvalue()


def _directory(content: bytes) -> Tuple[int, int, int]:
    """Number of records, length and place of a zip's directory."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.start_dir
        entries = len(archive.infolist())
    end = min(place for place in (content.rfind(b'PK\6\6', start), content.rfind(b'PK\5\6', start)) if place >= 0)
    return entries, end - start, start


def _wide_end(entries: int, length: int, start: int) -> bytes:
    return struct.pack('<4sQ2H2I4Q', b'PK\6\6', 44, 45, 45, 0, 0, entries, entries, length, start)


def with_two_ends(plain: bytes, hidden: bytes) -> bytes:
    """A zip with two zip64 ends: Python's reader finds the plain archive, torch's the hidden one.

    Python looks for the end in front of its locator; torch's reader goes where the locator points.
    """
    entries, length, start = _directory(hidden)
    file = io.BytesIO()
    file.write(hidden[: start + length])
    hidden_end = file.tell()
    file.write(_wide_end(entries, length, start))
    with zipfile.ZipFile(file, 'a') as archive:
        for name, record in records_of(plain).items():
            archive.writestr(name, record)
    both = file.getvalue()
    entries, length, start = _directory(both)
    return b''.join(
        (
            both[: start + length],
            _wide_end(entries, length, start),
            struct.pack('<4sIQI', b'PK\6\7', 0, hidden_end, 1),
            struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0),
        )
    )

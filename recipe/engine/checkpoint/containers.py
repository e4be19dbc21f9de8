"""Reads the two file formats of ``torch.save`` in Python.

``torch.load`` is not used, for three reasons. If an archive has two ends, its zip reader and Python's read different
ones. It runs TorchScript files. It checks neither checksums nor the lengths of storages. Here one reader checks and
loads through one file descriptor, so that the checked content is the loaded content.
"""

import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from typing import Any, BinaryIO, Callable, Dict, Optional, Sequence, Tuple

import torch

from recipe.engine.checkpoint.unpickler import RestrictedUnpickler, StorageType

ZIP_MAGIC = b'PK\x03\x04'
# First bytes of files that were written by torch before 1.6 or with _use_new_zipfile_serialization=False.
LEGACY_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
_BLOCK = 1 << 20  # bytes read at once; fits into the CPU's cache
_SMALL = 1 << 20  # bytes up to which an outline holds a tensor's values


class DamagedError(Exception):
    """A file differs from what ``torch.save`` writes."""


class ZipArchive:
    """The records of a checkpoint in zip format. Archives that are ambiguous are refused.

    Args:
        file (BinaryIO): Seekable.

    Raises:
        DamagedError: It is cut short, is a TorchScript program, or two zip readers could read it differently.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        try:
            archive = zipfile.ZipFile(file)
        # A damaged header can ask for any zip feature, so zipfile raises many kinds of errors.
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            ValueError,
            EOFError,
            struct.error,
            OverflowError,
            OSError,
        ) as e:
            raise DamagedError(f'is cut short or damaged ({e})') from e
        _require_one_end(file, size)
        infos = archive.infolist()
        names = [info.orig_filename for info in infos]
        if any(name.endswith('/constants.pkl') for name in names):
            raise DamagedError('is a TorchScript program')
        folded = {name.casefold() for name in names}
        folders = {name.partition('/')[0] for name in names}
        if len(folded) < len(names) or len(folders) > 1 or any('\0' in name for name in names):
            raise DamagedError('is damaged (records whose names are not those of one checkpoint)')
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise DamagedError(f'is not as torch.save writes it ({info.filename} is compressed or encrypted)')
        # If records overlapped, a small file could fill the memory.
        if sum(info.file_size for info in infos) > size:
            raise DamagedError('is damaged (its records hold more than it)')
        self._infos = {info.filename.partition('/')[2]: info for info in infos}
        self.names = list(self._infos)
        self._room = memoryview(bytearray(_BLOCK))

    def size(self, name: str) -> int:
        """Length of a record in bytes, -1 if there is none of that name."""
        info = self._infos.get(name)
        return -1 if info is None else info.file_size

    def check(self, name: str, target: Optional[memoryview] = None) -> None:
        """Read a record and compare it with its checksum.

        Args:
            name (str): Name of the record.
            target (memoryview, optional): Buffer of the record's length, filled with the content. Defaults to None.

        Raises:
            DamagedError: The content is cut short or differs from its checksum.
        """
        info = self._infos[name]
        self._go_to(info)
        checksum = 0
        for done in range(0, info.file_size, _BLOCK):
            size = min(_BLOCK, info.file_size - done)
            block = self._room[:size] if target is None else target[done : done + size]
            if self._file.readinto(block) != size:
                raise DamagedError(f'is cut short (within {name})')
            checksum = zlib.crc32(block, checksum)
        if checksum != info.CRC:
            raise DamagedError(f'is damaged (checksum of {name})')

    def _go_to(self, info: zipfile.ZipInfo) -> None:
        """Seek to the content of a record, after its local header."""
        self._file.seek(info.header_offset)
        header = self._file.read(30)
        if len(header) < 30 or header[:4] != ZIP_MAGIC:
            raise DamagedError(f'is damaged (no header of {info.filename})')
        name, extra = struct.unpack('<2H', header[26:])
        spelling = 'utf-8' if info.flag_bits & 0x800 else 'cp437'
        if self._file.read(name) != info.orig_filename.encode(spelling, 'replace'):
            raise DamagedError(f'is damaged (two names of {info.filename})')
        self._file.seek(extra, os.SEEK_CUR)

    def read(self, name: str) -> bytearray:
        """Return the content of a record; see :meth:`check`."""
        content = bytearray(self.size(name))
        self.check(name, memoryview(content))
        return content


def _require_one_end(file: BinaryIO, size: int) -> None:
    """Refuse an archive in which two zip readers could find different directories.

    The end record has to be the last bytes of the file. The zip64 records, if any, and the directory have to lie
    directly before it, at the offsets that the end record names.
    """
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b'\0')
    wide, locator, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b'PK\5\6' or end[20:] != b'\0\0':
        raise DamagedError('is damaged (something is behind its end)')
    (disk, first, here, entries, length, start) = struct.unpack('<4H2I', end[4:20])
    directory: Sequence[int] = (entries, length, start)
    begins = size - 22
    if locator[:4] == b'PK\6\7':
        begins = size - 98
        (kind, own, _, _, wide_disk, wide_first, wide_here, *directory) = struct.unpack('<4sQ2H2I4Q', wide)
        where = struct.unpack('<IQI', locator[4:])
        narrow = (min(value, most) for value, most in zip(directory, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)))
        if (
            kind != b'PK\6\6'
            or own != 44
            or where != (0, begins, 1)
            or (wide_disk, wide_first) != (0, 0)
            or wide_here != directory[0]
            or any(
                value not in (one, most)
                for value, one, most in zip((entries, length, start), narrow, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF))
            )
        ):
            raise DamagedError('is damaged (it has two ends)')
        here = entries
    _, length, start = directory
    if (disk, first) not in ((0, 0), (0xFFFF, 0xFFFF)) or here != entries or start + length != begins:
        raise DamagedError('is damaged (its directory is not at its end)')


def check_zip(file: BinaryIO) -> None:
    """Read a whole checkpoint and compare it with its checksums.

    Args:
        file (BinaryIO): Seekable.

    Raises:
        DamagedError: It is damaged or not a checkpoint.
    """
    archive = ZipArchive(file)
    if 'data.pkl' not in archive.names:
        raise DamagedError('is not a checkpoint of PyTorch')
    for name in archive.names:
        archive.check(name)


def _require_size(dtype: torch.dtype, count: Any, least: int, most: int) -> int:
    """Bytes of a storage with ``count`` elements; DamagedError if not within ``least`` and ``most``."""
    if type(count) is not int or count < 0:
        raise DamagedError('is damaged (a storage of no size)')
    size = count * torch._utils._element_size(dtype)
    if not least <= size <= most:
        raise DamagedError(f'is damaged (a storage of {size} bytes, and {most} are there)')
    return size


def _allocate(size: int) -> Tuple[torch.UntypedStorage, memoryview]:
    """A new storage and a writable view of its bytes."""
    storage = torch.UntypedStorage(size)
    view = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
    return storage, view.numpy().data


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> Any:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def load_zip(file: BinaryIO, restore: Callable, outline: bool = False) -> Any:
    """Load a checkpoint in torch's zip format.

    Args:
        file (BinaryIO): Seekable.
        restore (Callable): Called with each storage and the name of the device that it was saved from; returns the
            storage on its new device.
        outline (bool): Whether tensors above a mebibyte are only compared with their checksums and returned on the meta
            device. Defaults to False.

    Returns:
        Any: The saved object.

    Raises:
        DamagedError: It is damaged or not a checkpoint.
        RefusedError: It asks for something that no checkpoint needs.
    """
    archive = ZipArchive(file)
    if 'data.pkl' not in archive.names:
        raise DamagedError('is not a checkpoint of PyTorch')
    order = bytes(archive.read('byteorder')).decode('latin1') if 0 < archive.size('byteorder') < 10 else 'little'
    storages: Dict[str, torch.UntypedStorage] = {}

    def load_storage(kind: StorageType, key: Any, location: Any, count: Any) -> Any:
        if type(key) is not str or type(location) is not str:
            raise DamagedError('is damaged (a storage without a name)')
        if key not in storages:
            name = f'data/{key}'
            there = archive.size(name)
            _require_size(kind.dtype, count, there, there)
            if outline and there > _SMALL:
                archive.check(name)
                storages[key] = torch.UntypedStorage(there, device='meta')
            else:
                storage, view = _allocate(there)
                archive.check(name, view)
                if order != sys.byteorder:
                    storage.byteswap(kind.dtype)
                storages[key] = restore(storage, location)
        return _typed(storages[key], kind.dtype)

    unpickler = RestrictedUnpickler(io.BytesIO(archive.read('data.pkl')), load_storage)
    content = unpickler.load()
    # Check the records that no tensor refers to as well.
    for name in set(archive.names) - {'data.pkl', 'byteorder'} - {f'data/{key}' for key in storages}:
        archive.check(name)
    return content


def load_legacy(file: BinaryIO, restore: Callable) -> Any:
    """Load a checkpoint in the format of torch before 1.6.

    Args:
        file (BinaryIO): Seekable.
        restore (Callable): See :func:`load_zip`.

    Returns:
        Any: The saved object.

    Raises:
        DamagedError: It is damaged, as far as can be seen without checksums.
        RefusedError: It asks for something that no checkpoint needs.
    """
    bounded = _Bounded(file)
    bounded.seek(0)
    magic, protocol, system = (RestrictedUnpickler(bounded).load() for _ in range(3))
    if (magic, protocol) != (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION) or type(
        system
    ) is not dict:
        raise DamagedError('is damaged (its heading)')
    begin = bounded.tell()
    kinds: Dict[str, StorageType] = {}
    locations: Dict[str, str] = {}
    storages: Dict[str, torch.UntypedStorage] = {}
    views: Dict[str, memoryview] = {}
    room = bounded.size

    def load_storage(kind: StorageType, key: Any, location: Any, count: Any, view: Optional[tuple] = None) -> Any:
        nonlocal room
        if type(key) is not str or type(location) is not str or view:
            raise DamagedError('is damaged, or older than torch 0.4')
        if key not in storages:
            storages[key], views[key] = _allocate(_require_size(kind.dtype, count, 0, room))
            room -= len(views[key])
            kinds[key], locations[key] = kind, location
        return _typed(storages[key], kind.dtype)

    # In this format the storages come after the objects that refer to them.
    content = RestrictedUnpickler(bounded, load_storage).load()
    keys = RestrictedUnpickler(bounded).load()
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(views):
        raise DamagedError('is damaged (it lacks storages)')
    for key in keys:
        (count,) = struct.unpack('<q', bounded.read(8))
        if count * torch._utils._element_size(kinds[key].dtype) != len(views[key]):
            raise DamagedError('is damaged (a storage of another size)')
        for done in range(0, len(views[key]), _BLOCK):
            block = views[key][done : done + _BLOCK]
            block[:] = bounded.read(len(block))
        if not system.get('little_endian', True):
            storages[key].byteswap(kinds[key].dtype)
    moved = {key: restore(storage, locations[key]) for key, storage in storages.items()}
    if any(moved[key] is not storages[key] for key in storages):
        storages.update(moved)
        bounded.seek(begin)
        content = RestrictedUnpickler(bounded, load_storage).load()
    return content


def load_plain(file: BinaryIO) -> Any:
    """Load a pickle that is no checkpoint of torch.

    Args:
        file (BinaryIO): Seekable.

    Returns:
        Any: The pickled object.

    Raises:
        RefusedError: It asks for something that no checkpoint needs.
        Exception: It is damaged; the error may be of any kind.
    """
    return RestrictedUnpickler(_Bounded(file)).load()


class _Bounded:
    """A file that refuses to read more bytes than it holds.

    A plain file allocates any length that a damaged file asks for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.seek, self.tell = file.seek, file.tell

    def _require(self, length: int) -> None:
        if length > self.size - self._file.tell():
            raise EOFError('it ends within its description')

    def read(self, length: int) -> bytes:
        self._require(length)
        return self._file.read(length)

    def readinto(self, target: bytearray) -> int:
        self._require(len(target))
        return self._file.readinto(target)

    def readline(self) -> bytes:
        return self._file.readline(1 << 16)

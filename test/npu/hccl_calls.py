"""The emulator's collectives, called from processes of numpy arrays: what test_hccl.py runs, without torch_npu."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

TYPES = {
    'int8': 0,
    'int16': 1,
    'int32': 2,
    'float16': 3,
    'float32': 4,
    'int64': 5,
    'uint64': 6,
    'uint8': 7,
    'float64': 10,
    'bfloat16': 11,
}
OPS = {'sum': 0, 'prod': 1, 'max': 2, 'min': 3}
PARAMETER, NOT_SUPPORTED, TIMEOUT, REMOTE = 1, 5, 9, 21  # HcclResult
ROOT_INFO_BYTES = 4108
PROCESSES = multiprocessing.get_context('fork')


def load() -> ctypes.CDLL:
    """The emulator that the tests were started with."""
    library = ctypes.CDLL(str(Path(os.environ['ASCEND_HOME_PATH']) / 'lib64' / 'libhccl.so'))
    library.aclrtSetDevice(0)
    return library


class HcclError(Exception):
    """A call that failed.

    Args:
        code: HcclResult.
        text: What the emulator said.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class Item(ctypes.Structure):
    """HcclSendRecvItem."""

    _fields_ = (
        ('kind', ctypes.c_int),
        ('buf', ctypes.c_void_p),
        ('count', ctypes.c_uint64),
        ('type', ctypes.c_int),
        ('peer', ctypes.c_uint32),
    )


def type_of(array: np.ndarray) -> int:
    """HCCL's number for a type; numpy has no bfloat16, its bits travel as uint16 here."""
    return TYPES['bfloat16' if array.dtype == np.uint16 else array.dtype.name]


class Communicator:
    """One rank's handle.

    Args:
        library: The emulator.
        root_info: As :func:`root_info` makes it.
        ranks: Number of ranks.
        rank: Which one this is.
    """

    def __init__(self, library: ctypes.CDLL, root_info: bytes, ranks: int, rank: int) -> None:
        self.library = library
        self.ranks = ranks
        self.rank = rank
        self.handle = ctypes.c_void_p()
        info = ctypes.create_string_buffer(root_info, ROOT_INFO_BYTES)
        self.call(
            'HcclCommInitRootInfo', ctypes.c_uint32(ranks), info, ctypes.c_uint32(rank), ctypes.byref(self.handle)
        )

    def call(self, name: str, *args: Any) -> None:
        """Call a function of the library; a code other than success is an exception."""
        call(self.library, name, *args)

    def place(self, array: np.ndarray) -> np.ndarray:
        """Return a copy in memory of the device, which the process keeps until it ends."""
        at = ctypes.c_void_p()
        self.call('aclrtMalloc', ctypes.byref(at), max(array.nbytes, 1), 0)
        memory = (ctypes.c_byte * array.nbytes).from_address(at.value)
        placed = np.frombuffer(memory, array.dtype).reshape(array.shape)
        placed[...] = array
        return placed

    def all_reduce(self, array: np.ndarray, op: str = 'sum') -> np.ndarray:
        """Return the reduction of all ranks' arrays."""
        array, out = self.place(array), self.place(np.empty_like(array))
        self.call('HcclAllReduce', *buffers(array, out), array.size, type_of(array), OPS[op], self.handle, None)
        return out

    def reduce(self, array: np.ndarray, root: int, op: str = 'sum') -> np.ndarray:
        """Return the reduction on ``root``, and on the other ranks an array that was not touched."""
        array, out = self.place(array), self.place(np.zeros_like(array))
        self.call('HcclReduce', *buffers(array, out), array.size, type_of(array), OPS[op], root, self.handle, None)
        return out

    def broadcast(self, array: np.ndarray, root: int) -> np.ndarray:
        """Return the root's array."""
        out = self.place(array)
        self.call('HcclBroadcast', *buffers(out), out.size, type_of(out), root, self.handle, None)
        return out

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """Return all arrays, shape (ranks, size)."""
        array, out = self.place(array), self.place(np.empty((self.ranks, array.size), array.dtype))
        self.call('HcclAllGather', *buffers(array, out), array.size, type_of(array), self.handle, None)
        return out

    def reduce_scatter(self, array: np.ndarray, op: str = 'sum') -> np.ndarray:
        """Return this rank's row of the reduction of all arrays of shape (ranks, size)."""
        array, out = self.place(array), self.place(np.empty(array.shape[1], array.dtype))
        self.call('HcclReduceScatter', *buffers(array, out), out.size, type_of(array), OPS[op], self.handle, None)
        return out

    def scatter(self, array: np.ndarray, root: int) -> np.ndarray:
        """Return this rank's row of the root's array of shape (ranks, size)."""
        array, out = self.place(array), self.place(np.empty(array.shape[1], array.dtype))
        self.call('HcclScatter', *buffers(array, out), out.size, type_of(array), root, self.handle, None)
        return out

    def all_to_all(self, array: np.ndarray) -> np.ndarray:
        """Return row ``rank`` of every rank's array of shape (ranks, size)."""
        array, out = self.place(array), self.place(np.empty_like(array))
        size, kind = array.shape[1], type_of(array)
        self.call('HcclAlltoAll', *buffers(array)[:1], size, kind, *buffers(out), size, kind, self.handle, None)
        return out

    def all_to_all_v(self, array: np.ndarray, sends: Sequence[int], receives: Sequence[int]) -> np.ndarray:
        """Return what the ranks have sent, one after the other; ``sends`` and ``receives`` count elements."""
        array, out = self.place(array), self.place(np.empty(sum(receives), array.dtype))
        counts = [np.asarray(counts, np.uint64) for counts in (sends, receives)]
        starts = [np.cumsum(count, dtype=np.uint64) - count for count in counts]
        kind = type_of(array)
        sent = buffers(array, counts[0], starts[0])
        received = buffers(out, counts[1], starts[1])
        self.call('HcclAlltoAllV', *sent, kind, *received, kind, self.handle, None)
        return out

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.call('HcclBarrier', self.handle, None)

    def send(self, array: np.ndarray, peer: int) -> None:
        """Give an array to another rank."""
        self.call('HcclSend', *buffers(self.place(array)), array.size, type_of(array), peer, self.handle, None)

    def receive(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Get as many elements as ``array`` has from another rank."""
        out = self.place(np.empty_like(array))
        self.call('HcclRecv', *buffers(out), out.size, type_of(out), peer, self.handle, None)
        return out

    def exchange(self, sends: Dict[int, np.ndarray], receives: Dict[int, np.ndarray]) -> Dict[int, np.ndarray]:
        """Send and receive at once; all dictionaries are by peer, the values of ``receives`` say what is expected."""
        out = {peer: self.place(array) for peer, array in receives.items()}
        every = [(0, peer, self.place(array)) for peer, array in sends.items()]
        every += [(1, *pair) for pair in out.items()]
        items = (Item * len(every))()
        for item, (kind, peer, array) in zip(items, every):
            item.kind, item.peer, item.buf = kind, peer, array.ctypes.data
            item.count, item.type = array.size, type_of(array)
        self.call('HcclBatchSendRecv', items, len(every), self.handle, None)
        return out

    def async_error(self) -> int:
        """What a watchdog would see."""
        found = ctypes.c_int(-1)
        self.call('HcclGetCommAsyncError', self.handle, ctypes.byref(found))
        return found.value

    def close(self) -> None:
        """Give the handle back."""
        self.call('HcclCommDestroy', self.handle)


def call(library: ctypes.CDLL, name: str, *args: Any) -> None:
    """Call a function that returns a code."""
    wide = (ctypes.c_uint64(arg) if isinstance(arg, int) else arg for arg in args)
    code = getattr(library, name)(*wide)
    if code:
        library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        raise HcclError(code, library.aclGetRecentErrMsg().decode())


def buffers(*arrays: np.ndarray) -> List[ctypes.c_void_p]:
    """Pointers to the arrays' memory."""
    assert all(array.flags.c_contiguous for array in arrays)
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def root_info(library: ctypes.CDLL) -> bytes:
    """What the first rank gives to the others."""
    info = ctypes.create_string_buffer(ROOT_INFO_BYTES)
    call(library, 'HcclGetRootInfo', info)
    return info.raw


def run(
    ranks: int,
    body: Callable[[Communicator], Any],
    env: Optional[Dict[str, str]] = None,
    absent: Sequence[int] = (),
    timeout: float = 120,
) -> List[Any]:
    """Run a function on every rank, each in a process of its own.

    Args:
        ranks: Number of ranks.
        body: What a rank does.
        env: Environment variables of the ranks.
        absent: Ranks that are never started.
        timeout: Seconds after which a rank counts as hanging.

    Returns:
        By rank what ``body`` returned or the :class:`HcclError` it met; None for a rank that ended without a word.

    Raises:
        AssertionError: If a rank hangs.
    """
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(ranks)]
    tell = [PROCESSES.Pipe(duplex=False) for _ in range(ranks)]

    def work(rank: int) -> None:
        os.environ.update(env or {})
        library = load()
        if rank == 0:
            info = root_info(library)
            for _, end in tell[1:]:
                end.send(info)
        else:
            info = tell[rank][0].recv()
        try:
            pipes[rank][1].send(body(Communicator(library, info, ranks, rank)))
        except HcclError as error:
            pipes[rank][1].send(error)

    processes = [PROCESSES.Process(target=work, args=(rank,)) for rank in range(ranks) if rank not in absent]
    for process in processes:
        process.start()
    for _, end in pipes:
        end.close()
    outcome: List[Any] = []
    try:
        for rank, (end, _) in enumerate(pipes):
            assert rank in absent or end.poll(timeout), f'rank {rank} hangs'
            outcome.append(None)
            with contextlib.suppress(EOFError):
                outcome[-1] = end.recv()
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
    return outcome


def run_well(ranks: int, body: Callable[[Communicator], Any]) -> List[Any]:
    """What :func:`run` returns, where every rank has to come to its end.

    Raises:
        HcclError: What a rank met in place of it.
    """
    outcome = run(ranks, body)
    for error in outcome:
        if isinstance(error, HcclError):
            raise error
    return outcome

"""Peak memory of a piece of work in this process.

On an accelerator: the peak of torch's allocator (``max_memory_allocated``). On a CPU: the peak resident memory of the
process (``VmHWM`` of ``/proc/self/status``, reset before), weights and libraries included, and its excess over the
resident memory before. Freed memory of earlier steps must not count, so glibc is told to return it to the system at
once. That slows a step down, so nothing is timed afterwards.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any, Callable, Dict

import torch

# Settings of glibc's malloc.h, and the least size in bytes of freed blocks that are returned.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _BYTES = -1, -3, 65536
_STATUS, _RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def peak(device: str, run: Callable[[], Any]) -> Dict[str, int]:
    """Run something and return ``peak_bytes`` and ``above_before_bytes``.

    Args:
        device: Type of the device that the tensors are on.
        run: The work.
    """
    gc.collect()
    if device == 'cpu':
        _give_freed_memory_back()
        _RESET.write_text('5')  # Linux: resets the peak to the memory resident now
        before = _resident('VmRSS')
        run()
        most = _resident('VmHWM')
    else:
        memory = getattr(torch, device)
        memory.synchronize()
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
        run()
        memory.synchronize()
        most = memory.max_memory_allocated()
    return {'peak_bytes': most, 'above_before_bytes': most - before}


def _give_freed_memory_back() -> None:
    libc = ctypes.CDLL(None)
    for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(name, _BYTES)
    libc.malloc_trim(0)


def _resident(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'{_STATUS} has no {name}')

"""What a machine has, as far as it can be read without torch: NPUs, GPUs, cores and memory. Standard library only."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import List, Optional, Tuple

_ASCEND = tuple(f'/usr/local/Ascend/{name}' for name in ('ascend-toolkit', 'cann', 'latest', 'nnae'))


def ascend_signs(root: Path = Path('/')) -> List[str]:
    """Signs that this machine has Ascend NPUs; empty if there are none.

    Args:
        root: Root of the file system to look at.
    """
    signs = [str(path) for path in sorted(root.glob('dev/davinci[0-9]*'))]
    if shutil.which('npu-smi'):
        signs.append('npu-smi')
    homes = [os.environ.get('ASCEND_HOME_PATH', ''), os.environ.get('ASCEND_TOOLKIT_HOME', ''), *_ASCEND]
    signs += [home for home in homes if home and (root / home.lstrip('/')).is_dir()]
    return signs


def cores(root: Path = Path('/')) -> int:
    """Cores that this process may use: its CPU affinity, or fewer if a container has a quota.

    Args:
        root: Root of the file system to look at.
    """
    given = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        quota, period = (root / 'sys/fs/cgroup/cpu.max').read_text().split()
    except (OSError, ValueError):
        return given
    return min(given, max(1, int(quota) // int(period))) if quota.isdigit() and int(period) else given


def free_memory_bytes(root: Path = Path('/')) -> Optional[int]:
    """Memory that a new process may take, also within the limit of a container; None if it is not known.

    Args:
        root: Root of the file system to look at.
    """
    found = []
    for limit, used in (
        ('sys/fs/cgroup/memory.max', 'sys/fs/cgroup/memory.current'),
        ('sys/fs/cgroup/memory/memory.limit_in_bytes', 'sys/fs/cgroup/memory/memory.usage_in_bytes'),
    ):
        with contextlib.suppress(OSError, ValueError):  # `max` means no limit
            found.append(int((root / limit).read_text()) - int((root / used).read_text()))
    with contextlib.suppress(OSError):
        available = re.search(r'^MemAvailable:\s*(\d+) kB', (root / 'proc/meminfo').read_text(), re.MULTILINE)
        found += [int(available.group(1)) << 10] if available else []
    return max(0, min(found)) if found else None


def driver_cuda() -> Optional[Tuple[int, int]]:
    """The newest CUDA version that the installed NVIDIA driver supports; None without a working driver and GPU."""
    if shutil.which('nvidia-smi') is None:
        return None
    try:
        done = subprocess.run(['nvidia-smi'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'CUDA Version:\s*(\d+)\.(\d+)', done.stdout.decode('utf-8', 'replace'))
    return (int(found.group(1)), int(found.group(2))) if found else (12, 0)

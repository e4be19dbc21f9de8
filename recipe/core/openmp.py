"""Settings of OpenMP with which torch on a CPU waits forever.

oneDNN asks OpenMP how many threads a region will have, and in some kernels waits until so many have come. With these
settings fewer come. And libgomp reads some values of GOMP_CPU_AFFINITY forever. Standard library only.
"""

import os
import re
from typing import Optional

_CPUS = r'\d+(-\d+(:\d+)?)?'
_AFFINITY = re.compile(rf'\s*{_CPUS}([\s,]+{_CPUS})*\s*', re.ASCII)

# The number of threads that this process and its children may have, if `settle` set it.
settled: Optional[int] = None


def settle() -> None:
    """Say by OMP_NUM_THREADS what OMP_THREAD_LIMIT and OMP_MAX_ACTIVE_LEVELS say, and take those and OMP_DYNAMIC away.

    A GOMP_CPU_AFFINITY that is no list of cores goes too. All this has an effect before torch is imported, and on child
    processes.
    """
    global settled
    limit = _number(os.environ.pop('OMP_THREAD_LIMIT', ''))
    os.environ.pop('OMP_DYNAMIC', None)
    if not _AFFINITY.fullmatch(os.environ.get('GOMP_CPU_AFFINITY', '0')):
        del os.environ['GOMP_CPU_AFFINITY']
    if _number(os.environ.get('OMP_MAX_ACTIVE_LEVELS', '')) == 0:
        limit = 1
        del os.environ['OMP_MAX_ACTIVE_LEVELS']
    if limit:
        asked = _number(os.environ.get('OMP_NUM_THREADS', '').partition(',')[0]) or os.cpu_count() or 1
        settled = min(limit, asked)
        os.environ['OMP_NUM_THREADS'] = str(settled)


def _number(text: str) -> Optional[int]:
    return int(text) if text.strip().isdecimal() else None

"""Which processes run."""

from __future__ import annotations

import os
from typing import List

import psutil

ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def processes_with(mark: str) -> List[int]:
    """Other processes that have a ``variable=value`` in their environment."""
    name, _, value = mark.partition('=')
    return [
        process.pid
        for process in psutil.process_iter(['status', 'environ'])
        if process.info['status'] not in ENDED
        and (process.info['environ'] or {}).get(name) == value
        and process.pid != os.getpid()
    ]


def descendants(pid: int) -> List[int]:
    """All running processes below one; none if it has ended."""
    try:
        return alive([process.pid for process in psutil.Process(pid).children(recursive=True)])
    except psutil.NoSuchProcess:
        return []


def alive(pids: List[int]) -> List[int]:
    """Those of some processes that still run."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() not in ENDED:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found

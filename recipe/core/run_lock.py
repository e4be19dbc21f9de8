"""One training at a time in a run folder: a lock that the launcher holds to its end. Standard library only.

The lock is the file ``lock.json`` in the folder; it names host and process. Whether its holder still runs is known

- from flock(2), if the storage supports it: the kernel releases it when the launcher and its torchrun have ended;
- from the process table, if the holder's process can be seen from here;
- otherwise, as on another machine, from the heartbeat: the holder touches the file every ``BEAT_S`` seconds. A lock
  that was not touched for ``STALE_S`` seconds, by the clock of the storage, is stale.

A stale lock is taken over with a warning.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, Optional

from recipe.core import console, json_files, processes

NAME = 'lock.json'
BEAT_S = 5.0
STALE_S = 120.0
_POLL_S = 0.2
_OPEN = os.O_RDWR | os.O_CLOEXEC
_MOST_BYTES = 1 << 16  # of a lock file
_MOST_PIDS = (1 << 31) - 1
_WRITING_S = 5  # time for the writer of a new lock file to fill it
_SETTLE_S = 1  # after this time, two launchers that took over one stale lock without flock see each other


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: Differs between any two holders.
        host: Name of the machine.
        boot: The kernel's id of its last boot. Machines and containers may share a host name; machines never share
            this.
        namespace: PID namespace of the process.
        pid: Process id of the launcher.
        born: When that process started, in the kernel's ticks since boot; a process id may be used again.
        since: Start time, for people.
        job: ``<machines>@<address>:<port>`` with several machines; empty for one machine.
        flock: Whether it also holds the file with flock(2).
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    born: str
    since: str
    job: str
    flock: bool

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}, since {self.since}'

    @property
    def runs_here(self) -> Optional[bool]:
        """Whether its process runs; None if that cannot be seen from here."""
        here = _identity()
        if not self.boot or not self.namespace or (self.boot, self.namespace) != (here['boot'], here['namespace']):
            return None
        return processes.is_running(self.pid, self.born)


def _identity() -> Dict[str, Any]:
    """The fields of ``Holder`` that identify this process."""
    boot = namespace = ''
    with contextlib.suppress(OSError):
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        namespace = os.readlink('/proc/self/ns/pid')
    return {'host': socket.gethostname(), 'boot': boot, 'namespace': namespace, 'pid': os.getpid()}


class LostError(console.UserError):
    """Another launcher has taken the lock over."""


class RunLock:
    """The lock of one existing run folder; a context manager.

    Args:
        folder: The run folder.
        job: As in ``Holder``.
        beat_s: Seconds between two heartbeats.
        stale_s: Seconds without a heartbeat after which a lock is stale.

    Raises:
        console.UserError: On entering, if the lock is held. Names the holder and what to do.
    """

    def __init__(self, folder: Path, job: str = '', beat_s: float = BEAT_S, stale_s: float = STALE_S) -> None:
        self.path = folder / NAME
        self._job = job
        self._beat_s = beat_s
        self._stale_s = stale_s
        self._fd = -1
        self._own: Optional[Holder] = None
        self._taken_by: Optional[Holder] = None
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> RunLock:
        while self._own is None:
            self._try()
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beats.join()
        with contextlib.suppress(OSError):
            if _parse(_start_of(self.path)) == self._own:
                self.path.unlink()
        os.close(self._fd)

    @property
    def descriptor(self) -> int:
        """File descriptor. A child process that inherits it keeps the lock held until it ends."""
        return self._fd

    def require_held(self) -> None:
        """Check that no other launcher has taken the lock over, as it may after this process stood for minutes.

        Raises:
            LostError: Another launcher has.
        """
        if self._taken_by is not None:
            raise LostError(
                f'{self.path.parent} was taken over by {self._taken_by}, as this training gave no sign of life for '
                f'{self._stale_s:.0f} s; it ends here, so that the two do not mix'
            )

    def _try(self) -> None:
        """Try to take the lock; returns without it if another launcher was faster."""
        try:
            fd, left = os.open(self.path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666), None
        except FileExistsError:
            left = _left_behind(self.path, self._stale_s)
            if left is None:
                return
            fd = os.open(self.path, _OPEN)
        flock = _flock(fd)
        if left is not None and (flock is False or _content(self.path, fd) != left):
            os.close(fd)
            return
        own = Holder(
            token=uuid.uuid4().hex,
            **_identity(),
            born=processes.born(os.getpid()) or '',
            since=time.strftime('%Y-%m-%d %H:%M:%S'),
            job=self._job,
            flock=bool(flock),
        )
        _write(fd, own)
        if left is not None:
            if not flock:
                time.sleep(_SETTLE_S)
                if _parse(_content(self.path, fd)) != own:
                    os.close(fd)
                    return
            console.warn(f'{self.path} was left behind by {_parse(left) or "somebody"}; taken over')
        self._fd, self._own = fd, own

    def _beat(self) -> None:
        """Touch the file at intervals, and check that it is still this launcher's."""
        while not self._ended.wait(self._beat_s):
            with contextlib.suppress(OSError):  # storage that is away for a while
                try:
                    holder = _parse(_start_of(self.path))
                except FileNotFoundError:
                    self._make_again()
                    continue
                if holder is not None and holder != self._own:
                    self._taken_by = holder
                    return
                os.utime(self.path)

    def _make_again(self) -> None:
        """Make the file again after somebody has deleted it."""
        fd = os.open(self.path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666)
        _flock(fd)
        assert self._own is not None, 'heartbeats begin after the lock was taken'
        _write(fd, self._own)
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)


def require_free(folder: Path, patient: bool = False) -> None:
    """Check that no training runs in a folder. Nothing is written.

    Args:
        folder: A run folder, which need not exist.
        patient: If the holder cannot be seen from here, wait for its heartbeat, at most ``STALE_S`` seconds.

    Raises:
        console.UserError: A training runs there; names it and what to do.
    """
    path = folder / NAME
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if patient:
            _left_behind(path, STALE_S)
            return
        holder = _parse(_start_of(path))
        if holder and (holder.runs_here or (holder.runs_here is None and _is_locked(path))):
            raise _refusal(path, holder)


def require_same_job(folder: Path, job: str, beat_s: float = BEAT_S) -> None:
    """Check, on a machine other than the first, that no other job trains in the folder.

    Args:
        folder: The run folder that all machines share.
        job: As in ``Holder``.
        beat_s: Seconds between two heartbeats of the holder.

    Raises:
        console.UserError: Another job does.
    """
    path, deadline, seen = folder / NAME, time.monotonic() + 2.5 * beat_s, None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        while time.monotonic() < deadline:
            holder, beat = _parse(_start_of(path)), path.stat().st_mtime_ns
            if holder is None or is_same_job(holder.job, job) or holder.runs_here is False:
                return
            if holder.runs_here or _is_locked(path) or seen not in (None, (holder, beat)):
                raise _refusal(path, holder)
            seen = holder, beat
            time.sleep(_POLL_S)


def is_same_job(one: str, other: str) -> bool:
    """Whether two machines mean the same job. The first machine may use a loopback address for itself."""
    (machines, _, meeting), (others, _, elsewhere) = one.partition('@'), other.partition('@')
    (host, _, port), (other_host, _, other_port) = meeting.rpartition(':'), elsewhere.rpartition(':')
    loopback = any(name.startswith('127.') for name in (host, other_host))
    return (machines, port) == (others, other_port) and (loopback or host == other_host)


def _left_behind(path: Path, stale_s: float) -> Optional[bytes]:
    """Wait until it is known whether the holder of a lock still runs.

    Returns:
        Content of the lock if its holder does not run; None if the lock is gone.

    Raises:
        console.UserError: The holder runs.
    """
    before = None
    while True:
        try:
            content, beat = _start_of(path), path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        holder = _parse(content)
        runs_here, locked = (holder.runs_here, _is_locked(path)) if holder else (None, None)
        if runs_here or (locked and runs_here is None):
            raise _refusal(path, holder)
        if locked is False and holder and (runs_here is False or (holder.flock and holder.boot == _identity()['boot'])):
            return content
        if runs_here is False and locked is None:
            return content
        # Remaining cases: the holder's machine is unknown, its torchrun is still ending, or the file is half written.
        if before is None or before[0] != content:
            age_s = _age_s(path) if holder else 0
            deadline = time.monotonic() + (stale_s - age_s if holder else _WRITING_S)
            if age_s < stale_s and holder:
                what = 'the end of the ranks' if runs_here is False else 'a sign of life'
                console.say(f'waiting  for {what} of {holder}, up to {stale_s - max(0, age_s):.0f} s')
        elif runs_here is None and holder and before[1] != beat:
            raise _refusal(path, holder)
        if time.monotonic() >= deadline:
            if locked:
                raise _refusal(path, holder)
            return content
        before = content, beat
        time.sleep(_POLL_S)


def _start_of(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(_MOST_BYTES)


def _age_s(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its storage."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as now:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0


def _parse(content: bytes) -> Optional[Holder]:
    """Parse a lock file; None for other content, or if it is empty."""
    try:
        found = json_files.parse(content, dict)
        kinds = {'str': str, 'int': int, 'bool': bool}
        holder = {field.name: found[field.name] for field in fields(Holder)}
        if not all(type(holder[field.name]) is kinds[str(field.type)] for field in fields(Holder)):
            return None
        json_files.whole_number(holder['pid'], 1, _MOST_PIDS)
        return Holder(**holder)
    except (ValueError, KeyError):
        return None


def _content(path: Path, fd: int) -> bytes:
    """Content of an open lock file; empty if another file has its name by now."""
    try:
        return os.pread(fd, _MOST_BYTES, 0) if os.path.samestat(os.fstat(fd), path.stat()) else b''
    except FileNotFoundError:
        return b''


def _write(fd: int, holder: Holder) -> None:
    content = json.dumps(asdict(holder), indent=2).encode() + b'\n'
    os.pwrite(fd, content, 0)
    os.ftruncate(fd, len(content))
    with contextlib.suppress(OSError):
        os.fsync(fd)


def _flock(fd: int, kind: int = fcntl.LOCK_EX) -> Optional[bool]:
    """Lock an open file; False if another process has it locked, None if the storage has no locks."""
    for _ in range(5):  # another process may be testing the lock
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return None
    return False


def _is_locked(path: Path) -> Optional[bool]:
    """Whether a process has a file locked; None if the storage has no locks."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        taken = _flock(fd, fcntl.LOCK_SH)
        return None if taken is None else not taken
    finally:
        os.close(fd)


def _refusal(path: Path, holder: Optional[Holder]) -> console.UserError:
    how = f', end it (kill {holder.pid} on {holder.host})' if holder else ''
    return console.UserError(
        f'{path.parent} is in use by another training ({holder or "it is just starting"})',
        f'wait for its end{how}, or give another --work_dir',
    )

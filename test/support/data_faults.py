"""What happens to the data of resume_job: functions that damage files, and sabotages of the loader."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import time
from multiprocessing import connection, resource_sharer
from pathlib import Path
from typing import Any, List, Optional, Type

from mmengine.runner import Runner
from PIL import Image

from recipe.core.processes import table
from resume_faults import BeforeIter


def image(data: Path, number: int, split: str = 'train') -> Path:
    """A picture, by default one to train on."""
    return data / f'leftImg8bit/{split}/city/city_{number:06d}_000019_leftImg8bit.png'


def label(data: Path, number: int, split: str = 'train') -> Path:
    """Its labels."""
    return data / f'gtFine/{split}/city/city_{number:06d}_000019_gtFine_labelTrainIds.png'


def cut_image(data: Path, split: str = 'train', number: int = 4) -> List[Path]:
    """A picture that was not copied whole."""
    path = image(data, number, split)
    path.write_bytes(path.read_bytes()[:400])
    return [path]


def remove_image(data: Path) -> List[Path]:
    """A picture that somebody deleted."""
    image(data, 4).unlink()
    return [image(data, 4)]


def remove_label(data: Path, split: str, number: int) -> List[Path]:
    """Labels that somebody deleted."""
    label(data, number, split).unlink()
    return [label(data, number, split)]


def empty_label(data: Path) -> List[Path]:
    """A label map of no bytes."""
    label(data, 4).write_bytes(b'')
    return [label(data, 4)]


def resize_label(data: Path) -> List[Path]:
    """A label map of another size than its picture's."""
    with Image.open(label(data, 4)) as whole:
        part = whole.crop((0, 0, 48, 48))
    part.save(label(data, 4))
    return [image(data, 4), label(data, 4)]


def end_a_loader(number: int, signum: int, runner: Runner) -> None:
    """A loader process gets a signal before an iteration."""

    def end() -> None:
        loaders = [row.pid for row in table() if row.parent == os.getpid()]
        os.kill(loaders[0], signum)

    runner.register_hook(BeforeIter(number, end))


def kill_a_loader(runner: Runner) -> None:
    """As the system does when memory runs out."""
    end_a_loader(3, signal.SIGKILL, runner)


def kill_a_loader_in_a_careless_call(runner: Runner) -> None:
    """While something turns whatever is raised into another error, as mmengine does where it formats a config."""

    def carelessly() -> None:
        try:
            loaders = [row.pid for row in table() if row.parent == os.getpid()]
            os.kill(loaders[0], signal.SIGKILL)
            time.sleep(10)
        except Exception:
            raise SyntaxError('check the syntax of the config') from None

    runner.register_hook(BeforeIter(3, carelessly))


def break_shared_memory(runner: Runner) -> None:
    """As the system does when /dev/shm is full."""
    end_a_loader(3, signal.SIGBUS, runner)


def fill_shared_memory(runner: Runner) -> None:
    """The loader processes find no room for batches any more: as where /dev/shm is full, whose files these are."""

    def limit() -> None:
        for row in table():
            if row.parent == os.getpid():
                resource.prlimit(row.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    runner.register_hook(BeforeIter(3, limit))


def start_no_process(runner: Runner) -> None:
    """The system forks no more processes, as where memory or a limit on processes is used up."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    os.fork = fork


# What the training process meets where a loader process ends while it hands a batch over; None: ends by kill -9, which
# torch's handler of SIGCHLD may notice first or the socket.
HANDOVERS = (EOFError, ConnectionResetError, BrokenPipeError, None)


def die_in_handover(when: Optional[Type[Exception]], runner: Runner) -> None:
    """The first loader process dies while it hands its first batch over."""
    _serve_badly(when, seconds=0.5)


def hang_up(when: Type[Exception], runner: Runner) -> None:
    """It only closes the connection, and is alive when the training ends."""
    _serve_badly(when, seconds=3600)


def _serve_badly(when: Optional[Type[Exception]], seconds: float) -> None:
    """Have loader processes close their side at some moment of the handshake, as a dying process does.

    Args:
        when: What the other side is to meet.
        seconds: Until the process dies of it: the system closes the sockets before others can see that it is dead.
    """

    def serve(self: Any) -> None:
        # multiprocessing's thread that gives away the file descriptors of shared memory
        other = self._listener._listener.accept()
        if when is None:
            os.kill(os.getpid(), signal.SIGKILL)
        if when is ConnectionResetError:  # what the other side has sent is never read
            connection.deliver_challenge(other, self._listener._authkey)
            other.poll(None)
        elif when is BrokenPipeError:  # the other side's answer cannot be sent any more
            with socket.socket(fileno=os.dup(other.fileno())) as end:
                end.shutdown(socket.SHUT_RD)
            with contextlib.suppress(EOFError):
                connection.deliver_challenge(other, self._listener._authkey)
        other.close()
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    resource_sharer._ResourceSharer._serve = serve

"""What happens to the data of resume_job: functions that damage files, and sabotages of the loader."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import List

from mmengine.runner import Runner
from PIL import Image

from processes import table
from resume_faults import BeforeIter


def image(data: Path, number: int) -> Path:
    """A picture to train on."""
    return data / f'leftImg8bit/train/city/city_{number:06d}_000019_leftImg8bit.png'


def label(data: Path, number: int) -> Path:
    """Its labels."""
    return data / f'gtFine/train/city/city_{number:06d}_000019_gtFine_labelTrainIds.png'


def cut_image(data: Path) -> List[Path]:
    """A picture that was not copied whole."""
    path = image(data, 4)
    path.write_bytes(path.read_bytes()[:400])
    return [path]


def remove_image(data: Path) -> List[Path]:
    """A picture that somebody deleted."""
    image(data, 4).unlink()
    return [image(data, 4)]


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


def break_shared_memory(runner: Runner) -> None:
    """As the system does when /dev/shm is full."""
    end_a_loader(3, signal.SIGBUS, runner)

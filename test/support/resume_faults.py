"""What happens to the processes of resume_job: each function is a sabotage, called once the runner is built."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from recipe.core import processes

FILE_OPERATIONS = ('os.rename', 'os.link', 'os.remove')


def kill_this_process() -> None:
    """Do what kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


class BeforeIter(Hook):
    """Calls a function when an iteration, counted from 1, is about to run."""

    def __init__(self, number: int, function) -> None:
        self.number = number
        self.function = function

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx + 1 == self.number:
            self.function()


def kill_before_iter(number: int, runner: Runner) -> None:
    """Every rank dies before an iteration."""
    runner.register_hook(BeforeIter(number, kill_this_process))


HOLD_VARIABLE = 'TEST_HOLD_BEFORE_ITER'


@HOOKS.register_module()
class HoldBeforeIter(Hook):
    """Waits for ever when an iteration, counted from 1, is about to run, if an environment variable has its number.

    Args:
        folder: Each rank says in a file ``held_RANK`` here that it waits.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if str(batch_idx + 1) == os.environ.get(HOLD_VARIABLE):
            (self.folder / f'held_{runner.rank}').touch()
            while True:
                time.sleep(1)


class KillBeforeValidation(Hook):
    """Kills its process when the validation after an iteration is about to run."""

    def __init__(self, number: int) -> None:
        self.number = number

    def before_val(self, runner):
        if runner.iter == self.number:
            kill_this_process()


def kill_before_validation(number: int, runner: Runner) -> None:
    """Every rank dies between the checkpoint after an iteration and the validation."""
    runner.register_hook(KillBeforeValidation(number))


def terminate_rank_0_before_iter(number: int, runner: Runner) -> None:
    """A scheduler asks the process of rank 0 to end."""
    if runner.rank == 0:
        runner.register_hook(BeforeIter(number, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def signal_all_before_iter(number: int, all_get: int, rank_gets: int, runner: Runner) -> None:
    """Each rank and all its loader processes get a signal before an iteration, the rank a second one."""

    def send() -> None:
        for row in processes.table():
            if row.parent == os.getpid():
                os.kill(row.pid, all_get)
        os.kill(os.getpid(), all_get)
        os.kill(os.getpid(), rank_gets)

    runner.register_hook(BeforeIter(number, send))


def copy_before_file_operations(copies: Path, runner: Runner) -> None:
    """Keep what is on the disk right before each renaming, linking and removing: what a kill there would leave.

    Args:
        copies: Folder for the copies of the run's folder; they are called by number and operation.
        runner: The runner.
    """
    work_dir = Path(runner.work_dir)

    def watch(event: str, args: tuple) -> None:
        if event not in FILE_OPERATIONS:
            return
        target = Path(os.fsdecode(args[0] if event == 'os.remove' else args[1]))
        # files.whole removes its temporary file, gone or not
        if target.parent == work_dir and (event != 'os.remove' or not target.name.startswith('.')):
            shutil.copytree(work_dir, copies / f'{len(list(copies.iterdir())):02d} {event} {target.name}')

    copies.mkdir()
    sys.addaudithook(watch)


def kill_amid_writing(bytes_written: int, runner: Runner) -> None:
    """The system kills the process when a file of it grows beyond a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_written, resource.RLIM_INFINITY))


def fill_disk(first: int, last: int, runner: Runner) -> None:
    """From one iteration until another begins, no file takes more than 1 MB, which is less than a checkpoint."""

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    runner.register_hook(BeforeIter(first, lambda: limit(2**20)))
    runner.register_hook(BeforeIter(last, lambda: limit(resource.RLIM_INFINITY)))


class RecordImages(Hook):
    """Writes a line with the number of the iteration and the names of its images for each iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = [Path(sample.img_path).name[:11] for sample in data_batch['data_samples']]
        with self.path.open('a') as f:
            print(batch_idx + 1, *names, file=f)


def record_images(path: Path, runner: Runner) -> None:
    """No harm: notes which images each iteration gets."""
    runner.register_hook(RecordImages(path))


def count_opened_images(path: Path, runner: Runner) -> None:
    """No harm: notes each image file that the process opens."""

    def watch(event: str, args: tuple) -> None:
        if event == 'open' and '/leftImg8bit/train/' in str(args[0]):
            with path.open('a') as f:
                print(Path(args[0]).name, file=f)

    path.touch()
    sys.addaudithook(watch)


def compare_table_gradients(runner: Runner) -> None:
    """Inside of the training, look up a large table in two threads, over and over: is its gradient always the same?"""

    def compare() -> None:
        torch.set_num_threads(2)
        generator = torch.Generator().manual_seed(0)
        index = torch.randint(0, 529, (144 * 144,), generator=generator)
        values = torch.randn(144 * 144, 4, generator=generator)

        def gradient() -> torch.Tensor:
            table = torch.zeros(529, 4, requires_grad=True)
            table[index].backward(values)
            return table.grad

        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(1000)), 'the sum depends on the threads'

    runner.register_hook(BeforeIter(1, compare))


def terminate_before_iter(rank: int, number: int, runner: Runner) -> None:
    """A scheduler asks the process of one rank to end."""
    if runner.rank == rank:
        runner.register_hook(BeforeIter(number, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def kill_in_call(event: str, number: int, runner: Runner) -> None:
    """The process dies before an operation on a checkpoint, the first of that kind being number 1."""
    work_dir, seen = Path(runner.work_dir), []

    def watch(happened: str, args: tuple) -> None:
        if happened != event or not isinstance(args[0], (str, bytes)):
            return
        target = Path(os.fsdecode(args[1] if event in ('os.rename', 'os.link') else args[0]))
        if target.parent == work_dir and '.pth' in target.name:
            seen.append(target)
            if len(seen) == number:
                kill_this_process()

    sys.addaudithook(watch)


def at_iteration(number: int, command: str, runner: Runner) -> None:
    """A command runs before an iteration."""
    runner.register_hook(BeforeIter(number, lambda: subprocess.run(command, shell=True, check=True)))


class AmidAccumulation(Hook):
    """Calls a function between two parts of an iteration, counted from 1."""

    def __init__(self, number: int, function) -> None:
        self.number = number
        self.function = function

    def after_train_part(self, runner):
        if runner.iter + 1 == self.number:
            self.function()


def kill_amid_accumulation(number: int, runner: Runner) -> None:
    """Every rank dies between two parts of an iteration."""
    runner.register_hook(AmidAccumulation(number, kill_this_process))


def terminate_amid_accumulation(number: int, runner: Runner) -> None:
    """A scheduler asks the process of rank 0 to end between two parts of an iteration."""
    if runner.rank == 0:
        runner.register_hook(AmidAccumulation(number, lambda: os.kill(os.getpid(), signal.SIGTERM)))

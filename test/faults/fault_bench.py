"""Trainings to break: as bare ranks, in a second or two, and through the launcher, in half a minute."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import resume_job
from launch_sandbox import Sandbox
from recipe.core import processes
from recipe.engine.checkpoint import CheckpointError, find_resumable
from resume_faults import kill_before_iter
from resume_job import CONTEXT, assert_same_end, plain_text, recipe, start, train
from running import alive, descendants

END_S = 240  # against hanging; no single training takes nearly as long
_ITERATION = re.compile(r'iter_(\d+)\.pth')


def iterations(folder: Path) -> List[int]:
    """Iterations of the checkpoints in a folder, sorted; best ones left out."""
    matches = [_ITERATION.fullmatch(path.name) for path in folder.glob('iter_*.pth')]
    return sorted(int(match[1]) for match in matches if match)


def newest_good(folder: Path) -> Optional[int]:
    """Iteration of the checkpoint that a training would go on from, None without one."""
    try:
        path, _ = find_resumable(str(folder))
    except CheckpointError:
        return None
    return int(re.search(r'iter_(\d+)\.pth$', path)[1])


class Bench:
    """Makes trainings and the undisturbed ones that they are compared with.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = resume_job.write_cityscapes(folder / 'data')
        self._numbers = itertools.count()
        self._unbroken: Dict[Any, Path] = {}
        self._launcher: Optional[LauncherBench] = None

    def new_folder(self) -> Path:
        """A name for a run's folder."""
        return self.folder / f'run{next(self._numbers)}'

    def kept(self) -> List[Path]:
        """Folders that later faults need."""
        own = [self._launcher.kept] if self._launcher and self._launcher.kept else []
        return [*self._unbroken.values(), *own]

    def unbroken(self, world: int) -> Path:
        """Folder of a training that nothing happened to."""
        if world not in self._unbroken:
            self._unbroken[world] = folder = self.new_folder()
            outcome = train(recipe(self.data, folder), world)
            assert outcome.codes == [0] * world, outcome.output
        return self._unbroken[world]

    def stopped(self, world: int, before: int) -> Path:
        """A new copy of the folder of a training that was killed before an iteration."""
        key = (world, before)
        if key not in self._unbroken:
            self._unbroken[key] = folder = self.new_folder()
            outcome = train(recipe(self.data, folder), world, sabotage=partial(kill_before_iter, before))
            assert outcome.codes == [-9] * world, outcome.output
        copy = self.new_folder()
        shutil.copytree(self._unbroken[key], copy)
        return copy

    def finish(self, folder: Path, world: int, workers: int = 0, least: int = 0) -> None:
        """Have a broken training go on, or begin where nothing was saved, and compare its end.

        Args:
            folder: Of the run.
            world: Ranks.
            workers: Loader processes of each.
            least: Iteration of the oldest checkpoint that it may go on from.
        """
        newest = newest_good(folder) if folder.exists() else None
        assert (newest or 0) >= least, f'the checkpoint of iteration {least} is lost: {newest} is the newest good one'
        cfg = recipe(self.data, folder, workers)
        outcome = train(cfg, world, resume=newest is not None)
        assert outcome.codes == [0] * world, outcome.output[-3000:]
        assert_same_end(folder, self.unbroken(world))

    def running(self, folder: Path, world: int, workers: int = 0, **options: Any) -> List[Any]:
        """Start a training and wait until its log has begun; gives its processes."""
        ranks = start(recipe(self.data, folder, workers), world, **options)
        wait_for(lambda: 'Iter(train)' in (folder / 'output.txt').read_text(errors='replace'), ranks)
        return ranks

    @property
    def launcher(self) -> LauncherBench:
        """Trainings through the launcher."""
        if self._launcher is None:
            self._launcher = LauncherBench(self)
        return self._launcher


def wait_for(what: Callable[[], bool], ranks: List[Any], seconds: float = 60) -> None:
    """Wait for something, or for the end of all processes."""
    deadline = time.monotonic() + seconds
    while not what() and any(rank.is_alive() for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.005)


def end_all(ranks: List[Any]) -> List[int]:
    """Wait for processes, and end those with -9 that wait for others; gives their exit codes."""
    deadline = time.monotonic() + 20
    for rank in ranks:
        rank.join(max(0, deadline - time.monotonic()))
    left = [rank for rank in ranks if rank.is_alive()]
    for rank in left:
        rank.kill()
        rank.join()
    return [rank.exitcode for rank in ranks]


def children(pid: int) -> List[int]:
    """Processes right below one."""
    return [row.pid for row in processes.table() if row.parent == pid]


def launch(argv: List[str], root: str, env: Dict[str, str], cwd: str, out: str, err: str) -> None:
    """Be tools/launch.py, in a process that has imported torch and mmseg already."""

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    from recipe.core import console, imported_packages, paths, run_folder
    from recipe.launch import cli as launcher

    # This process has the original's modules, which are those of the copy; what it starts and writes is the copy's.
    imported_packages.require = lambda checkouts=True: None
    paths.PACKAGE = Path(root, 'recipe')
    run_folder.OUTPUT = Path(root, 'test', 'output')

    console.run(lambda: launcher.main(['full', *argv]))


class Launched:
    """A launcher at work.

    Args:
        bench: Where it works.
        folder: Its run folder.
        argv: Further options.
    """

    def __init__(self, bench: LauncherBench, folder: Path, argv: List[str]) -> None:
        self.folder = folder
        self._said = folder.with_name(folder.name + '.said')
        self._said.write_text('')
        command = [*bench.argv, f'--work_dir={folder}', '--resume=auto', *argv]
        sandbox = bench.sandbox
        self.process = CONTEXT.Process(
            target=launch,
            args=(command, str(sandbox.root), sandbox.env, str(sandbox.home), str(self._said), str(self._said)),
        )
        self.process.start()

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._said.read_text(errors='replace') if self._said.exists() else ''

    def until_saved(self, iteration: int) -> None:
        """Wait until a checkpoint of an iteration, or a later one, is there."""
        deadline = time.monotonic() + END_S
        while not any(number >= iteration for number in iterations(self.folder)):
            assert self.process.is_alive(), self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def rank(self, number: int) -> int:
        """Process id of a rank of the newest attempt."""
        for pid in reversed(descendants(self.process.pid)):
            try:
                environ = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
                command = Path(f'/proc/{pid}/cmdline').read_bytes()
            except OSError:
                continue
            if f'RANK={number}'.encode() in environ and b'\0train\0' in command and os.getsid(pid) == pid:
                return pid
        raise AssertionError(f'no rank {number}: {self.said}')

    def agent(self) -> int:
        """Process id of torchrun."""
        return children(self.process.pid)[0]

    def end(self, below: Optional[List[int]] = None) -> int:
        """Wait for the end; checks how it speaks, and that no process is left; gives the exit status."""
        self.process.join(END_S)
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
            raise AssertionError(f'does not end: {self.said}')
        status, said = self.process.exitcode, self.said
        lines = said.strip().splitlines() or ['']
        if status > 0:
            assert lines[-1].startswith('error: '), said
            assert 'Final ' not in said, said
        if status == 0:
            assert lines[-1].startswith('TrainingTime for step: '), said
        deadline = time.monotonic() + 15
        while alive(below or []) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(below or []), f'processes are left: {said}'
        return status


class LauncherBench:
    """Trainings through the launcher, of the tiny model.

    Args:
        bench: For folders.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.sandbox = Sandbox(bench.folder / 'sandbox')
        data = self.sandbox.make_data('data', train=12, val=2)
        config = self.sandbox.home / 'tiny.py'
        config.write_text(plain_text(recipe(data, 'unused', workers=1)))
        self.argv = [f'--config={config}', f'--data_path={data}', '--device=cpu', '--nproc=2', '--doctor=0']
        self.argv += ['--num_workers=1', '--pretrained=none']
        self.kept: Optional[Path] = None

    def start(self, folder: Path, *argv: str) -> Launched:
        """Start the launcher; it goes on where its folder holds a checkpoint."""
        return Launched(self, folder, list(argv))

    def new_folder(self) -> Path:
        """A name for a run's folder."""
        return self._bench.new_folder()

    def unbroken(self) -> Path:
        """Folder of a training that nothing happened to."""
        if self.kept is None:
            folder = self.new_folder()
            launched = self.start(folder)
            assert launched.end() == 0, launched.said
            self.kept = folder
        return self.kept

    def compare(self, folder: Path) -> None:
        """Compare the end of a training with that of the undisturbed one."""
        assert_same_end(folder, self.unbroken())

    def finish(self, folder: Path) -> None:
        """Have a broken training go on, and compare its end."""
        launched = self.start(folder)
        status = launched.end()
        assert status == 0, launched.said
        self.compare(folder)

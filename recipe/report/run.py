"""Finds the logs of a run and merges its starts into one training.

Every start (fresh or resumed) of mmengine has its own ``<timestamp>/`` folder. A later start repeats the iterations
that an earlier one did after its last checkpoint; the earlier records of them are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from recipe.core import config_text, console, json_files, run_folder, sessions
from recipe.report import scalars, text_log
from recipe.report.points import Points


@dataclass
class Start:
    """One start of the trainer.

    Attributes:
        name: Its time stamp, or the name of the log if there is no folder.
        files: The files that were read, by role: ``scalars``, ``text``, ``steps``, ``config``.
        log: Points and validations that no later start repeated, with the header of the text log.
        steps: Measured iterations that no later start repeated; empty without steps.csv.
        config: The config that it ran with; empty if unknown.
        first_logged_iter: First iteration that it trained, or was to train; None if nothing was logged.
        last_iter: Its last known iteration that no later start repeated.
        world_size: Processes; None if unknown.
        batch_size: Images per process and iteration; None if unknown.
        images: Folder of the pictures saved by validation; None if there is none.
    """

    name: str
    files: Dict[str, Path]
    log: scalars.Log
    steps: List[scalars.Step]
    config: Dict[str, Any]
    first_logged_iter: Optional[int] = None
    last_iter: int = 0
    world_size: Optional[int] = None
    batch_size: Optional[int] = None
    images: Optional[Path] = None

    @property
    def first_iter(self) -> int:
        """``first_logged_iter`` of a start in ``Run.starts``."""
        assert self.first_logged_iter is not None, 'Run.starts holds only starts that logged something'
        return self.first_logged_iter

    @property
    def global_batch(self) -> Optional[int]:
        """Images per iteration over all processes."""
        return self.world_size * self.batch_size if self.world_size and self.batch_size else None

    @property
    def seconds(self) -> Optional[float]:
        """Time from the first to the last record of the text log."""
        return self.log.seconds


@dataclass
class Run:
    """A training of one or more starts.

    Attributes:
        path: The run folder or log that the user named.
        starts: Starts that logged at least one iteration or validation, in time order.
        other_starts: Starts that logged none: they crashed at once, or nothing was left to train.
        sessions: Durations measured by the launcher; empty for a single log, and for runs without the launcher.
        launcher: Content of versions.json, which the launcher writes.
        warnings: One line each.
    """

    path: Path
    starts: List[Start]
    other_starts: List[Start] = field(default_factory=list)
    sessions: List[sessions.Session] = field(default_factory=list)
    launcher: Dict[str, Any] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)

    @property
    def points(self) -> Points:
        """Logged iterations of all starts, ascending."""
        if len(self.starts) == 1:
            return self.starts[0].log.points
        joined = Points()
        for start in self.starts:
            joined.extend(start.log.points)
        return joined

    @property
    def validations(self) -> List[scalars.Validation]:
        """Validations of all starts, ascending."""
        return [validation for start in self.starts for validation in start.log.validations]

    @property
    def steps(self) -> List[scalars.Step]:
        """Measured iterations of all starts, ascending."""
        return [step for start in self.starts for step in start.steps]

    @property
    def resumed_at(self) -> List[int]:
        """Last iteration before each start but the first."""
        return sorted({start.first_iter - 1 for start in self.starts[1:]})

    @property
    def planned_iters(self) -> Optional[int]:
        """Last iteration that the last start was to reach; None if no file tells."""
        last = self.starts[-1]
        return config_text.lookup_int(last.config, 'train_cfg.max_iters') or last.log.planned_iters

    @property
    def val_interval(self) -> Optional[int]:
        """Iterations between validations; None if no file tells."""
        return config_text.lookup_int(self.starts[-1].config, 'train_cfg.val_interval')


def read_run(path: Path, batch_size: Optional[int] = None, nproc: Optional[int] = None) -> Run:
    """Read a run folder, one ``<timestamp>/`` folder of it, or a single log.

    Args:
        path: Folder or file.
        batch_size: Images per process, instead of the run's own record.
        nproc: Processes, instead of the run's own record.

    Raises:
        UserError: Nothing to read there, or a damaged file.
    """
    if not path.exists():
        raise console.UserError(f'no such run folder or log: {path}')
    starts = [_read_start(name, files) for name, files in _find(path)]
    root = _root(path)
    run = Run(path, [start for start in starts if start.first_logged_iter is not None], launcher=_launcher(root))
    run.other_starts = [start for start in starts if start.first_logged_iter is None]
    run.sessions = sessions.read(path) if path == root else []
    run.warnings = [warning for start in starts for warning in start.log.warnings]
    if not run.starts:
        raise console.UserError(f'no training iteration is logged in {path}: is it the log of an mmengine training?')
    for start in run.starts:
        if not start.config and (root / 'config.py').is_file():
            start.config = _config(root / 'config.py')
        start.batch_size = (
            batch_size
            or config_text.lookup_int(start.config, 'train_dataloader.batch_size')
            or config_text.lookup_int(run.launcher, 'batch_size')
        )
        start.world_size = nproc or start.log.world_size or config_text.lookup_int(run.launcher, 'world_size')
        _place_validations(start)
    _supersede(run.starts)
    return run


def _root(path: Path) -> Path:
    """Folder of the run that a path belongs to."""
    folder = path if path.is_dir() else path.parent
    if folder.name == 'vis_data':
        folder = folder.parent
    return folder.parent if _is_start(folder) else folder


def _is_start(folder: Path) -> bool:
    # The launcher's log of a run, such as train_full_8p.log, may have the name of its folder.
    is_run = (folder / run_folder.COMMAND).is_file()
    named = (folder / f'{folder.name}.log').is_file() and not is_run
    return (folder / 'vis_data' / 'scalars.json').is_file() or named


def _find(path: Path) -> List[Any]:
    """Name and files of each start, in time order (mmengine's names are time stamps)."""
    if path.is_file():
        folder = path.parent.parent if path.parent.name == 'vis_data' else path.parent
        of_start = path.suffix == '.json' or path.name == f'{folder.name}.log'
        if of_start and _is_start(folder):
            return [(folder.name, _files(folder))]
        return [(path.stem, {'scalars' if path.suffix == '.json' else 'text': path})]
    if _is_start(path):
        return [(path.name, _files(path))]
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and _is_start(folder))
    if not folders:
        raise console.UserError(
            f'{path} holds no mmengine log (<timestamp>/<timestamp>.log, <timestamp>/vis_data/scalars.json): '
            'give a run folder or a log file (of mmsegmentation 0.x: its .log.json)'
        )
    return [(folder.name, _files(folder)) for folder in folders]


def _files(folder: Path) -> Dict[str, Path]:
    candidates = {
        'scalars': folder / 'vis_data' / 'scalars.json',
        'text': folder / f'{folder.name}.log',
        'steps': folder / 'vis_data' / 'steps.csv',
        'config': folder / 'vis_data' / 'config.py',
    }
    return {role: file for role, file in candidates.items() if file.is_file()}


def _launcher(root: Path) -> Dict[str, Any]:
    path = root / 'versions.json'
    if not path.is_file():
        return {}
    try:
        return json_files.read(path, dict)
    except json_files.JsonError as error:
        raise console.UserError(
            f'{path} is no JSON of the launcher ({error})', 'delete it and give --batch_size and --nproc'
        ) from None


def _config(path: Path) -> Dict[str, Any]:
    return config_text.read_config(path.read_text(encoding='utf-8-sig', errors='replace'))


def _read_start(name: str, files: Dict[str, Path]) -> Start:
    log = text_log.read_text(files['text']) if 'text' in files else scalars.Log()
    if 'scalars' in files:  # has more digits than the text log
        text, log = log, scalars.read_scalars(files['scalars'])
        _take_from_text(log, text)
    steps: List[scalars.Step] = []
    if 'steps' in files:
        steps, warnings = scalars.read_steps(files['steps'])
        log.warnings += warnings
    config = _config(files['config']) if 'config' in files else config_text.read_config(log.config_text)
    start = Start(name, files, log, steps, config)
    start.first_logged_iter = _first_iter(start)
    start.last_iter = max(
        [step.iter for step in steps[-1:]]
        + [log.points.last_iter]
        + [validation.iter or 0 for validation in log.validations[-1:]],
        default=0,
    )
    any_file = next(iter(files.values()))
    folder = any_file.parent if any_file.parent.name == 'vis_data' else any_file.parent / 'vis_data'
    images = folder / 'vis_image'
    start.images = images if images.is_dir() else None
    return start


def _take_from_text(log: scalars.Log, text: scalars.Log) -> None:
    """Add to scalars.json the values that only the text log has."""
    names = ('world_size', 'device', 'versions', 'config_text', 'resumed_iter', 'early_stop_iter')
    for name in (*names, 'seconds', 'clock_steps'):
        setattr(log, name, getattr(text, name))
    log.planned_iters = text.planned_iters
    log.warnings += text.warnings
    for validation, twin in zip(log.validations, text.validations):
        validation.saved_iter = twin.saved_iter
        if validation.iter is None:
            validation.iter = twin.iter
        # The text log rounds to 4 digits. A larger difference means that the two files do not belong together.
        if math.isclose(validation.miou_percent, twin.miou_percent, abs_tol=1e-3):
            validation.class_iou_percent = twin.class_iou_percent


def _first_iter(start: Start) -> Optional[int]:
    if start.steps:
        return start.steps[0].iter
    points, resumed = start.log.points, start.log.resumed_iter
    if not points:
        # A start that was resumed for a missing validation only.
        return resumed + 1 if start.log.validations and resumed is not None else None
    if resumed is not None and resumed < points.iters[0]:
        return resumed + 1
    first = points.iters[0]
    interval = points.iters[1] - first if len(points) > 1 else first
    return max(1, first - interval + 1)


def _place_validations(start: Start) -> None:
    """Find the iterations of validations whose record lacks them."""
    interval = config_text.lookup_int(start.config, 'train_cfg.val_interval')
    planned = config_text.lookup_int(start.config, 'train_cfg.max_iters') or start.log.planned_iters
    before = (start.first_iter or 1) - 1
    for validation in start.log.validations:
        if validation.iter is None:
            if interval and not start.log.by_epoch:
                at = -(-max(validation.after_iter, before + 1) // interval) * interval
                validation.iter = min(at, planned) if planned else at
            else:
                validation.iter = max(validation.after_iter, validation.saved_iter)
        before = validation.iter
        start.last_iter = max(start.last_iter, validation.iter)


def _supersede(starts: List[Start]) -> None:
    """Drop the records that a later start repeated."""
    cutoff: float = math.inf
    validation_cutoff: float = math.inf
    for start in reversed(starts):
        log = start.log
        start.steps = [step for step in start.steps if step.iter < cutoff]
        log.points.cut(cutoff)
        log.validations = [item for item in log.validations if item.placed_iter < min(cutoff, validation_cutoff)]
        start.last_iter = int(min(start.last_iter, cutoff - 1))
        cutoff = min(cutoff, start.first_iter)
        validation_cutoff = min([validation_cutoff, *(item.placed_iter for item in log.validations)])

"""Shows the progress of a training from rank 0's files: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Dict, List, Optional, Tuple

from recipe.core import json_files, sessions
from recipe.data.progress_bar import ProgressBar
from recipe.launch.ranks import tail

LINE_EVERY_S = 30
_LOOK_EVERY_S = 3  # between reads; reading a log over a network takes time
_SPEED_STEPS = 50  # recent iterations that the speed and the ETA are computed from
_VALIDATING = re.compile(r'Iter\(val\) \[\s*(\d+)/(\d+)\]')


@dataclass(frozen=True)
class State:
    """Progress as read from the files.

    Attributes:
        iteration: Last iteration that ended, from 1; 0 before the first one.
        step_s: Mean seconds of the last iterations; None before the first one.
        loss: The loss logged last.
        validating: Batches done and their total, while validation runs.
    """

    iteration: int = 0
    step_s: Optional[float] = None
    loss: Optional[float] = None
    validating: Optional[Tuple[int, int]] = None


def read(run: Path, earlier: Collection[str] = ()) -> State:
    """Read the state of a training.

    Args:
        run: Run folder.
        earlier: Names of the log folders of earlier starts.
    """
    starts = sessions.log_folders(run).difference(earlier)
    if not starts:
        return State()
    newest = run / max(starts) / 'vis_data'
    steps = _steps(newest / 'steps.csv')
    logged = _logged(newest / 'scalars.json')
    log = tail(newest.parent / f'{newest.parent.name}.log', 1)
    match = _VALIDATING.search(log[0]) if log else None
    return State(
        # steps.csv is written at intervals, and only by the recipe's train loop.
        iteration=max(steps[-1][0] if steps else 0, int(logged.get('step', 0))),
        step_s=sum(seconds for _, seconds in steps) / len(steps) if steps else logged.get('time'),
        loss=logged.get('loss'),
        validating=(int(match[1]), int(match[2])) if match else None,
    )


def _steps(path: Path) -> List[Tuple[int, float]]:
    """Iteration and its seconds, from the last complete lines."""
    rows = []
    for line in tail(path, _SPEED_STEPS):
        cells = line.split(',')
        if len(cells) == 3 and cells[0].isdigit():
            try:
                rows.append((int(cells[0]), float(cells[2])))
            except ValueError:
                continue  # an incomplete line, still being written
    return rows


def _logged(path: Path) -> Dict[str, float]:
    """The last training line of scalars.json; empty before there is one."""
    for line in reversed(tail(path)):
        try:
            row = json_files.parse(line, dict, finite=False)
        except json_files.JsonError:
            continue  # an incomplete line, still being written
        numbers = {key: row[key] for key in ('step', 'time', 'loss') if isinstance(row.get(key), (int, float))}
        if 'loss' in numbers and all(math.isfinite(numbers[key]) for key in numbers if key != 'loss'):
            return numbers
    return {}


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{rest:02d}'


class Progress(ProgressBar):
    """Shows a training while it runs; a context manager.

    Args:
        run: Run folder.
        max_iters: Iterations in all.
        global_batch: Images per iteration over all ranks.
    """

    def __init__(self, run: Path, max_iters: int, global_batch: int) -> None:
        super().__init__('starting', max_iters, LINE_EVERY_S, starts_silent=False)
        self._run = run
        self._max_iters = max_iters
        self._global_batch = global_batch
        self._earlier = sessions.log_folders(run)
        self._next_look = time.monotonic()
        self._shown = State()

    def look(self) -> None:
        """Read the files and show what is new. Cheap enough to call twice a second."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + (0.5 if self.is_shown else _LOOK_EVERY_S)
        try:
            state = read(self._run, self._earlier)
        except OSError:  # the ranks report a disk that fails or a mount that is gone
            return
        if state == self._shown:
            return
        what = 'training' if state.iteration else 'starting'
        if state.validating:
            what = f'validating {state.validating[0]}/{state.validating[1]}'
        if self.update(state.iteration, self._facts(state), what):
            self._shown = state

    def _facts(self, state: State) -> str:
        facts = []
        if state.loss is not None:
            facts.append(f'loss {state.loss:.4g}')
        if state.step_s and state.step_s > 0:  # without steps.csv the times come from a clock that may have been set
            facts.append(f'{self._global_batch / state.step_s:.3g} images/s')
            facts.append(f'ETA {clock(max(0, self._max_iters - state.iteration) * state.step_s)}')
        return '  '.join(facts)

"""Runs ``recipe.evaluate.predict`` as one rank: ``evaluate TASK``, run by ``start``.

Shows the watchdog that the rank makes progress.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

from recipe.core import console
from recipe.evaluate import predict
from recipe.launch import watchdog
from recipe.launch.pulse import Heartbeat


def main() -> None:
    """Entry point; see the module's docstring. A full disk or an unreadable picture ends it with one line."""
    console.run(_run)


def _run() -> None:
    faulthandler.enable()
    faulthandler.register(watchdog.DUMP)
    heartbeat = Heartbeat.of_this_rank()
    rank, local_rank, world_size = (int(os.environ[name]) for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'))

    def mark(done: bool) -> None:
        heartbeat.mark(step=done, slow=not done)

    predict.run(predict.Task.read(Path(sys.argv[1])), rank, local_rank, world_size, mark)

"""Runs ``recipe.engine.train`` as one rank: ``train CONFIG --work-dir=DIR ARGUMENTS``, run by ``start``.

Shows the watchdog that the rank makes progress. After a restart, all ranks continue from the same good checkpoint.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import importlib
import os
import sys
from pathlib import Path
from typing import Any, List, Optional, Tuple

from recipe.core import console, run_folder, temporary
from recipe.core.exit_status import NO_RESTART
from recipe.engine import train
from recipe.launch import variables, watchdog
from recipe.launch.pulse import Heartbeat

# Hook points that all ranks pass in the same order.
_STAGES = ('before_train_iter', 'after_train_part', 'after_train_iter', 'before_val_iter', 'after_val_iter')


def show_progress(runner_class: Any, heartbeat: Heartbeat) -> None:
    """Make a runner leave a mark at each stage that it reaches.

    Hooks may write checkpoints or logs, and the first iterations may compile. Both can take long.

    Args:
        runner_class: ``mmengine.runner.Runner``, whose ``call_hook`` is called at each stage.
        heartbeat: Receives the marks.
    """
    call_hook = runner_class.call_hook
    begun = set()  # kinds of iterations of which at least one has ended

    def call_and_mark(self: Any, fn_name: str, **kwargs: Any) -> None:
        is_stage = fn_name in _STAGES
        heartbeat.mark(step=is_stage, slow=True)
        call_hook(self, fn_name, **kwargs)
        when, _, kind = fn_name.partition('_')
        if is_stage and when == 'after':
            begun.add(kind)
        heartbeat.mark(slow=not is_stage or kind not in begun)

    runner_class.call_hook = call_and_mark


def store_of_attempt(attempt: int) -> None:
    """Use a fresh key prefix in torchrun's store for each attempt.

    Args:
        attempt: How often the ranks were started before.
    """
    from torch.distributed import PrefixStore

    rendezvous: Any = importlib.import_module('torch.distributed.rendezvous')  # a function has the same name
    create = rendezvous._create_c10d_store

    def create_anew(*args: Any, **kwargs: Any) -> PrefixStore:
        return PrefixStore(f'recipe/attempt_{attempt}', create(*args, **kwargs))

    rendezvous._create_c10d_store = create_anew


def agree_on_checkpoint(work_dir: Path, attempt: int) -> Optional[str]:
    """The checkpoint from which all ranks continue, chosen by rank 0.

    Args:
        work_dir: Run folder.
        attempt: How often the ranks were started before.

    Returns:
        Its path; None if none was written yet.

    Raises:
        console.UserError: There are checkpoints but none is good, or another machine does not come back.
    """
    from torch.distributed import TCPStore

    patience = datetime.timedelta(seconds=float(os.environ[variables.RESTART_PATIENCE_S]))
    address, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    machines = int(os.environ['GROUP_WORLD_SIZE'])
    key = f'recipe/checkpoint_{attempt}'
    try:
        store = TCPStore(address, port, is_master=False, timeout=patience)
        if os.environ['LOCAL_RANK'] == '0':
            store.set(f'{key}/machine_{os.environ["GROUP_RANK"]}', 'here')
        # Without this, the collectives would wait for a machine that is lost.
        store.wait([f'{key}/machine_{number}' for number in range(machines)], patience)
        if os.environ['RANK'] == '0':
            store.set(key, _choose(work_dir))
        chosen = store.get(key).decode()
    except RuntimeError as error:  # base class of DistStoreError and DistNetworkError
        raise console.UserError(
            f'the machines do not meet again at {address}:{port} ({str(error).splitlines()[0]})',
            'start all of them again with --resume=1',
            NO_RESTART,
        ) from None
    if chosen.startswith('!'):
        raise console.UserError(chosen[1:], status=NO_RESTART)
    return chosen or None


def _choose(work_dir: Path) -> str:
    """The path of the newest good checkpoint, '' if there are none, or '!' and why none is good."""
    from recipe.engine.checkpoint import CheckpointError, find_resumable

    if not any(work_dir.glob(run_folder.CHECKPOINTS)):
        return ''
    try:
        checkpoint, passed_over = find_resumable(str(work_dir))
    except CheckpointError as error:
        return f'!{error}'
    for path, reason in passed_over:
        console.warn(f'passed over {path}: {reason}')
    return checkpoint


def prepare(argv: List[str]) -> Tuple[argparse.Namespace, Optional[str]]:
    """Prepare the start of the training.

    Args:
        argv: Arguments of ``recipe.engine.train``.

    Returns:
        The parsed arguments, and the checkpoint to continue from.

    Raises:
        console.UserError: As ``agree_on_checkpoint``.
    """
    faulthandler.enable()
    faulthandler.register(watchdog.DUMP)
    asked = train.parse(argv)
    if variables.SOCKETS in os.environ:
        temporary.use_for_sockets(os.environ[variables.SOCKETS])
    heartbeat = Heartbeat.of_this_rank()
    heartbeat.mark(slow=True)
    attempt = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'))
    checkpoint = None
    if attempt:
        store_of_attempt(attempt)
        checkpoint = agree_on_checkpoint(Path(asked.work_dir), attempt)
        console.say(f'attempt {attempt + 1} goes on from {checkpoint or "the start, as there is no checkpoint yet"}')

    from mmengine.runner import Runner

    show_progress(Runner, heartbeat)
    return asked, checkpoint or train.checkpoint_to_resume(asked)


def main() -> None:
    """Entry point; see the module's docstring."""
    try:
        asked, checkpoint = prepare(sys.argv[1:])
    except console.UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(error.status)
    train.train(asked.config, asked.work_dir, asked.device, checkpoint)  # its errors keep their traceback

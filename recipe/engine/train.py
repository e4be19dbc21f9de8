"""Trains as one rank: ``python recipe train CONFIG --work-dir=DIR [--device=D] [--resume] [--resume-from=FILE]``.

The launcher starts it through torchrun. Without torchrun it trains in one process.
"""

import argparse
import os
from typing import List, NoReturn, Optional

from recipe.core import console


def parse(argv: List[str]) -> argparse.Namespace:
    """Read the arguments of a rank.

    Args:
        argv: Arguments from the launcher.
    """
    parser = argparse.ArgumentParser(prog='python recipe train', description='Train as one rank.')
    parser.add_argument('config', help='a config file, such as config.py of a run folder')
    parser.add_argument('--work-dir', required=True, help='the run folder')
    parser.add_argument('--device', default='auto', help='npu, cuda or cpu; any but the one that is there is refused')
    parser.add_argument(
        '--resume',
        action='store_true',
        help="go on from the config's load_from, or without one from the newest good checkpoint in the run folder",
    )
    parser.add_argument('--resume-from', metavar='FILE', help='go on from this checkpoint')
    return parser.parse_args(argv)


def train(config_file: str, work_dir: str, device: str = 'auto', resume_from: Optional[str] = None) -> NoReturn:
    """Train to the end, and end the process with an exit status of ``recipe.core.exit_status``.

    Args:
        config_file: Resolved config, with the recipe's engine (see ``equip()``) or with upstream's.
        work_dir: Run folder.
        device: ``auto``, ``npu``, ``cuda`` or ``cpu``.
        resume_from: Checkpoint to resume from; the same on all ranks. None: as the config says.
    """
    from mmengine.config import Config
    from mmengine.runner import Runner
    from mmseg.engine.device import prepare_device
    from mmseg.registry import RUNNERS

    # The config's custom_imports may have lost the entry of equip(), so import the components here.
    from recipe.engine import checkpoint, components  # noqa: F401  from here on checkpoints are read as data
    from recipe.engine.loaders import prepare_loaders
    from recipe.engine.precision import set_tf32
    from recipe.engine.termination import leave

    config = Config.fromfile(config_file)
    config.work_dir = work_dir
    config.launcher = 'pytorch' if 'RANK' in os.environ else 'none'
    if resume_from is not None:
        config.resume, config.load_from = True, resume_from
    if config.train_cfg.get('graph'):
        # NCCL's thread would ask for the state of work that a graph has captured. The watchdog of ranks finds hangs.
        os.environ.setdefault('TORCH_NCCL_ASYNC_ERROR_HANDLING', '0')
    found = prepare_device(config, device)
    if config.get('allow_tf32') is not None:
        set_tf32(found, config.allow_tf32)
    prepare_loaders(config, found)
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    try:
        runner.train()
    except SystemExit as ended:
        runner.visualizer.close()  # trackers write what they have collected
        leave(ended)
    leave()


def checkpoint_to_resume(asked: argparse.Namespace) -> Optional[str]:
    """The checkpoint that a rank resumes from, None if it starts a new training.

    Args:
        asked: From ``parse``.

    Raises:
        console.UserError: ``--resume`` was given and there is no checkpoint.
    """
    if asked.resume_from is not None or not asked.resume:
        return asked.resume_from
    from mmengine.config import Config

    from recipe.engine.checkpoint import CheckpointError, find_resumable

    named = Config.fromfile(asked.config).get('load_from')
    if named:
        return named
    try:
        path, passed_over = find_resumable(asked.work_dir)
    except CheckpointError as error:
        raise console.UserError(str(error)) from None
    for skipped, reason in passed_over:
        console.warn(f'passed over {skipped}: {reason}')
    return path

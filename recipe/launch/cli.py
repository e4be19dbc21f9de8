"""Checks a training, starts its ranks, follows them and reports.

Runs in the environment made by the set-up; test/lib.sh calls it. Nothing is written before the last check has passed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator, List, Optional

from recipe.core import console, files, inputs, network, run_folder, run_lock, sessions
from recipe.data import training_data
from recipe.engine import devices
from recipe.launch import checks, options
from recipe.launch.plan import Plan

PACKAGES = ('torch', 'torch_npu', 'mx_driving', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'numpy')


def write_run_files(plan: Plan, argv: List[str]) -> Path:
    """Write the files of this start into the run folder.

    Args:
        plan: What will be run.
        argv: The launcher's options as given.

    Returns:
        The config file for the ranks of this machine.
    """
    folder = plan.own_folder
    with (folder / run_folder.COMMAND).open('a', encoding='utf-8') as file:
        file.write(f'bash test/{plan.case}.sh {" ".join(map(shlex.quote, argv))}\n')
    versions = {
        'world_size': plan.world_size,
        'batch_size': plan.config.train_dataloader['batch_size'],
        'device': plan.device,
        'python': platform.python_version(),
        'platform': platform.platform(),
        'machine': platform.machine(),
        **{name: version for name in PACKAGES for version in [_version(name)] if version},
        'checkouts': plan.pins,
    }
    (folder / run_folder.VERSIONS).write_text(json.dumps(versions, indent=2) + '\n', encoding='utf-8')
    if plan.initial_weights is not None:
        _write_initial_weights(plan)
    config_file = folder / run_folder.CONFIG
    plan.config.dump(str(config_file))
    return config_file


def _write_initial_weights(plan: Plan) -> None:
    """Write the weights of --init_from into the run folder, which all machines share, and name them in the config."""
    import torch

    path = plan.folder / run_folder.INITIAL_WEIGHTS
    if plan.options.is_first_node:
        with files.whole(path) as partial:
            torch.save({'state_dict': plan.initial_weights}, str(partial))
    plan.config['load_from'] = str(path)


def _version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def train(plan: Plan, config_file: Path, lock: run_lock.RunLock) -> None:
    """Run the ranks of this machine to their end.

    Args:
        plan: What to run.
        config_file: From ``write_run_files``.
        lock: Lock of the folder of ``config_file``.

    Raises:
        console.UserError: A rank failed, or a signal ended the training; carries the exit status.
    """
    from recipe.launch import progress, ranks, restarts

    asked = plan.options
    addr = network.resolve(asked.master_addr) if asked.master_addr else network.LOCAL
    port = asked.master_port or network.free_port()
    arguments = [
        *ranks.Ranks.arguments(plan.nproc, asked.nnodes, asked.node_rank or 0, addr, port, asked.max_restarts),
        *('train', str(config_file), f'--work-dir={plan.folder}', f'--device={plan.device}'),
        *(['--resume'] if asked.resume else []),
    ]
    log_dir = config_file.parent / run_folder.LOGS / datetime.datetime.now().strftime('%Y%m%d_%H%M%S_%f')
    env = {
        **devices.rank_environment(plan.device, plan.nproc, addr, asked.nnodes > 1),
        **restarts.environment(plan.device, asked.hang_timeout),
    }
    started = ranks.Ranks(arguments, log_dir, env, keep=(lock.descriptor,))
    global_batch = plan.world_size * plan.config.train_dataloader['batch_size']
    with progress.Progress(plan.folder, plan.config.train_cfg['max_iters'], global_batch) as shown:

        def look() -> None:
            lock.require_held()
            shown.look()

        status = started.wait(look, restarts.Restarts(config_file.parent, log_dir, asked.max_restarts).note)
    if started.asked_to_end is not None:
        saved = any(plan.folder.glob(run_folder.CHECKPOINTS))
        again = 'continue with --resume=1' if saved else 'it has no checkpoint, so start again'
        raise console.UserError(
            f'{started.asked_to_end.name} ended the training; {again}; run folder: {plan.folder}', status=status
        )
    failure = started.failure()
    if failure is not None:
        for line in failure.last_lines:
            console.show(line)
        raise console.UserError(restarts.describe(config_file.parent, log_dir, failure), status=failure.status)


def report(plan: Plan) -> None:
    """Compute the figures of the run, write its files and print, last, the lines that tools grep.

    Args:
        plan: What was run.

    Raises:
        console.UserError: A figure is missing or not a number.
    """
    from recipe.report import metrics
    from recipe.report.collect import REQUIRED, collect

    result = collect(plan.folder, REQUIRED[plan.options.script])
    for warning in result.warnings:
        console.warn(warning)
    written = metrics.write(result, plan.folder)
    written += _write_legacy(plan, result)
    for line in metrics.summary(result):
        console.say(line)
    for path in written:
        console.say(f'wrote    {path}')
    for line in metrics.legacy_lines(result):
        console.say(line)


def _write_legacy(plan: Plan, result: Any) -> List[Path]:
    """Write the files of the ModelZoo convention; they go to the run folder if test/output cannot be written."""
    folder = run_folder.legacy_folder(plan.folder)
    try:
        return _write_legacy_to(folder, plan, result)
    except OSError as error:
        if folder == plan.folder:
            raise
        console.warn(f'{folder} cannot be written ({error.strerror}); its files are in {plan.folder}')
        return _write_legacy_to(plan.folder, plan, result)


def _write_legacy_to(folder: Path, plan: Plan, result: Any) -> List[Path]:
    from recipe.report import metrics

    return [*metrics.write_legacy(result, folder, plan.options.script), _write_log(plan, folder / f'{plan.case}.log')]


def _write_log(plan: Plan, legacy: Path) -> Path:
    """Join rank 0's logs of all starts into one file."""
    logs = sorted(path for path in plan.folder.glob('*/*.log') if path.stem == path.parent.name)
    with files.whole(legacy) as beside, beside.open('wb') as file:
        for log in logs:
            file.write(log.read_bytes())
    return legacy


@contextlib.contextmanager
def hold_folder(plan: Plan) -> Iterator[run_lock.RunLock]:
    """Make the run folder and hold its lock. Machines other than the first lock their own folder in it.

    Args:
        plan: If another start has taken its folder since the plan was made, it gets another folder.

    Yields:
        The lock.

    Raises:
        console.UserError: Another training runs there.
    """
    asked = plan.options
    job = ''
    if asked.nnodes > 1:
        job = f'{asked.nnodes}@{network.resolve(str(asked.master_addr))}:{asked.master_port}'
    if asked.is_first_node:
        is_given = asked.resume or asked.work_dir is not None
        plan.folder = run_folder.make(plan.folder, is_given)
    else:
        run_lock.require_same_job(plan.folder, job)
        plan.own_folder.mkdir(parents=True, exist_ok=True)
    with run_lock.RunLock(plan.own_folder, job) as lock:
        if asked.is_first_node and not asked.resume:
            run_folder.require_unused(plan.folder, asked.or_begin)  # another run may have used it meanwhile
        console.log_to(plan.own_folder / run_folder.LAUNCHER_LOG)
        yield lock


def main(argv: List[str]) -> None:
    """Check, train and report.

    Args:
        argv: ``full`` or ``performance``, then the options.
    """
    script, *argv = argv
    asked = options.read(script, argv)
    if asked.trust_checkpoint:
        os.environ['MMSEG_TRUST_CHECKPOINT'] = '1'  # read by the patched loader, here and in the ranks
    if asked.is_first_node and asked.work_dir is not None:
        run_lock.require_free(inputs.absolute(asked.work_dir), patient=True)
    plan = Plan(asked)
    checks.require(plan)
    if plan.options.uses_demo_data:
        data_root = training_data.root(None, True)
        training_data.make_demo(data_root)
        training_data.require(data_root)
    if plan.options.nnodes > 1:
        addr, variable = network.resolve(str(plan.options.master_addr)), network.INTERFACE_VARIABLES[plan.device]
        way = os.environ.get(variable) or network.interface_towards(addr) or 'no interface that is known'
        console.say(f'network  {way} leads to {addr}')
    with hold_folder(plan) as lock:
        console.say(f'run      {plan.folder}')
        with sessions.measured(plan.own_folder):
            train(plan, write_run_files(plan, argv), lock)
        if plan.options.is_first_node:
            report(plan)

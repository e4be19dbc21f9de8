"""Checks a training, starts its ranks, follows them and reports.

Runs in the environment made by the set-up; test/lib.sh calls it. Nothing is written before the last check has passed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

from recipe.core import console, files, inputs, network, run_folder, run_lock, sessions
from recipe.core.run_options import Options
from recipe.data import training_data
from recipe.launch import checks, interrupts, options
from recipe.launch.plan import Plan

PACKAGES = (
    *('torch', 'torch_npu', 'mx_driving', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'numpy'),
    *('tensorboard', 'wandb', 'mlflow-skinny', 'swanlab'),
)


def write_run_files(plan: Plan, argv: List[str]) -> Path:
    """Write the files of this start into the run folder.

    Args:
        plan: What will be run.
        argv: The launcher's options as given.

    Returns:
        The config file for the ranks of this machine.
    """
    write_start(plan, argv, plan.config.train_dataloader['batch_size'], plan.config.train_cfg.get('accumulate', 1))
    if plan.initial_weights is not None:
        _write_initial_weights(plan)
    if plan.starting is not None and plan.options.is_first_node:
        table = files.write_text(plan.folder / run_folder.INIT_FROM_TABLE, plan.starting.as_csv())
        for line in plan.starting.table():
            console.say(f'begins   {line}')
        console.say(f'begins   each tensor: {table}')
    return files.write_text(plan.own_folder / run_folder.CONFIG, plan.config.pretty_text)


def write_start(plan: Plan, argv: List[str], batch_size: int, accumulate: int = 1) -> None:
    """Write the command and the versions of this start.

    Args:
        plan: What will be run.
        argv: The launcher's options as given.
        batch_size: Images per card and iteration.
        accumulate: Parts in which they are computed.
    """
    folder = plan.own_folder
    with (folder / run_folder.COMMAND).open('a', encoding='utf-8') as file:
        file.write(f'bash test/{plan.case}.sh {" ".join(map(shlex.quote, argv))}\n')
    versions = {
        'world_size': plan.world_size,
        'batch_size': batch_size,
        'accumulate': accumulate,
        'device': plan.device,
        'python': platform.python_version(),
        'platform': platform.platform(),
        'machine': platform.machine(),
        **{name: version for name in PACKAGES for version in [_version(name)] if version},
        'checkouts': plan.pins,
    }
    files.write_text(folder / run_folder.VERSIONS, json.dumps(versions, indent=2) + '\n')


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


def train(plan: Plan, config_file: Path, lock: run_lock.RunLock, logs: Sequence[Path]) -> None:
    """Run the ranks of this machine to their end.

    Args:
        plan: What to run.
        config_file: From ``write_run_files``.
        lock: Lock of the folder of ``config_file``.
        logs: From ``open_logs``; all that the ranks print is added.

    Raises:
        console.UserError: A rank failed, or a signal ended the training; carries the exit status.
    """
    from recipe.launch import job, progress

    program = [
        *('train', str(config_file), f'--work-dir={plan.folder}', f'--device={plan.device}'),
        *(['--resume'] if plan.options.resume else []),
    ]
    global_batch = plan.world_size * plan.config.train_dataloader['batch_size']
    with progress.Progress(plan.folder, plan.config.train_cfg['max_iters'], global_batch) as shown:
        ended = job.run(plan, program, lock, shown.look, logs=logs)
    if ended is not None:
        if any(plan.folder.glob(run_folder.CHECKPOINTS)):
            again = f'continue with --resume=1; run folder: {plan.folder}'
        elif was_trained(plan.folder):
            again = f'it has no checkpoint, so start again; run folder: {plan.folder}'
        else:
            again = 'nothing was recorded yet, so start again'
        raise interrupts.Interrupted(ended, f'the training; {again}')


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
    written += _publish(plan, metrics.write_legacy(result, plan.folder, plan.options.script))
    for line in metrics.summary(result):
        console.say(line)
    for path in written:
        console.say(f'wrote    {path}')
    for line in metrics.legacy_lines(result):
        console.say(line)


def open_logs(plan: Plan) -> List[Path]:
    """Have all messages go to the logs of the run too, and show the run in ``test/output``.

    Returns:
        The log that the ranks' output is added to, and a copy of it if ``test/output`` cannot hold a link.
    """
    log = plan.own_folder / f'{plan.case}.log'
    logs = [log]
    if plan.options.is_first_node:
        with contextlib.suppress(OSError):  # a full disk; the ranks report it
            log.touch()
            logs += [shown for shown in _publish(plan, [log]) if not shown.samefile(log)]
        if plan.options.writes_checkpoints and run_folder.is_shown(plan.folder):
            run_folder.link_newest(plan.folder)
    console.log_to(plan.own_folder / run_folder.LAUNCHER_LOG, *logs)
    return logs


def _publish(plan: Plan, found: List[Path]) -> List[Path]:
    """Show files of the run in ``test/output``; returns where they are to be seen, else where they are."""
    if not run_folder.is_shown(plan.folder):
        return found
    try:
        return [run_folder.publish(file) for file in found]
    except OSError as error:
        console.warn(f'{run_folder.OUTPUT} cannot be written ({console.reason(error)}); its files are in {plan.folder}')
        return found


@contextlib.contextmanager
def hold_folder(plan: Plan, may_be_used: bool = False) -> Iterator[run_lock.RunLock]:
    """Make the run folder and hold its lock. Machines other than the first lock their own folder in it.

    Args:
        plan: If another start has taken its folder since the plan was made, it gets another folder.
        may_be_used: Whether the folder keeps its name and may hold what an earlier start has written.

    Yields:
        The lock.

    Raises:
        console.UserError: Another training runs there.
    """
    asked = plan.options
    job = ''
    if asked.nnodes > 1:
        job = f'{asked.nnodes}@{network.resolve(str(asked.master_addr))}:{asked.master_port}'
    may_be_used = may_be_used or asked.resume
    if asked.is_first_node:
        plan.folder, before = run_folder.make(plan.folder, may_be_used or asked.work_dir is not None)
    else:
        run_lock.require_same_job(plan.folder, job)
        plan.own_folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as emptied, run_lock.RunLock(plan.own_folder, job) as lock:
        if asked.is_first_node and not may_be_used:
            run_folder.require_unused(plan.folder, asked.or_begin)  # another run may have used it meanwhile
        try:
            yield lock
        except interrupts.Interrupted:
            if asked.nnodes == 1 and not may_be_used and not was_trained(plan.folder):
                before.restore_content(plan.folder)
                emptied.callback(run_folder.repair_links)
                emptied.callback(before.restore_folders, plan.folder)
            raise


def was_trained(folder: Path) -> bool:
    """Whether a run folder holds a checkpoint or the record of an iteration."""
    from recipe.launch import progress

    return any(folder.glob(run_folder.CHECKPOINTS)) or progress.read(folder).iteration > 0


def read_options(script: str, argv: List[str]) -> Options:
    """Read and check the options, and take effect of those that concern this process.

    Args:
        script: One of ``SCRIPTS``.
        argv: The options.
    """
    asked = options.read(script, argv)
    if asked.trust_checkpoint:
        os.environ['MMSEG_TRUST_CHECKPOINT'] = '1'  # read by the patched loader, here and in the ranks
    if asked.is_first_node and asked.work_dir is not None:
        run_lock.require_free(inputs.absolute(asked.work_dir), patient=True)
    return asked


def main(argv: List[str]) -> None:
    """Check, train or evaluate, and report; or measure the memory of a step.

    Args:
        argv: ``full``, ``performance`` or ``evaluate``, then the options.
    """
    script, *argv = argv
    if script == 'evaluate':
        from recipe.launch import evaluation

        evaluation.main(argv)
        return
    plan = Plan(read_options(script, argv))
    prepare(plan)
    if plan.options.memory:
        from recipe.launch import memory

        with interrupts.caught(interrupts.BEFORE):
            memory.report(plan)
        return
    with hold_folder(plan) as lock:
        logs = open_logs(plan)
        console.say(f'run      {plan.folder}')
        with sessions.measured(plan.own_folder):
            with interrupts.caught(interrupts.BEFORE):
                config_file = write_run_files(plan, argv)
            train(plan, config_file, lock, logs)
        if plan.options.is_first_node:
            with interrupts.caught(
                f'the report of a complete training; make it with: python tools/metrics.py {plan.folder}'
            ):
                report(plan)


def prepare(plan: Plan) -> None:
    """Do all that comes before the run folder is made: the checks, and the built-in data set.

    Args:
        plan: Its options passed ``options.read``; the rest is filled in.

    Raises:
        console.UserError: The first fault found.
    """
    with interrupts.caught(interrupts.BEFORE):
        checks.require(plan)
        if plan.options.uses_demo_data:
            data_root = training_data.root(None, True)
            training_data.make_demo(data_root)
            training_data.require(data_root, *checks.classes(plan))
        if plan.options.nnodes > 1:
            addr, variable = network.resolve(str(plan.options.master_addr)), network.INTERFACE_VARIABLES[plan.device]
            way = os.environ.get(variable) or network.interface_towards(addr) or 'no interface that is known'
            console.say(f'network  {way} leads to {addr}')

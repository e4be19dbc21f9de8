"""Checks a training, starts its ranks, follows them and reports.

Runs in the set-up environment; test/lib.sh calls it. Nothing is written before the last check has passed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from recipe.core import console, imported_packages, inputs, network, paths, run_folder, run_lock, sessions
from recipe.core.run_options import SCRIPTS, Options
from recipe.data import files, training_data
from recipe.doctor import report as doctor_report
from recipe.doctor.subject import Subject
from recipe.engine import batch as batch_rule
from recipe.engine import devices, size
from recipe.launch import examine, options
from recipe.upstream import checkouts

PACKAGES = ('torch', 'torch_npu', 'mx_driving', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'numpy')


@dataclass(frozen=True)
class Plan:
    """What will be run.

    Attributes:
        options: What the user asked for.
        device: ``npu``, ``cuda`` or ``cpu``.
        nproc: Ranks on this machine.
        config: Resolved ``mmengine.Config``.
        folder: Run folder, absolute.
        pins: Commits of each checkout, for versions.json.
    """

    options: Options
    device: str
    nproc: int
    config: Any
    folder: Path
    pins: Dict[str, Any]

    @property
    def world_size(self) -> int:
        """Ranks on all machines."""
        return self.nproc * self.options.nnodes

    @property
    def own_folder(self) -> Path:
        """Where this machine keeps what belongs to it alone: config, command, logs of its ranks."""
        return self.folder if self.options.is_first_node else self.folder / 'nodes' / str(self.options.node_rank)

    @property
    def case(self) -> str:
        """Name of the script, which the legacy files bear."""
        return SCRIPTS[self.options.script]


def make_plan(asked: Options) -> Plan:
    """Check everything that can stop a training, and resolve its config. Only weights may be downloaded.

    Args:
        asked: Options that passed ``options.read``.

    Raises:
        console.UserError: The first fault found.
    """
    pins = checkouts.require_patched()
    imported_packages.require()
    device, count = devices.find(asked.device)  # before anything imports torch
    nproc = devices.choose_nproc(device, count, asked.nproc, asked.demo)
    console.say(f'device   {nproc} x {device}' + (f' on each of {asked.nnodes} machines' if asked.nnodes > 1 else ''))

    from recipe.engine import config as run_config
    from recipe.engine import weights

    data_root = training_data.root(asked.data_path, asked.demo)
    config = run_config.make(asked, device, data_root)
    if asked.is_first_node:
        case = SCRIPTS[asked.script]
        folder = run_folder.choose(case, asked.demo, asked.work_dir, asked.resume, asked.or_begin)
    else:
        folder = inputs.absolute(str(asked.work_dir))
    if asked.is_first_node and run_folder.legacy_folder(folder) == folder:
        console.warn(f'{run_folder.OUTPUT} cannot be written to; the files for it will be in {folder}')
    batch, *consequences = batch_rule.says(config, asked.nnodes, nproc)
    console.say(f'batch    {batch}')
    for consequence in consequences if asked.writes_checkpoints else ():  # a performance run has no result
        console.warn(consequence)
    # A checkpoint holds the weights, so a resumed run does without their file.
    backbone = None if asked.resume else weights.locate(asked.pretrained, run_config.weights_source(config))
    if not asked.uses_demo_data:
        training_data.require(data_root)
    if asked.decoded_cache:
        training_data.require_decoded(data_root, inputs.absolute(asked.decoded_cache))
    # The slow checks come last.
    model = run_config.build_model(config)
    if asked.resume:
        _set_checkpoint(config, folder, model)
    elif config.get('load_from'):
        console.say(f'weights  {weights.require_start(config["load_from"], model)}')
    elif backbone is not None:
        parameters, buffers = dict(model.backbone.named_parameters()), dict(model.backbone.named_buffers())
        console.say(f'weights  {backbone}: {weights.compare(backbone, parameters, buffers)}')
    else:
        console.say('weights  none, the training begins from scratch')
    run_config.set_weights(config, backbone)
    run_folder.require_space(folder, size.disk_bytes(asked.writes_checkpoints, model), 'the checkpoints and logs')
    return Plan(asked, device, nproc, config, folder, pins)


def _set_checkpoint(config: Any, folder: Path, model: Any) -> None:
    """Have the training go on from the newest checkpoint that loads whole and fits the config."""
    from recipe.engine import config as run_config
    from recipe.engine.checkpoint import CheckpointError, find_resumable, misfit

    wrapper, schedulers = run_config.build_optimizer(config, model)
    try:
        checkpoint, passed_over = find_resumable(
            str(folder), lambda checkpoint: misfit(checkpoint, model, wrapper, schedulers)
        )
    except CheckpointError as error:
        trust = ', or give --trust_checkpoint if you trust where they come from' if 'refused' in str(error) else ''
        raise console.UserError(f'--resume=1: {error}; start afresh without --resume=1{trust}') from None
    for path, reason in passed_over:
        console.warn(f'passed over {path}: {reason}')
    console.say(f'resume   {checkpoint}')
    config['load_from'] = checkpoint
    for difference in run_config.differences(folder / run_folder.CONFIG, config):
        console.warn(f'differs from when this run began: {difference}')


def look_over(plan: Plan) -> None:
    """Have the doctor look the machine over.

    Raises:
        console.UserError: Something would end the training.
    """
    findings = examine.before_training(Subject(plan.options, plan.device, plan.nproc, plan.config))
    doctor_report.require(findings)
    spoken = ''.join(f'; {finding.check}: {finding.found}' for finding in findings if finding.check == 'all-reduce')
    console.say(f'doctor   {doctor_report.counts(findings)}{spoken}')


def write_run_files(plan: Plan, argv: List[str]) -> Path:
    """Write what belongs to this start into the run folder.

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
    config_file = folder / run_folder.CONFIG
    plan.config.dump(str(config_file))
    return config_file


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
        lock: Of the folder of ``config_file``.

    Raises:
        console.UserError: A rank failed, or a signal ended the training; bears the exit status to leave with.
    """
    from recipe.launch import progress, ranks, restarts

    asked = plan.options
    addr = network.resolve(asked.master_addr) if asked.master_addr else network.LOCAL
    port = asked.master_port or network.free_port()
    arguments = [
        f'--nproc_per_node={plan.nproc}',
        f'--nnodes={asked.nnodes}',
        f'--node_rank={asked.node_rank or 0}',
        f'--master_addr={addr}',
        f'--master_port={port}',
        '--redirects=3',
        '--monitor_interval=0.1',
        f'--max_restarts={asked.max_restarts}',
        str(paths.PACKAGE),
        'start',
        str(paths.PACKAGE),
        'train',
        str(config_file),
        f'--work-dir={plan.folder}',
        f'--device={plan.device}',
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
            f'{started.asked_to_end.name} ended the training; {again}; run folder: {plan.folder}', status
        )
    failure = started.failure()
    if failure is not None:
        for line in failure.last_lines:
            console.show(line)
        raise console.UserError(restarts.describe(config_file.parent, log_dir, failure), failure.status)


def report(plan: Plan) -> None:
    """Work out the figures of the run, write its files and print the lines that tools grep, last.

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
    """Write the files of the ModelZoo convention, to the run folder if test/output cannot be written."""
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
    """Put rank 0's logs of all starts into one file."""
    logs = sorted(path for path in plan.folder.glob('*/*.log') if path.stem == path.parent.name)
    with files.whole(legacy) as beside, beside.open('wb') as file:
        for log in logs:
            file.write(log.read_bytes())
    return legacy


@contextlib.contextmanager
def hold_folder(plan: Plan) -> Iterator[Tuple[Plan, run_lock.RunLock]]:
    """Make the run folder and hold its lock; on a machine other than the first one, that of the machine's own folder.

    Args:
        plan: Its folder may have been taken by another start since the plan was made.

    Yields:
        The plan with the folder that it runs in, and the lock.

    Raises:
        console.UserError: Another training runs there.
    """
    asked = plan.options
    job = ''
    if asked.nnodes > 1:
        job = f'{asked.nnodes}@{network.resolve(str(asked.master_addr))}:{asked.master_port}'
    if asked.is_first_node:
        is_given = asked.resume or asked.work_dir is not None
        plan = replace(plan, folder=run_folder.make(plan.folder, is_given))
    else:
        run_lock.require_same_job(plan.folder, job)
        plan.own_folder.mkdir(parents=True, exist_ok=True)
    with run_lock.RunLock(plan.own_folder, job) as lock:
        if asked.is_first_node and not asked.resume:
            run_folder.require_unused(plan.folder, asked.or_begin)  # somebody may have run there meanwhile
        console.log_to(plan.own_folder / run_folder.LAUNCHER_LOG)
        yield plan, lock


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
    plan = make_plan(asked)
    if plan.options.doctor:
        look_over(plan)
    if plan.options.uses_demo_data:
        data_root = training_data.root(None, True)
        training_data.make_demo(data_root)
        training_data.require(data_root)
    if plan.options.nnodes > 1:
        addr, variable = network.resolve(str(plan.options.master_addr)), network.INTERFACE_VARIABLES[plan.device]
        way = os.environ.get(variable) or network.interface_towards(addr) or 'no interface that is known'
        console.say(f'network  {way} leads to {addr}')
    with hold_folder(plan) as (plan, lock):
        console.say(f'run      {plan.folder}')
        with sessions.measured(plan.own_folder):
            train(plan, write_run_files(plan, argv), lock)
        if plan.options.is_first_node:
            report(plan)

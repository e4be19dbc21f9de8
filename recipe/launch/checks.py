"""All checks of a training or an evaluation, in one order.

The launcher stops at the first failure, the doctor collects them.

Each check reads what earlier checks have put into the plan, and adds its own results.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple, Set, Tuple

from recipe.core import console, inputs, run_folder
from recipe.core.run_options import SCRIPTS
from recipe.data import other_sets, training_data
from recipe.data.sets import file as dataset_file
from recipe.data.sets import verify
from recipe.doctor import cards, clock, compiler, limits, network, report, sources, versions
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding, failure
from recipe.doctor.subject import Subject
from recipe.engine import batch as batch_rule
from recipe.engine import classes as class_numbers
from recipe.engine import devices, size
from recipe.launch import collective
from recipe.launch.plan import Plan
from recipe.report import window
from recipe.upstream import checkouts

_PACKAGES = {'mlflow': 'mlflow-skinny'}  # that a tracker is in, if it has another name


class Check(NamedTuple):
    """One check.

    Attributes:
        name: Name of the check, used in its findings.
        examine: Yields findings; may raise ``console.UserError`` instead of a failure.
        needs: Names of checks that must pass first.
        line: First word of the line that the launcher prints if all is well; empty for none.
    """

    name: str
    examine: Callable[[Plan], Iterator[Finding]]
    needs: Tuple[str, ...] = ()
    line: str = ''


def _checkouts(plan: Plan) -> Iterator[Finding]:
    """Are the checkouts the patched ones, and unmodified?"""
    plan.pins = checkouts.require_patched()
    yield Finding('checkouts', OK, ', '.join(f'{name} ({found["origin"]})' for name, found in plan.pins.items()))


def _hidden_packages(plan: Plan) -> Iterator[Finding]:
    yield from sources.hidden_packages()


def _packages(plan: Plan) -> Iterator[Finding]:
    yield from sources.examine(plan.subject)


def _device(plan: Plan) -> Iterator[Finding]:
    """Which accelerators are there, and are there as many as asked for? Runs before anything imports torch."""
    asked = plan.options
    plan.device, plan.nproc = devices.likely_device(asked.device), asked.nproc or devices.DEFAULT_NPROC
    plan.device, count = devices.find(asked.device)
    plan.nproc = devices.choose_nproc(plan.device, count, asked.nproc, asked.demo)
    machines = f' on each of {asked.nnodes} machines' if asked.nnodes > 1 else ''
    yield Finding('device', OK, f'{plan.nproc} x {plan.device}{machines}')


def _imports(plan: Plan) -> Iterator[Finding]:
    yield from sources.loadable(plan.device)


def _data_path(plan: Plan) -> Iterator[Finding]:
    asked = plan.options
    if asked.dataset is not None:
        plan.data_set = dataset_file.read(asked.dataset, asked.data_path)
        plan.data_root = plan.data_set.root
        yield Finding('data path', OK, f'{plan.data_set.path}: {plan.data_root}')
        return
    if asked.config and asked.data_path and asked.script != 'evaluate':  # its layout is checked with the data set
        plan.data_root = inputs.absolute(asked.data_path)
    else:
        plan.data_root = training_data.root(asked.data_path, asked.demo, asked.needs_labels)
    yield Finding('data path', OK, str(plan.data_root))


def _config(plan: Plan) -> Iterator[Finding]:
    from recipe.engine import config as run_config

    plan.config = run_config.make(plan.options, plan.device, plan.data_root)
    iterations = plan.config.train_cfg['max_iters']
    if iterations <= window.WARM_UP_MIN_ITERS and not plan.options.resume:
        found = f'{iterations} iteration{"s" if iterations > 1 else ""}: the images per second will include the warm-up'
        yield Finding('config', WARNING, found, 'train longer for a figure to compare')
    yield Finding('config', OK, str(plan.config.filename))


def _run_folder(plan: Plan) -> Iterator[Finding]:
    asked = plan.options
    if not asked.is_first_node:
        plan.folder = inputs.absolute(str(asked.work_dir))
    else:
        case = SCRIPTS[asked.script]
        plan.folder = run_folder.choose(case, asked.demo, asked.work_dir, asked.resume, asked.or_begin)
        if not run_folder.is_shown(plan.folder) and plan.folder != run_folder.OUTPUT:
            where = f'the files for it will be in {plan.folder}'
            yield Finding('run folder', WARNING, f'{run_folder.OUTPUT} cannot be written to', where)
        advice = run_folder.foreign_checkpoints(plan.folder)
        if advice and asked.writes_checkpoints:
            found = f'{run_folder.OUTPUT / run_folder.NEWEST} is a folder and no link, so it stays as it is'
            yield Finding('run folder', WARNING, found, advice)
    yield Finding('run folder', OK, str(plan.folder))


def _batch(plan: Plan) -> Iterator[Finding]:
    (batch, _), *consequences = batch_rule.describe(plan.config, plan.options.nnodes, plan.nproc)
    yield Finding('batch', OK, batch)
    for found, fix in consequences if plan.options.writes_checkpoints else ():  # a performance run keeps no result
        yield Finding('batch', WARNING, found, fix)


def _trackers(plan: Plan) -> Iterator[Finding]:
    """Are the libraries of the trackers installed, and do those that may send know where to?"""
    for asked in plan.options.log_to:
        name, _, how = asked.partition(':')
        if importlib.util.find_spec(name) is None:
            raise console.UserError(
                f'--log_to={name}: the package {name} is not installed',
                f'install it: python -m pip install -c requirements/trackers.txt {_PACKAGES.get(name, name)}',
            )
        if asked == 'mlflow:online' and not os.environ.get('MLFLOW_TRACKING_URI'):
            raise console.UserError(
                f'--log_to={asked}: MLFLOW_TRACKING_URI names no server', f'set it, or give --log_to={name}'
            )
        yield Finding('trackers', OK, f'{name}, {"which sends what it is given" if how else "in files of the run"}')


def _weights_file(plan: Plan) -> Iterator[Finding]:
    """Are the files of pretrained weights and of ``load_from`` there? The launcher downloads them if not."""
    from recipe.engine import config as run_config
    from recipe.engine import weights

    asked, source = plan.options, run_config.weights_source(plan.config)
    if asked.resume:  # a checkpoint holds the weights
        yield Finding('weights file', OK, 'not needed, the checkpoint holds them')
        return
    if asked.init_from:
        yield Finding('weights file', OK, 'not needed, --init_from holds the backbone')
        return
    start = plan.config.get('load_from')
    if start and (plan.starts or weights.to_download(None, str(start)) is None):
        plan.config['load_from'] = str(weights.locate_start(start))
    missing = weights.to_download(asked.pretrained, source)
    if missing is not None and not plan.starts:
        found = f'{missing[1]} is not there, the launcher will download {missing[0]}'
        fix = 'if this machine is offline, put it there, or give --pretrained=FILE or --pretrained=none'
        yield Finding('weights file', WARNING, found, fix)
    else:
        plan.backbone = weights.locate(asked.pretrained, source)
        yield Finding('weights file', OK, str(plan.backbone or 'none'))


def classes(plan: Plan) -> Tuple[int, List[str]]:
    """Number of classes of the model, and the settings that say so."""
    return class_numbers.require(plan.config), class_numbers.keys(plan.config)


def _data_set(plan: Plan) -> Iterator[Finding]:
    if plan.data_set is not None:
        yield Finding('data set', OK, verify.require(plan.data_set, plan.starts))
        return
    if plan.options.uses_demo_data and other_sets.are_in(plan.config):
        raise console.UserError(
            "--demo: its scenes are in Cityscapes' layout, and the data set of --config is in another one",
            'give --data_path=DIR instead of --demo',
        )
    if plan.options.uses_demo_data:
        yield Finding('data set', OK, 'the built-in scenes; the launcher makes what is missing of them')
    elif other_sets.are_in(plan.config):
        yield Finding('data set', OK, f'{plan.data_root}: {other_sets.verified(plan.config)}')
    else:
        training_data.root(plan.options.data_path, plan.options.demo)
        yield Finding('data set', OK, training_data.verified(plan.data_root, plan.starts, *classes(plan)))


def _decoded_cache(plan: Plan) -> Iterator[Finding]:
    if plan.options.decoded_cache:
        folder = inputs.absolute(plan.options.decoded_cache)
        training_data.require_decoded(plan.data_root, folder)
        yield Finding('decoded cache', OK, str(folder))


def _model(plan: Plan) -> Iterator[Finding]:
    from recipe.engine import config as run_config

    plan.model = run_config.build_model(plan.config)
    count = sum(parameter.numel() for parameter in plan.model.parameters())
    yield Finding('model', OK, f'{count / 1e6:.1f} million parameters')


def _weights(plan: Plan) -> Iterator[Finding]:
    """Do the pretrained weights fit the model?"""
    from recipe.engine import config as run_config
    from recipe.engine import weights

    if plan.options.resume:
        return
    backbone = plan.model.backbone
    start = plan.config.get('load_from')
    if plan.options.init_from:
        found = _init_from(plan)
    elif start and not Path(start).is_file():
        found = f'{start}, which the launcher will download'
    elif start:
        found = weights.require_start(Path(start), plan.model)
    elif plan.backbone is not None:
        match = weights.compare(plan.backbone, dict(backbone.named_parameters()), dict(backbone.named_buffers()))
        found = f'{plan.backbone}: {match}'
    elif weights.to_download(plan.options.pretrained, run_config.weights_source(plan.config)):
        return  # another finding says that the launcher will download it
    else:
        found = 'none, the training begins from scratch'
        if plan.options.freeze:
            yield Finding(
                'weights', WARNING, f'--freeze={plan.options.freeze} keeps random weights', 'give --pretrained=FILE'
            )
    run_config.set_weights(plan.config, plan.backbone)
    yield Finding('weights', OK, found)


def _init_from(plan: Plan) -> str:
    """Compare the model of --init_from with that of the config, and have the training begin from it."""
    from recipe.engine import starting_weights
    from recipe.export import foreign

    path = inputs.absolute(str(plan.options.init_from))
    start = foreign.read(path)
    carried = _class_rows(plan, start)
    weights = {**start.weights, **(carried.weights if carried else {})}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    shapes.update(dict.fromkeys(start.unknown, ()))
    in_part = {name: tuple(start.weights[name].shape) for name in (carried.weights if carried else ())}
    plan.starting = starting_weights.require('--init_from', path, shapes, plan.model, in_part)
    if start.is_checkpoint and carried is None:
        plan.config['load_from'] = str(path)
    else:
        plan.initial_weights = weights
    return starting_weights.summary(path, plan.starting) + (f'; {carried}' if carried else '')


def _class_rows(plan: Plan, start: Any) -> Any:
    """The class embedding for the training's classes; None if that of --init_from is taken whole, or not at all."""
    from recipe.export import class_rows

    given, model = plan.options.class_map, plan.model.state_dict()
    old, new = class_rows.count(start.weights), class_rows.count(model)
    embedding = class_rows.EMBEDDING
    if not old or not new or any(start.weights[name].shape[1:] != model[name].shape[1:] for name in embedding):
        if given is not None:
            raise console.UserError(
                '--class_map: --init_from and the model have no class embeddings of one width', 'leave it out'
            )
        return None
    names = class_rows.names_of_file(start.classes, old), class_rows.names_of_config(plan.config, new)
    if old == new and given is None:
        if start.classes and names[0] != names[1] and names[1] != class_rows.unnamed(new):
            pair = next(pair for pair in zip(*names) if pair[0] != pair[1])
            console.warn(
                f'--init_from: its classes have other names ({pair[0]} there, {pair[1]} in the training), and its rows '
                'are taken in their order; --class_map takes them by name'
            )
        return None
    path = None if given in (None, class_rows.SAME_NAMES) else inputs.absolute(given)
    class_map = None if given is None else class_rows.read_map(given, path, *names)
    return class_rows.carry(start.weights, *names, class_map, (plan.config.get('randomness') or {}).get('seed'))


def _checkpoint(plan: Plan) -> Iterator[Finding]:
    """Find the newest checkpoint that loads completely and fits the config; the training continues from it."""
    from recipe.engine import config as run_config
    from recipe.engine.checkpoint import CheckpointError, find_resumable, misfit

    if not plan.options.resume:
        return
    wrapper, schedulers = run_config.build_optimizer(plan.config, plan.model)
    try:
        checkpoint, passed_over = find_resumable(
            str(plan.folder), lambda checkpoint: misfit(checkpoint, plan.model, wrapper, schedulers)
        )
    except CheckpointError as error:
        trust = ', or give --trust_checkpoint if you trust where they come from' if 'refused' in str(error) else ''
        raise console.UserError(f'--resume=1: {error}', f'start afresh without --resume=1{trust}') from None
    for path, reason in passed_over:
        yield Finding('checkpoint', WARNING, f'passed over {path}: {reason}', 'nothing to do, an older one is taken')
    yield Finding('checkpoint', OK, checkpoint)
    plan.config['load_from'] = checkpoint
    for difference in run_config.differences(plan.folder / run_folder.CONFIG, plan.config, plan.device):
        found = f'the config differs from when this run began: {difference}'
        yield Finding('checkpoint', WARNING, found, 'pass the earlier value, unless the change is intended')
    run_config.set_weights(plan.config, None)


def _trained_model(plan: Plan) -> Iterator[Finding]:
    """Can the checkpoint be loaded, and does it know the classes of the data set?"""
    from recipe.evaluate import classes
    from recipe.predict.trained_model import load_trained_model

    trained = load_trained_model(str(plan.options.checkpoint), 'cpu', plan.options.config, fast=False)
    named = list(trained.classes)
    if plan.data_set is not None:
        _require_classes(trained.path, named, plan.data_set)
    elif len(named) != classes.COUNT or not (named == classes.NAMES or named[0] == 'class 0'):
        shown = ', '.join(named[:3])
        raise console.UserError(
            f'checkpoint {trained.path}: its {len(named)} classes ({shown}, ...) are not the {classes.COUNT} of '
            'Cityscapes',
            'give a checkpoint that was trained on Cityscapes, or the file of its set with --dataset=FILE',
        )
    trained.model = None
    plan.trained = trained
    yield Finding('checkpoint', OK, str(trained.path))


def _require_classes(path: Path, named: List[str], data: dataset_file.DataSet) -> None:
    """Check that a checkpoint has the classes of a set, in their order."""
    if named == data.names or (len(named) == len(data.names) and named[0] == 'class 0'):
        return
    if len(named) != len(data.names):
        apart = f'{len(named)} classes, and {data.path} has {len(data.names)}'
    else:
        at = next(at for at, (ours, theirs) in enumerate(zip(named, data.names)) if ours != theirs)
        apart = f'{named[at]!r} as class {at}, and {data.path} has {data.names[at]!r}'
    raise console.UserError(f'checkpoint {path} has {apart}', 'give a checkpoint that was trained on this set')


def _pictures(plan: Plan) -> Iterator[Finding]:
    """Are the pictures of the split whole, and its labels, if it has any?"""
    if plan.data_set is not None:
        found = verify.require(plan.data_set, plan.starts, (plan.options.split,))
        yield Finding('data set', OK, found)
    elif plan.options.uses_demo_data:
        yield from _data_set(plan)
    elif plan.options.needs_labels:
        found = training_data.verified(plan.data_root, progress=plan.starts, splits=(plan.options.split,))
        yield Finding('data set', OK, found)
    else:
        from recipe.evaluate import pictures

        split = plan.options.split
        found = pictures.require_whole(pictures.find(plan.data_root, split), progress=plan.starts)
        yield Finding('data set', OK, f'{plan.data_root}: {split} {found}')


def _disk(plan: Plan) -> Iterator[Finding]:
    existing = len({path.stat().st_ino for path in plan.folder.glob(run_folder.CHECKPOINTS)})  # the best is a link
    needed = size.disk_bytes(plan.config, plan.model, existing)
    run_folder.require_space(plan.folder, needed, 'the checkpoints and logs')
    place = run_folder.existing_part(plan.folder)
    yield Finding('disk', OK, f'room for {needed >> 20} MiB of checkpoints and logs at {place}')


# Of trainings and evaluations. In each list the slowest checks come last.
_ALL = (
    Check('checkouts', _checkouts),
    Check('hidden packages', _hidden_packages),
    Check('packages', _packages),
    Check('device', _device, line='device'),
    Check('imports', _imports, ('packages',)),
    Check('data path', _data_path),
)
TRAINING = (
    *_ALL,
    Check('config', _config, ('imports',)),
    Check('run folder', _run_folder),
    Check('batch', _batch, ('config',), line='batch'),
    Check('trackers', _trackers),
    Check('weights file', _weights_file, ('config',)),
    Check('data set', _data_set, ('data path', 'config'), line='data'),
    Check('decoded cache', _decoded_cache, ('data path', 'config')),
    Check('model', _model, ('config',)),
    Check('weights', _weights, ('model', 'weights file'), line='weights'),
    Check('checkpoint', _checkpoint, ('model', 'run folder'), line='resume'),
    Check('disk', _disk, ('model', 'run folder')),
)
EVALUATION = (
    *_ALL,
    Check('checkpoint', _trained_model, ('packages', 'data path'), line='model'),
    Check('data set', _pictures, ('data path',), line='data'),
)
# Each check may rely on those before it.
MACHINE: Tuple[Callable[[Subject], List[Finding]], ...] = (
    versions.examine,
    cards.examine,
    limits.examine,
    compiler.examine,
    network.examine,
    clock.examine,
)


def of(plan: Plan) -> Tuple[Check, ...]:
    """The checks of a plan, in order."""
    return EVALUATION if plan.options.script == 'evaluate' else TRAINING


def require(plan: Plan) -> None:
    """Run all checks and fill in the plan. Downloads nothing but weights.

    Args:
        plan: Its options passed ``options.read``; the rest is filled in.

    Raises:
        console.UserError: The first fault found.
    """
    for check in of(plan):
        for finding in check.examine(plan):
            if finding.level == FAILURE:
                raise console.UserError(f'{finding.check}: {finding.found}', finding.fix)
            if finding.level == WARNING:
                console.warn(f'{finding.found}; {finding.fix}')
            elif check.line:
                console.say(f'{check.line:<8} {finding.found}')
    if plan.options.doctor:
        findings = machine(plan.subject)
        report.require(findings)
        spoken = ''.join(f'; {finding.check}: {finding.found}' for finding in findings if finding.check == 'all-reduce')
        console.say(f'doctor   {report.counts(findings)}{spoken}')


def machine(subject: Subject) -> List[Finding]:
    """Check the machine.

    Returns:
        Findings. The all-reduce takes longest. It is left out if another check failed, and on a CPU: there are no
        cards, and starting the ranks twice would cost more than it finds.
    """
    findings = [finding for examine in MACHINE for finding in examine(subject)]
    if subject.device != 'cpu' and report.worst(findings) != FAILURE:
        findings += collective.examine(subject)
    return findings


def collect(plan: Plan) -> List[Finding]:
    """Run all checks, and go on after a failure.

    Args:
        plan: Its options passed ``options.settle``; as much of the rest as possible is filled in.
    """
    findings: List[Finding] = []
    failed: Set[str] = set()
    for check in of(plan):
        if failed.intersection(check.needs):
            failed.add(check.name)
            continue
        made: List[Finding] = []
        try:
            made.extend(check.examine(plan))
        except console.UserError as error:
            made.append(failure(check.name, error))
        if report.worst(made) == FAILURE:
            failed.add(check.name)
        findings += made
        if failed.intersection(('hidden packages', 'imports')):  # the next checks would import them
            return findings
    findings += [finding for examine in MACHINE for finding in examine(plan.subject)]
    if 'device' not in failed:
        findings += collective.examine(plan.subject, all_machines=True)
    return findings

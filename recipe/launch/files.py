"""The files that a training reads and writes: checkouts, config, data set, weights, run folder, room on its disk."""

from __future__ import annotations

from typing import Any, List, Tuple

from recipe.core import inputs, run_folder
from recipe.core.run_options import SCRIPTS
from recipe.data import training_data
from recipe.doctor.finding import OK, WARNING, Finding, attempt
from recipe.doctor.subject import Subject
from recipe.engine import size
from recipe.upstream import checkouts


def checkout_findings() -> List[Finding]:
    """Are the checkouts the patched ones, and unmodified?"""

    def act() -> str:
        return ', '.join(f'{name} ({found["origin"]})' for name, found in checkouts.require_patched().items())

    return attempt('checkouts', act)


def config_findings(subject: Subject) -> Tuple[List[Finding], Any]:
    """Can the config be resolved? Also returns it, or None."""
    made: List[Any] = []

    def act() -> str:
        from recipe.engine import config as run_config

        # Whether the data root is one is another finding, and no setting depends on it.
        made.append(run_config.make(subject.asked, subject.device, inputs.DEFAULT_CITYSCAPES))
        return str(made[0].filename)

    return attempt('config', act), made[0] if made else None


def examine(subject: Subject) -> List[Finding]:
    """Look at data set, weights, run folder and disk, as the launcher does before it starts."""
    return [*_data(subject), *_run(subject)]


def _data(subject: Subject) -> List[Finding]:
    asked = subject.asked
    if asked.uses_demo_data:
        return attempt('data set', lambda: 'the built-in scenes; the launcher makes what is missing of them')

    def act() -> str:
        return training_data.verified(training_data.root(asked.data_path, asked.demo), progress=False)

    return attempt('data set', act)


def _run(subject: Subject) -> List[Finding]:
    asked, config = subject.asked, subject.config
    findings: List[Finding] = []
    folder: List[Any] = []

    def choose() -> str:
        if asked.is_first_node:
            case = SCRIPTS[asked.script]
            folder.append(run_folder.choose(case, asked.demo, asked.work_dir, asked.resume, asked.or_begin))
        else:
            folder.append(inputs.absolute(str(asked.work_dir)))
        return str(folder[0])

    findings += attempt('run folder', choose)
    if config is None:
        return findings
    model: List[Any] = []

    def build() -> str:
        from recipe.engine import config as run_config

        model.append(run_config.build_model(config))
        return f'{sum(parameter.numel() for parameter in model[0].parameters()) / 1e6:.1f} million parameters'

    findings += attempt('model', build)
    if model:
        findings += _weights(subject, model[0])
    if model and folder:
        findings += attempt('disk', lambda: _disk(subject, folder[0], model[0]))
    return findings


def _weights(subject: Subject, model: Any) -> List[Finding]:
    from recipe.engine import config as run_config
    from recipe.engine import weights

    asked, source = subject.asked, run_config.weights_source(subject.config)
    if asked.resume:
        return [Finding('weights', OK, 'not needed, the checkpoint holds them')]
    missing = weights.to_download(asked.pretrained, source)
    if missing is not None:
        url, path = missing
        fix = 'if this machine is offline, put it there, or give --pretrained=FILE or --pretrained=none'
        return [Finding('weights', WARNING, f'{path} is not there, the launcher will download {url}', fix)]

    def act() -> str:
        path = weights.locate(asked.pretrained, source)
        if path is None:
            return 'none, the training begins from scratch'
        parameters, buffers = dict(model.backbone.named_parameters()), dict(model.backbone.named_buffers())
        return f'{path}: {weights.compare(path, parameters, buffers)}'

    return attempt('weights', act)


def _disk(subject: Subject, folder: Any, model: Any) -> str:
    needed = size.disk_bytes(subject.asked.writes_checkpoints, model)
    run_folder.require_space(folder, needed, 'the checkpoints and logs')
    return f'room for {needed >> 20} MiB of checkpoints and logs at {run_folder.existing_part(folder)}'

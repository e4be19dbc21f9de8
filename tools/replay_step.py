"""Runs a training step again that was not finite, and prints its loss terms.

    python tools/replay_step.py RUN/nonfinite/iter_500_rank_3.pth           # on the device that is there
    python tools/replay_step.py DUMP --device=cpu --json

The training leaves such a file on each rank when it ends with exit status 65. Weights, batch and random state are those
of the step. Of several ranks it replays one: mask and dice losses are then divided by the number of masks of that rank,
not by the mean over all, and the gradient is that rank's own. Nothing is changed on disk.
"""

from __future__ import annotations

import refuse_hidden_stdlib  # noqa: F401  isort: skip

import argparse
import contextlib
import io
import json
import math
from typing import Any, Dict, List

import console
import doctor_sources


def load(path: str) -> Dict[str, Any]:
    """Read a dump and the weights beside it.

    Args:
        path: ``iter_N_rank_R.pth``.

    Returns:
        What ``mmseg.engine.nonfinite.read_dump`` returns, with the content of the weights file in ``weights``.

    Raises:
        console.UserError: A file is missing or damaged, or is no dump.
    """
    from mmseg.engine.checkpoint import CheckpointError, load_from_local
    from mmseg.engine.nonfinite import read_dump

    try:
        dump = read_dump(path)
        weights = load_from_local(dump['weights'], map_location='cpu')
        if not isinstance(weights, dict) or 'state_dict' not in weights or 'cfg' not in weights.get('meta', {}):
            raise ValueError(f'{dump["weights"]} does not hold the weights before a step')
    except (OSError, ValueError, CheckpointError) as error:
        raise console.UserError(f'{path}: {error}') from None
    return {**dump, 'weights': weights}


def replay(dump: Dict[str, Any], device: str) -> Dict[str, Any]:
    """Run the step forward and backward.

    Args:
        dump: From ``load``.
        device: ``cpu``, ``cuda`` or ``npu``.

    Returns:
        ``losses`` by name, and ``grad_norm``.
    """
    import torch
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    from mmseg.engine.nonfinite.guarded_step import total_norm
    from mmseg.registry import MODELS
    from mmseg.utils import random_state

    # A dump may come from elsewhere, and a config is a program: only its values are read.
    import metrics_config

    config = Config(metrics_config.read_config(dump['weights']['meta']['cfg']))
    init_default_scope(config.get('default_scope', 'mmseg'))
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    model.load_state_dict(dump['weights']['state_dict'])
    model.to(device).train()
    if device == 'cpu':
        torch.use_deterministic_algorithms(True, warn_only=True)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    random_state.restore(dump['random_state'], torch.device(device))
    from mmdet.models.dense_heads.host_read import HOST_READ

    HOST_READ.on_bad_costs = console.warn
    with wrapper.optim_context(model):
        losses = model(**model.data_preprocessor(dump['batch'], training=True), mode='loss')
    total, terms = model.parse_losses(losses)
    total.backward()
    norm = total_norm([parameter for parameter in model.parameters() if parameter.grad is not None])
    return {'losses': {name: float(value) for name, value in terms.items()}, 'grad_norm': float(norm)}


def table(dump: Dict[str, Any], again: Dict[str, Any]) -> List[str]:
    """Lines for the user: where the step was, then each figure of the training and of the replay.

    Args:
        dump: From ``load``.
        again: From ``replay``.
    """
    lines = [f'iteration {dump["iteration"]}, rank {dump["rank"]} of {dump["world_size"]}']
    lines += [f'  {line}' for line in (*dump['images'], *filter(None, [dump['note']]))]
    lines.append(f'{"":24}{"training":>14}{"replay":>14}')
    then = {**dump['losses'], 'grad_norm': dump['grad_norm']}
    for name, now in [*again['losses'].items(), ('grad_norm', again['grad_norm'])]:
        before = then.get(name, math.nan)
        mark = '' if math.isfinite(before) and math.isfinite(now) else '   not finite'
        lines.append(f'{name:24}{before:>14.6g}{now:>14.6g}{mark}')
    return lines


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('dump', help='file in RUN/nonfinite/ that the training left')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda', 'npu'), default='auto')
    parser.add_argument('--json', action='store_true', help='print the figures for programs')
    asked = parser.parse_args()
    doctor_sources.require()
    dump = load(asked.dump)

    import mmseg.models  # noqa: F401  registers them
    from mmengine.device import get_device

    with contextlib.redirect_stdout(io.StringIO()):  # what is logged while a model is built
        again = replay(dump, get_device() if asked.device == 'auto' else asked.device)
    console.say(json.dumps(again) if asked.json else '\n'.join(table(dump, again)))


if __name__ == '__main__':
    console.run(main)

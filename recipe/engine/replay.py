"""Replays a training step that was not finite, and prints its loss terms.

    python tools/replay_step.py RUN/nonfinite/iter_500_rank_3.pth           # on the device that is there
    python tools/replay_step.py DUMP --device=cpu --json

Each rank writes such a file when the training ends with exit status 65. Weights, batch and random state are those of
the step. Only one rank is replayed: its mask and dice losses are divided by the number of its own masks, not by the
mean over all ranks, and the gradient is its own. Nothing is changed on disk.

A dump of unknown origin runs no code: only a model of registered parts is built from its config. Give
--trust_checkpoint for a model with parts of your own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Sequence

from recipe.core import console, imported_packages


def load(path: str) -> Dict[str, Any]:
    """Read a dump and the weights beside it.

    Args:
        path: ``iter_N_rank_R.pth``.

    Returns:
        The result of ``recipe.engine.nonfinite.read_dump``, with the content of the weights file in ``weights``.

    Raises:
        console.UserError: A file is missing, damaged or not a dump.
    """
    from recipe.engine.checkpoint import CheckpointError, load_from_local, read_in_own_process
    from recipe.engine.nonfinite import read_dump

    def weights_of(source: str) -> Dict[str, Any]:
        weights = load_from_local(source, map_location='cpu')
        meta = weights.get('meta') if isinstance(weights, dict) else None
        if not isinstance(meta, dict) or 'cfg' not in meta or not isinstance(weights.get('state_dict'), dict):
            raise CheckpointError(source, 'does not hold the weights before a step')
        return weights

    try:
        # Read in a child process first: a dump of unknown origin could crash the reader.
        beside = read_in_own_process(path, lambda source: read_dump(source)['weights'])
        read_in_own_process(beside, lambda source: len(weights_of(source)))
        dump = read_dump(path)
        weights = weights_of(dump['weights'])
    except (OSError, ValueError, CheckpointError) as error:
        raise console.UserError(f'{path}: {error}') from None
    return {**dump, 'weights': weights}


def replay(dump: Dict[str, Any], device: str) -> Dict[str, Any]:
    """Run the step forward and backward.

    Args:
        dump: From ``load``.
        device: ``cpu``, ``cuda`` or ``npu``.

    Returns:
        ``losses`` (float by name) and ``grad_norm`` (float).

    Raises:
        console.UserError: The parts of the dump do not fit together, or its config could run code.
    """
    try:
        return _replay(dump, device)
    except console.UserError:
        raise
    except Exception as error:  # classes and torch raise many kinds of errors for wrong arguments and shapes
        reason = str(error).strip().split('\n')[0]
        raise console.UserError(f'the step cannot be replayed: {type(error).__name__}: {reason}') from None


def _replay(dump: Dict[str, Any], device: str) -> Dict[str, Any]:
    import torch
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from recipe.core import config_text
    from recipe.data import random_state
    from recipe.engine import accumulation, checkpoint, components, untrusted_config  # noqa: F401  components registers the optimizer and its wrapper
    from recipe.engine.nonfinite.guarded_step import total_norm
    from recipe.engine.precision import make_sums_repeatable
    from recipe.engine.runner import adapt_model
    from recipe.models.cost_faults import cost_faults_of

    text, state = dump['weights']['meta']['cfg'], dump['weights']['state_dict']
    trusted = checkpoint.is_trusted()
    config = Config(config_text.read_config(text) if trusted else untrusted_config.read_step(text, len(state)))
    init_default_scope(config.get('default_scope', 'mmseg'))
    if config.model.get('backbone'):
        config.model.backbone.init_cfg = None
    model, _ = adapt_model(MODELS.build(config.model), config)
    model.load_state_dict(state)
    model.to(device).train()
    if device == 'cpu':
        make_sums_repeatable()
    if not trusted:  # only the precision of the wrapper matters, so any known optimizer will do
        config.optim_wrapper.optimizer = {'type': 'SGD', 'lr': 0.0}
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    random_state.restore(dump['random_state'], torch.device(device))
    faults = cost_faults_of(model)
    parts = config.get('train_cfg', {}).get('accumulate', 1)
    # A gradient scaler would scale the gradient.
    unscaled = SimpleNamespace(optim_context=wrapper.optim_context, backward=lambda loss: loss.backward())
    with faults.tolerated() if faults else contextlib.nullcontext():
        terms = accumulation.forward_and_backward(model, unscaled, dump['batch'], parts)
        describe = faults and faults.take()
        problem = describe and describe()
        if problem:
            console.warn(problem)
    norm = total_norm([parameter for parameter in model.parameters() if parameter.grad is not None])
    return {'losses': {name: float(value) for name, value in terms.items()}, 'grad_norm': float(norm)}


def table(dump: Dict[str, Any], again: Dict[str, Any]) -> List[str]:
    """Lines for the user: iteration, rank and images of the step, then each value in the training and in the replay.

    Args:
        dump: From ``load``.
        again: From ``replay``.
    """
    lines = [f'iteration {dump["iteration"]}, rank {dump["rank"]} of {dump["world_size"]}']
    lines += [f'  {line}' for line in (*dump['images'], *filter(None, [dump.get('note')]))]
    lines.append(f'{"":24}{"training":>14}{"replay":>14}')
    then = {**dump['losses'], 'grad_norm': dump['grad_norm']}
    for name, now in [*again['losses'].items(), ('grad_norm', again['grad_norm'])]:
        before = then.get(name, math.nan)
        mark = '' if math.isfinite(before) and math.isfinite(now) else '   not finite'
        lines.append(f'{name:24}{before:>14.6g}{now:>14.6g}{mark}')
    return lines


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('dump', help='file in RUN/nonfinite/ that the training left')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda', 'npu'), default='auto')
    parser.add_argument('--json', action='store_true', help='print the figures for programs')
    parser.add_argument('--trust_checkpoint', action='store_true', help='the files and the config in them may run code')
    return parser.parse_args(argv)


def main() -> None:
    """Entry point; see the module's docstring."""
    asked = parse()
    if asked.trust_checkpoint:
        os.environ['MMSEG_TRUST_CHECKPOINT'] = '1'
    imported_packages.require()
    dump = load(asked.dump)

    import mmseg.models  # noqa: F401  registers them
    from mmengine.device import get_device

    with contextlib.redirect_stdout(io.StringIO()):  # hides what mmengine logs while it builds a model
        again = replay(dump, get_device() if asked.device == 'auto' else asked.device)
    for line in [json.dumps(again)] if asked.json else table(dump, again):
        console.say(line)

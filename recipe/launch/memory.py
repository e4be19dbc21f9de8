"""``--memory=report``: the peak memory of a training step, its parts, and what would lower it.

Each row is measured: one step runs in a process of its own, with the config that the options would make.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from recipe.core import console, json_files, paths, temporary
from recipe.core.run_options import Options
from recipe.engine import config as run_config
from recipe.engine import devices
from recipe.launch.plan import Plan

_PARTS = (
    ('weights', 'weights'),
    ('average', 'moving average (--ema)'),
    ('gradients', 'gradients'),
    ('optimizer', 'optimizer state'),
    ('step', 'activations and temporary tensors'),
)


def report(plan: Plan) -> None:
    """Measure a step of the plan's training and of others that take less memory, and print a table.

    Args:
        plan: Passed the checks.

    Raises:
        console.UserError: The step could not run, and none of the others either.
    """
    asked = plan.options
    parts = plan.config.train_cfg.get('accumulate', 1)
    images = plan.config.train_dataloader['batch_size'] // parts
    console.say(f'memory   one step on {plan.device} with {images} image{"s" if images > 1 else ""} at a time:')
    with temporary.folder() as folder:
        now: Optional[Dict[str, int]] = None
        try:
            now = _measure(plan, asked, folder)
            _describe(plan, now)
        except _StepError as error:
            console.warn(f'the step does not run: {error}')
        measured = [(text, _peak(plan, options, folder)) for text, options in savers(plan)]
    for text, (peak, why) in measured:
        if peak is None:
            _row(text, f'does not run: {why}')
        elif now is None:
            _row(text, f'{_mib(peak)}, runs')
        else:
            _row(text, f'{_mib(peak)} ({(peak - now["peak"]) / now["peak"]:+.0%})')
    if now is None and not any(peak for _, (peak, _) in measured):
        raise console.UserError('no step could be measured', 'see the reasons above')


def savers(plan: Plan) -> Iterator[Tuple[str, Options]]:
    """Options that would lower the peak and are not in effect, each alone, as the user would give them."""
    asked, config = plan.options, plan.config
    backbone, parts = config.model['backbone'], config.train_cfg.get('accumulate', 1)
    images = config.train_dataloader['batch_size'] // parts
    if not backbone.get('with_cp'):
        yield '--checkpoint_activations=1', replace(asked, checkpoint_activations=True)
    if config.optim_wrapper.get('type') == 'OptimWrapper':
        yield '--amp=bf16', replace(asked, amp='bf16')
    if images > 1 and asked.engine == 'recipe':
        text = f'--batch_size=1 --accumulate={images * parts}'
        yield f'{text} (same steps)', replace(asked, batch_size=1, accumulate=images * parts)
    if not config.get('freeze_backbone'):
        yield '--freeze=backbone', replace(asked, freeze='backbone')


def _describe(plan: Plan, now: Dict[str, int]) -> None:
    known = 0
    for key, text in _PARTS:
        if now[key]:
            _row(text, f'{_mib(now[key])}')
            known += now[key]
    if plan.device == 'cpu':
        _row('Python and its libraries', f'{_mib(max(0, now["peak"] - known))}')
    card = f' of {_mib(now["card"])}' if 'card' in now else ' (resident memory of the process)'
    _row('peak', f'{_mib(now["peak"])}{card}')
    if plan.world_size > 1:
        more = _mib(now['gradients'])
        _row('sum over the cards (estimate)', f'{more} more: buffers of the size of the gradients')
    console.say('with one more option the peak would be:')


def _row(text: str, value: str) -> None:
    console.say(f'  {text:<45} {value}')  # as wide as the longest of savers()


def _mib(count: int) -> str:
    return f'{count / 2**20:,.0f} MiB'


class _StepError(Exception):
    """Why a step could not be measured, in words."""


def _peak(plan: Plan, options: Options, folder: Path) -> Tuple[Optional[int], str]:
    """The peak in bytes, or None and why there is none."""
    try:
        return _measure(plan, options, folder)['peak'], ''
    except (_StepError, console.UserError) as error:
        return None, str(error)


def _measure(plan: Plan, options: Options, folder: Path) -> Dict[str, int]:
    config: Any = run_config.make(options, plan.device, plan.data_root)
    run_config.set_weights(config, None)
    path = folder / 'config.py'
    path.write_text(config.pretty_text, encoding='utf-8')
    command = [sys.executable, str(paths.PACKAGE), 'memory', str(path), plan.device]
    environment = {**os.environ, **devices.rank_environment(plan.device, plan.nproc, '127.0.0.1', False)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if done.returncode == -9:
        raise _StepError('the system ended the process (SIGKILL), most likely because memory was short')
    lines: List[str] = done.stderr.decode(errors='replace').strip().splitlines()
    if done.returncode:
        raise _StepError(lines[-1][:300] if lines else f'exit status {done.returncode}')
    found: Dict[str, int] = json_files.parse(done.stdout.decode().strip().splitlines()[-1], dict)
    return found

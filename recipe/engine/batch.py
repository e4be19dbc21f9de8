"""Explains how a global batch other than the recipe's affects the learning rate and the schedule."""

from __future__ import annotations

from typing import Any, List, Tuple


def describe(config: Any, nnodes: int, nproc: int) -> List[Tuple[str, str]]:
    """Describe the global batch, and warn if the learning rate was chosen for another one.

    Args:
        config: Resolved ``mmengine.Config``. Its learning rate was chosen for a global batch of
            ``auto_scale_lr.base_batch_size`` images. mmengine scales the rate itself if ``auto_scale_lr.enable`` is
            set.
        nnodes: Number of machines.
        nproc: Ranks on each machine.

    Returns:
        Pairs of a fact and an advice. The first describes the batch and has no advice; the others are warnings.
    """
    images = config.train_dataloader['batch_size']
    batch = nnodes * nproc * images
    machines = f'{_count(nnodes, "machine")} x ' if nnodes > 1 else ''
    lines = [(f'{batch} = {machines}{_count(nproc, "rank")} x {_count(images, "image")}', '')]
    rule = config.get('auto_scale_lr') or {}
    base = rule.get('base_batch_size')
    if not base or base == batch:
        return lines
    rate, iterations = config.optim_wrapper.get('optimizer', {}).get('lr'), config.train_cfg['max_iters']
    if rate is None:
        pass  # the parameter groups set the rate, or the optimizer has none
    elif rule.get('enable'):
        lines.append(
            (
                f'the learning rate {rate:g}, for a global batch of {base}, is scaled to {rate * batch / base:g}',
                'to keep it: -- auto_scale_lr.enable=False',
            )
        )
    else:
        lines.append(
            (
                f'the learning rate {rate:g} belongs to a global batch of {base}, and this one is {batch}: '
                'expect another result',
                f'in proportion to the batch it would be: -- optim_wrapper.optimizer.lr={rate * batch / base:g}',
            )
        )
    lines.append(
        (
            f'{iterations} iterations see {batch / base:g} times the images that they see with a global batch of '
            f'{base}',
            f'as many would be: --max_iters={max(1, round(iterations * base / batch))}',
        )
    )
    return lines


def _count(number: int, what: str) -> str:
    return f'{number} {what}{"s" if number != 1 else ""}'

"""Explains how a global batch other than the recipe's affects the learning rate and the schedule."""

from __future__ import annotations

from typing import Any, List, Tuple


def describe(config: Any, nnodes: int, nproc: int) -> List[Tuple[str, str]]:
    """Describe the global batch, and warn if the learning rate was chosen for another one.

    Args:
        config: Resolved ``mmengine.Config``. Its learning rate was chosen for a global batch of
            ``auto_scale_lr.base_batch_size`` images. mmengine scales the rate itself if ``auto_scale_lr.enable`` is
            set. With ``optim_wrapper.accumulative_counts`` that many iterations make one step. With
            ``train_cfg.accumulate`` the loader's batch holds the images of one step, computed in that many parts.
        nnodes: Number of machines.
        nproc: Ranks on each machine.

    Returns:
        Pairs of a fact and an advice. The first describes the batch and has no advice; the others are warnings.
    """
    images, steps = config.train_dataloader['batch_size'], config.optim_wrapper.get('accumulative_counts', 1)
    seen = nnodes * nproc * images  # in one iteration
    batch = seen * steps
    parts = config.train_cfg.get('accumulate', 1)
    machines = f'{_count(nnodes, "machine")} x ' if nnodes > 1 else ''
    accumulated = f' x {steps} iterations of accumulated gradients' if steps > 1 else ''
    if parts > 1:
        accumulated = f' x {parts} accumulated batches'
    lines = [(f'{batch} = {machines}{_count(nproc, "rank")} x {_count(images // parts, "image")}{accumulated}', '')]
    rule = config.get('auto_scale_lr') or {}
    base = rule.get('base_batch_size')
    if not base:
        return lines
    rate, iterations = config.optim_wrapper.get('optimizer', {}).get('lr'), config.train_cfg['max_iters']
    if rate is None:
        pass  # the parameter groups set the rate, or the optimizer has none
    elif rule.get('enable') and seen != base:
        scaled = f'the learning rate {rate:g}, for a global batch of {base}, is scaled to {rate * seen / base:g}'
        if steps == 1:
            lines.append((scaled, 'to keep it: -- auto_scale_lr.enable=False'))
        else:
            lines.append(
                (
                    f'{scaled}, which does not count the accumulated gradients',
                    f'in proportion to the batch of {batch} it would be: -- auto_scale_lr.enable=False '
                    f'optim_wrapper.optimizer.lr={rate * batch / base:g}',
                )
            )
    elif not rule.get('enable') and batch != base:
        lines.append(
            (
                f'the learning rate {rate:g} belongs to a global batch of {base}, and this one is {batch}: '
                'expect another result',
                f'in proportion to the batch it would be: -- optim_wrapper.optimizer.lr={rate * batch / base:g}',
            )
        )
    if seen != base:
        lines.append(
            (
                f'{iterations} iterations see {seen / base:g} times the images that they see with a global batch of '
                f'{base}',
                f'as many would be: --max_iters={max(1, round(iterations * base / seen))}',
            )
        )
    return lines


def _count(number: int, what: str) -> str:
    return f'{number} {what}{"s" if number != 1 else ""}'

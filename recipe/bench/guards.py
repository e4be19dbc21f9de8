"""What the guards of a training cost: iterations with and without them, in turns, in one process.

``bench.py guards`` runs it. Guards are what takes part in each iteration and in no result: the non-finite guard
(``NonFiniteGuardHook``, with what it does around the optimizer) and the marks for the watchdog (``pulse.py``, as
``trainer`` leaves them). Both trainers have the same weights and see the same batches and random states, so each pair
of iterations differs in the guards alone. Operators and host synchronisations are those of one iteration, once the
optimizer's state is there.
"""

from __future__ import annotations

import math
import os
import statistics
from typing import Any, Dict, List, Tuple

from recipe.core import console


def measure(
    config: str,
    overrides: Dict[str, Any],
    batch: Dict[str, List[Any]],
    warmup: int,
    repeats: int,
    seed: int = 0,
) -> Dict[str, Any]:
    """Count and time iterations with and without the guards.

    Args:
        config: Path, relative to the repository or absolute.
        overrides: Of the config, by dotted key.
        batch: From ``model.random_batch``.
        warmup: Iterations of each before the clock.
        repeats: Timed pairs of iterations.
        seed: Of weights and random states.

    Returns:
        ``without`` and ``with`` (counts of ``bench_counts``, ``seconds`` of each iteration), and ``difference_s``, with
        minus without of the pairs: ``median``, and ``least`` and ``most`` of ``median_interval``.
    """
    import torch

    from recipe.bench import worker
    from recipe.bench.trainer import Trainer

    plain = Trainer(config, overrides, seed, left_out=['nonfinite_guard'])
    guarded = Trainer(config, overrides, seed)
    leave_marks(guarded.runner)
    trainers = {'without': plain, 'with': guarded}
    times: Dict[str, List[float]] = {name: [] for name in trainers}
    device = worker.device_of(plain)
    for number in range(warmup + repeats):
        for name, trainer in trainers.items() if number % 2 == 0 else reversed(list(trainers.items())):
            seconds = worker.one_iteration(trainer, batch, seed + number, device)
            if number >= warmup:
                times[name].append(seconds)
        if not all(torch.equal(*pair) for pair in zip(plain.model.parameters(), guarded.model.parameters())):
            raise console.UserError(f'iteration {number + 1} has other results with the guards; nothing is reported')
    counts: Dict[str, Any] = {}
    for _ in range(2):  # the first time fills caches that both use
        counts = {name: worker.counted(one, batch, seed + warmup + repeats) for name, one in trainers.items()}
    result: Dict[str, Any] = {name: {**counts[name], 'seconds': times[name]} for name in trainers}
    differences = [after - before for before, after in zip(times['without'], times['with'])]
    least, most = median_interval(differences)
    result['difference_s'] = {'median': statistics.median(differences), 'least': least, 'most': most}
    return {**result, **worker.describe(plain)}


def median_interval(values: List[float], certainty: float = 0.95) -> Tuple[float, float]:
    """Between what the median of a population lies, whatever its distribution, judged by a sample (sign test).

    Args:
        values: The sample; with fewer than six, its least and its most, which is less sure than asked for.
        certainty: Probability that it lies there.
    """
    from scipy.stats import quantile_test

    low, high = quantile_test(values, p=0.5).confidence_interval(certainty)
    return (min(values), max(values)) if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def leave_marks(runner: Any) -> None:
    """Have a runner show the watchdog that it goes on, as the launchers' trainings do."""
    from recipe.launch import trainer
    from recipe.launch.pulse import VARIABLE, Heartbeat, Pulses

    pulses = Pulses(1)

    class Watched(type(runner)):  # type: ignore[misc]  # the base is known at run time only
        """A runner of its own class, since the marks are a matter of the class."""

        memory = pulses

    trainer.show_progress(Watched, Heartbeat(os.environ[VARIABLE], 0))
    runner.__class__ = Watched


def show(result: Dict[str, Any]) -> None:
    """Print what ``measure`` found."""
    for name, kind in (('operators', 'operators dispatched'), ('host_synchronisations', 'host synchronisations')):
        before, after = (result[side][name] for side in ('without', 'with'))
        share = f' ({after / before - 1:+.2%})' if before else ''
        console.say(f'{kind}: {before} without, {after} with the guards{share}')
    before, after = (statistics.median(result[side]['seconds']) for side in ('without', 'with'))
    difference = result['difference_s']
    console.say(f'median of an iteration: {before:.4f} s without, {after:.4f} s with ({after / before - 1:+.2%})')
    median, least, most = (f'{1e3 * difference[name]:+.2f} ms' for name in ('median', 'least', 'most'))
    pairs = len(result['with']['seconds'])
    console.say(f'difference of a pair: median {median}, to 95 % between {least} and {most}; {pairs} pairs')

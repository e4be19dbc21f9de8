"""Cost of a training's guards: iterations with and without them, in turns, in one process.

``bench.py guards`` runs it. Guards run in each iteration and change no result: the non-finite guard
(``NonFiniteGuardHook``, with its work around the optimizer) and the marks for the watchdog (``pulse.py``, as
``trainer`` leaves them). Both trainers have the same weights, batches and random states, so each pair of iterations
differs only in the guards. Operators and host synchronisations are those of one iteration after the optimizer's state
was made.
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
        warmup: Untimed iterations of each trainer.
        repeats: Timed pairs of iterations.
        seed: Seed of weights and random states.

    Returns:
        ``without`` and ``with``: counts of ``worker.counted``, and ``seconds`` of each iteration. ``difference_s``,
        with minus without of the pairs: ``median``, and ``least`` and ``most`` of ``median_interval``.
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
    for _ in range(2):  # the first run fills caches that both use
        counts = {name: worker.counted(one, batch, seed + warmup + repeats) for name, one in trainers.items()}
    result: Dict[str, Any] = {name: {**counts[name], 'seconds': times[name]} for name in trainers}
    differences = [after - before for before, after in zip(times['without'], times['with'])]
    least, most = median_interval(differences)
    result['difference_s'] = {'median': statistics.median(differences), 'least': least, 'most': most}
    return {**result, **worker.describe(plain)}


def median_interval(values: List[float], certainty: float = 0.95) -> Tuple[float, float]:
    """Confidence interval of a population's median, for any distribution (sign test).

    Args:
        values: The sample. With fewer than six values the interval is their range, and its confidence is lower.
        certainty: Probability that the interval holds the median.
    """
    from scipy.stats import quantile_test

    low, high = quantile_test(values, p=0.5).confidence_interval(certainty)
    return (min(values), max(values)) if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def leave_marks(runner: Any) -> None:
    """Make a runner leave marks for the watchdog, as the launchers' trainings do."""
    from recipe.launch import trainer
    from recipe.launch.pulse import VARIABLE, Heartbeat, Pulses

    pulses = Pulses(1)

    class Watched(type(runner)):  # type: ignore[misc]  # the base is known at run time only
        """A class for this runner alone, since the marks are set for a class."""

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

"""Gain of each part that is for CPUs only: iterations with and without it, in turns, in one process.

``bench.py parts`` runs it. A part stays in the recipe if an iteration at the recipe's size takes at least 5 % longer
without it. One part at a time is switched off. Processor time is compared besides elapsed time: it varies less on a
machine that does other work.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any, Callable, ContextManager, Dict, List
from unittest import mock

from recipe.core import console


def parts() -> Dict[str, Callable[[], ContextManager[Any]]]:
    """Return, by part, a function that makes a context without it."""
    from recipe.models import residual_branch, swin

    def never(*args: Any) -> bool:
        return False

    return {
        'dropped paths not computed': lambda: mock.patch.object(residual_branch, '_computes_kept_samples', never),
        'window attention on CPU': lambda: mock.patch.object(swin, 'fits_cpu_window_msa', never),
    }


def measure(trainer: Any, batch: Dict[str, List[Any]], warmup: int, repeats: int, seed: int) -> Dict[str, Any]:
    """Time iterations with all parts, and without each part.

    Args:
        trainer: A ``Trainer`` on a CPU.
        batch: From ``model.random_batch``.
        warmup: Untimed rounds.
        repeats: Timed rounds. A round is one iteration without each part, and one with all.
        seed: Seed of the random states.

    Returns:
        ``seconds`` and ``cpu_seconds`` by variant, including ``all``: one value for each round. ``gain`` and
        ``cpu_gain``
        by part: how much longer an iteration takes without it, from the medians; 0.05 is 5 %. ``peak_bytes`` by
        variant:
        memory of one iteration above the memory before it.
    """
    from recipe.bench import worker

    device = worker.device_of(trainer)
    variants: Dict[str, Callable[[], ContextManager[Any]]] = {'all': contextlib.nullcontext, **parts()}
    seconds: Dict[str, List[float]] = {name: [] for name in variants}
    cpu_seconds: Dict[str, List[float]] = {name: [] for name in variants}
    for number in range(warmup + repeats):
        for name, without in variants.items():
            with without():
                begin = time.process_time()
                taken = worker.one_iteration(trainer, batch, seed + number, device)
                cpu = time.process_time() - begin
            if number >= warmup:
                seconds[name].append(taken)
                cpu_seconds[name].append(cpu)
        console.say(f'round {number + 1} of {warmup + repeats}')
    gains = [
        {name: statistics.median(values[name]) / statistics.median(values['all']) - 1 for name in parts()}
        for values in (seconds, cpu_seconds)
    ]
    peaks: Dict[str, int] = {}  # last, since it slows an iteration down
    for name, without in variants.items():
        with without():
            peaks[name] = worker.measured_memory(trainer, batch, seed)['above_before_bytes']
    times = {'seconds': seconds, 'cpu_seconds': cpu_seconds, 'gain': gains[0], 'cpu_gain': gains[1]}
    return {**times, 'peak_bytes': peaks}


def show(result: Dict[str, Any]) -> None:
    """Print what ``measure`` found."""
    whole, cpu = (statistics.median(result[name]['all']) for name in ('seconds', 'cpu_seconds'))
    peaks = result['peak_bytes']
    console.say(f'an iteration takes {whole:.3f} s, {cpu:.3f} s of processors, {peaks["all"] / 1e6:.0f} MB; without')
    for name, gain in result['gain'].items():
        more = (peaks[name] - peaks['all']) / 1e6
        console.say(f'  {name:30} {gain:+7.1%} time {result["cpu_gain"][name]:+7.1%} processor time {more:+7.0f} MB')

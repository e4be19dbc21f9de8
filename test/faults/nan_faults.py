"""Losses and gradients that are not finite; enters its kinds where the trainer has a guard against them."""

from __future__ import annotations

import importlib.util
from random import Random

from fault import kind
from fault_bench import Bench, newest_good
from resume_job import MAX_ITERS, recipe, train


def not_finite(bench: Bench, random: Random) -> str:
    import step_faults

    name = random.choice(['gradient', 'loss', 'costs'])
    number, world, folder = random.randint(3, MAX_ITERS), random.choice([1, 2]), bench.new_folder()
    sabotage = step_faults.sometimes(getattr(step_faults, name), number)
    outcome = train(recipe(bench.data, folder), world, sabotage=sabotage)
    assert outcome.codes == [65] * world, outcome.output[-2000:]
    assert f'iteration {number} is not finite' in outcome.output, outcome.output[-2000:]
    saved = newest_good(folder)
    assert saved == (number - 1) // 2 * 2, 'the step that is not finite came into a checkpoint'
    bench.finish(folder, world, least=saved)
    return f'{name} of iteration {number} not finite; status 65 before the step, resumed at {saved}, same end'


if importlib.util.find_spec('step_faults') is not None:
    kind('not finite', 2)(not_finite)

"""Faults that processes meet: killed, asked to end, stopped; at any moment."""

from __future__ import annotations

import os
import signal
from functools import partial
from random import Random

from fault import kind
from fault_bench import Bench, children, end_all, iterations, newest_good
from resume_faults import (
    kill_amid_writing,
    kill_before_iter,
    kill_before_validation,
    kill_in_call,
    terminate_before_iter,
)
from resume_job import MAX_ITERS, recipe, start, train


@kind('rank killed at any moment', 4)
def killed_at_any_moment(bench: Bench, random: Random) -> str:
    world, folder = random.choice([1, 1, 2]), bench.new_folder()
    bench.unbroken(world)
    ranks = start(recipe(bench.data, folder), world)
    victim = random.choice(ranks)
    victim.join(random.uniform(0.1, 1.6))
    done = not victim.is_alive()
    saved = max(iterations(folder), default=0)
    victim.kill()
    codes = end_all(ranks)
    assert done or codes[ranks.index(victim)] == -9, codes
    bench.finish(folder, world, least=saved)
    return f'rank {ranks.index(victim)} of {world} killed when {saved} iterations were saved; same end'


@kind('all killed at any moment, twice', 2)
def all_killed_twice(bench: Bench, random: Random) -> str:
    world, folder, at = 1, bench.new_folder(), []
    bench.unbroken(world)
    for _ in range(2):
        newest = newest_good(folder) if folder.exists() else None
        ranks = start(recipe(bench.data, folder), world, resume=newest is not None)
        ranks[0].join(random.uniform(0.3, 1.2))
        at.append(max(iterations(folder), default=0))
        ranks[0].kill()
        end_all(ranks)
    bench.finish(folder, world, least=at[-1])
    return f'killed when {at[0]} and {at[1]} iterations were saved; same end'


@kind('killed before an iteration', 3)
def killed_before_iteration(bench: Bench, random: Random) -> str:
    world, workers = random.choice([(1, 0), (1, 1), (2, 0), (2, 1)])
    number, folder = random.randint(2, MAX_ITERS), bench.new_folder()
    outcome = train(recipe(bench.data, folder, workers), world, sabotage=partial(kill_before_iter, number))
    assert outcome.codes == [-9] * world, outcome.output
    bench.finish(folder, world, workers, least=(number - 1) // 2 * 2)
    return f'{world} ranks with {workers} loader processes killed before iteration {number}; same end'


@kind('killed while a checkpoint is written', 3)
def killed_amid_writing(bench: Bench, random: Random) -> str:
    """By the system, when the file grows beyond some size."""
    before = random.choice([3, 5, 7, 9, 11])
    folder = bench.stopped(1, before)
    size = random.randrange(1, 2**20)
    saved = max(iterations(folder))
    outcome = train(recipe(bench.data, folder), resume=True, sabotage=partial(kill_amid_writing, size))
    assert outcome.codes == [-signal.SIGXFSZ], outcome.output
    bench.finish(folder, 1, least=saved)
    return f'killed after {size} bytes of a checkpoint behind iteration {saved}; same end'


@kind('killed at a file operation of a checkpoint', 4)
def killed_at_file_operation(bench: Bench, random: Random) -> str:
    before = random.choice([3, 5, 7, 9, 11])
    folder = bench.stopped(1, before)
    event, number = random.choice(['os.rename', 'os.link', 'os.remove', 'open']), random.randint(1, 4)
    saved = max(iterations(folder))
    outcome = train(recipe(bench.data, folder), resume=True, sabotage=partial(kill_in_call, event, number))
    assert outcome.codes in ([-9], [0]), outcome.output
    bench.finish(folder, 1, least=saved)
    return f'killed before {event} number {number} in the folder behind iteration {saved}; same end'


@kind('killed before a validation')
def killed_before_validation(bench: Bench, random: Random) -> str:
    number, folder = random.choice([4, 8, 12]), bench.new_folder()
    outcome = train(recipe(bench.data, folder), sabotage=partial(kill_before_validation, number))
    assert outcome.codes == [-9], outcome.output
    bench.finish(folder, 1, least=number)
    return f'killed before the validation after iteration {number}; same end'


@kind('SIGTERM before an iteration', 2)
def terminated_before_iteration(bench: Bench, random: Random) -> str:
    world, number, folder = random.choice([1, 2]), random.randint(1, MAX_ITERS), bench.new_folder()
    rank = random.randrange(world)
    outcome = train(recipe(bench.data, folder), world, sabotage=partial(terminate_before_iter, rank, number))
    assert outcome.codes == [143] * world, outcome.output
    assert newest_good(folder) == number
    bench.finish(folder, world, least=number)
    return f'SIGTERM of rank {rank} of {world} before iteration {number}; saved there, same end'


@kind('SIGTERM at any moment', 2)
def terminated_at_any_moment(bench: Bench, random: Random) -> str:
    world, folder = random.choice([1, 2]), bench.new_folder()
    bench.unbroken(world)
    ranks = start(recipe(bench.data, folder), world)
    ranks[0].join(random.uniform(0.1, 1.4))
    saved = max(iterations(folder), default=0)
    for rank in ranks:
        rank.terminate()
    codes = end_all(ranks)
    assert all(code in (0, 1, 143, -15, -9) for code in codes), codes
    bench.finish(folder, world, least=saved)
    return f'SIGTERM of {world} ranks when {saved} iterations were saved, status {codes}; same end'


@kind('loader process killed', 2)
def loader_killed(bench: Bench, random: Random) -> str:
    world, folder = random.choice([1, 2]), bench.new_folder()
    bench.unbroken(world)
    ranks = bench.running(folder, world, workers=1)
    rank = random.choice(ranks)
    loaders = children(rank.pid) if rank.is_alive() else []
    saved = max(iterations(folder), default=0)
    if loaders:
        os.kill(random.choice(loaders), signal.SIGKILL)
    codes = end_all(ranks)
    if any(codes):
        said = (folder / 'output.txt').read_text()
        assert codes[ranks.index(rank)] == 71, (codes, said[-2000:])
        assert f'error: rank {ranks.index(rank)}, iteration' in said and 'DataLoader worker' in said, said[-2000:]
    bench.finish(folder, world, 1, least=saved)
    return f'a loader process of {world} ranks killed when {saved} iterations were saved, status {codes}; same end'


@kind('rank stopped, then killed')
def stopped_then_killed(bench: Bench, random: Random) -> str:
    folder = bench.new_folder()
    bench.unbroken(2)
    ranks = bench.running(folder, 2)
    victim = random.choice(ranks)
    if victim.is_alive():
        os.kill(victim.pid, signal.SIGSTOP)
    victim.join(random.uniform(0, 0.5))
    saved = max(iterations(folder), default=0)
    victim.kill()
    end_all(ranks)
    bench.finish(folder, 2, least=saved)
    return f'rank {ranks.index(victim)} stopped, later killed, when {saved} iterations were saved; same end'

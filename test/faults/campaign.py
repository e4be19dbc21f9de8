"""The fault campaign: ``campaign.py [--seed=N] [--count=N] [--only=KIND] [--list] [--out=DIR]``; see run.sh."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import platform
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Iterator, List, NamedTuple, Optional

import mmengine
import torch

import file_faults
import launcher_faults
import nan_faults
import process_faults
from fault import KINDS, Kind, UnavailableError
from fault_bench import Bench
from recipe.core import processes
from running import descendants

# Each of them enters its faults into KINDS when it is imported.
FAMILIES = (file_faults, launcher_faults, nan_faults, process_faults)


class Result(NamedTuple):
    """What became of one fault."""

    number: int
    kind: str
    outcome: str  # same end, refused, FAILED, left out
    what: str


def draw(seed: int, count: int, only: Optional[str] = None) -> List[Kind]:
    """Kinds of faults to have, in order: each once where there are enough, then the quick ones by their weight."""
    kinds = [kind for kind in KINDS.values() if only is None or only in kind.name]
    turns = [kind for kind in kinds for _ in range(kind.weight) if only or not kind.name.startswith('launcher')]
    random = Random(seed)
    drawn = random.sample(kinds, min(count, len(kinds)))
    while kinds and len(drawn) < count:
        drawn += random.sample(turns, min(len(turns), count - len(drawn)))
    return sorted(drawn, key=lambda kind: kind.name.startswith('launcher'))


def strike(bench: Bench, number: int, kind: Kind, seed: int) -> Result:
    """Have one fault; never raises for what it does to the training."""
    before = set(bench.folder.iterdir())
    try:
        what = kind.strike(bench, Random(f'{seed} {number} {kind.name}'))
    except UnavailableError as reason:
        return Result(number, kind.name, 'left out', str(reason))
    except Exception:
        return Result(number, kind.name, 'FAILED', traceback.format_exc().strip())
    finally:
        kept = {path.name for path in bench.kept()}
        for path in set(bench.folder.iterdir()) - before:
            if path.name.startswith('run') and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    return Result(number, kind.name, 'refused' if 'refused' in what else 'same end', what)


def row(result: Result) -> str:
    """A result as a line of text."""
    width = max(len(name) for name in KINDS)
    return f'{result.number:4d}  {result.kind:{width}}  {result.outcome:8}  {result.what.splitlines()[-1]}'


def summary(rows: List[str]) -> str:
    """How many faults there were and what became of them."""
    cells = [re.split(r'\s{2,}', one.strip()) for one in rows]
    outcomes = [cell[2] for cell in cells]
    counts = ', '.join(f'{outcomes.count(name)} {name}' for name in sorted(set(outcomes)))
    return f'{len(rows)} faults of {len({cell[1] for cell in cells})} kinds: {counts}'


def write(folder: Path, command: str, results: List[Result]) -> None:
    """Write command, versions and table, with the faults that ran before; a fault that ran again takes its place."""
    (folder / 'command.txt').write_text(command + '\n')
    versions = [f'python {platform.python_version()}', f'torch {torch.__version__}']
    versions += [f'mmengine {mmengine.__version__}', f'linux {platform.release()} {platform.machine()}']
    (folder / 'versions.txt').write_text('\n'.join(versions) + '\n')
    path = folder / 'table.txt'
    rows = [line for line in path.read_text().splitlines() if re.match(r' *\d+  ', line)] if path.exists() else []
    new = {int(one.split()[0]): one for one in [*rows, *map(row, results)]}
    rows = [new[number] for number in sorted(new)]
    path.write_text('\n'.join([*rows, '', summary(rows), '']))


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Leave no training behind, also after Ctrl-C."""
    try:
        yield
    finally:
        for process in multiprocessing.active_children():
            below = descendants(process.pid)
            process.kill()
            processes.send(below, signal.SIGKILL)


def main() -> int:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--count', type=int, default=120)
    parser.add_argument('--begin', type=int, default=0, help='leave out the first faults, which ran before')
    parser.add_argument('--end', type=int, default=None, help='leave out the faults from this one on')
    parser.add_argument('--only')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--out', type=Path)
    asked = parser.parse_args()
    if asked.list:
        print('\n'.join(KINDS))
        return 0
    drawn = draw(asked.seed, asked.count, asked.only)
    if not drawn:
        print(f'error: no kind of fault is called {asked.only}; --list shows them', file=sys.stderr)
        return 2
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=asked.begin > 0)
    results = []
    with tempfile.TemporaryDirectory() as folder, ended_together():
        bench = Bench(Path(folder))
        for number, kind in list(enumerate(drawn, 1))[asked.begin : asked.end]:
            began = time.monotonic()
            results.append(strike(bench, number, kind, asked.seed))
            print(f'{row(results[-1])}  ({time.monotonic() - began:.1f} s)', flush=True)
            if results[-1].outcome == 'FAILED':
                print(results[-1].what, flush=True)
            if asked.out is not None:
                command = f'bash test/faults/run.sh --seed={asked.seed} --count={asked.count}'
                command += f' --only={shlex.quote(asked.only)}' if asked.only else ''
                write(asked.out, command, results[-1:])
    print(summary([row(result) for result in results]))
    return int(any(result.outcome == 'FAILED' for result in results))


if __name__ == '__main__':
    sys.exit(main())

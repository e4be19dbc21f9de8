"""Do half precision and float32 reach the same mIoU? Runs the demo job with several seeds in each, and compares.

    python tools/compare_precision.py run FOLDER [--amp=bf16] [--seeds=3] [-- LAUNCHER OPTIONS]
    python tools/compare_precision.py judge FOLDER [--amp=bf16]

``run`` makes one run after the other, each in its own folder below FOLDER, and skips finished ones: after an
interruption the same command continues. At its end it calls ``judge``, which writes FOLDER/precision.json. The
precisions count as equal within the noise of the seeds if the means of the last mIoU differ by at most two standard
errors of their difference; otherwise the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from recipe.core import console, imported_packages, json_files, paths

LAUNCHER = paths.ROOT / 'test' / 'train_full_8p.sh'
KEY = 'miou_last_percent'


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('mode', choices=['run', 'judge'])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--amp', choices=['bf16', 'fp16'], default='bf16')
    parser.add_argument('--seeds', type=int, default=3, help='from 0 on; two at least (default: 3)')
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index('--') if '--' in given else len(given)
    args = parser.parse_args(given[:cut])
    args.options = given[cut + 1 :]
    if args.seeds < 2:
        parser.error('--seeds: one seed has no noise to compare with; give 2 or more')
    return args


def folder_of(folder: Path, amp: str, seed: int) -> Path:
    """Folder of one run."""
    return folder / f'{amp}_seed{seed}'


def run(args: argparse.Namespace) -> None:
    """Make the unfinished runs.

    Raises:
        console.UserError: One failed.
    """
    for seed in range(args.seeds):
        for amp in ('off', args.amp):
            work_dir = folder_of(args.folder.absolute(), amp, seed)
            if (work_dir / 'result.json').is_file():
                continue
            console.say(f'run      {work_dir}')
            command = [
                'bash',
                str(LAUNCHER),
                '--demo',
                f'--amp={amp}',
                f'--seed={seed}',
                f'--work_dir={work_dir}',
                '--resume=auto',
                *args.options,
            ]
            status = subprocess.run(command, check=False).returncode
            if status:
                raise console.UserError(
                    f'{work_dir} failed with exit status {status}', 'the same command goes on', status
                )


def read(folder: Path, amp: str) -> Dict[int, float]:
    """Mean IoU in percent of the finished runs of one precision, by seed.

    Raises:
        console.UserError: A run is not finished, or there are fewer than two.
    """
    found = {}
    for path in sorted(folder.glob(f'{amp}_seed*/result.json')):
        try:
            result = json_files.read(path, dict)
        except json_files.JsonError as error:
            raise console.UserError(
                f'{path} is damaged ({error})', f'make it again: python tools/metrics.py {path.parent}'
            ) from None
        if not result.get('complete') or not isinstance(result.get(KEY), (int, float)):
            raise console.UserError(f'{path}: the run is not complete, or has no {KEY}')
        found[int(path.parent.name.rpartition('seed')[2])] = float(result[KEY])
    if len(found) < 2:
        raise console.UserError(f'{folder} holds {len(found)} finished runs of {amp}; two or more are needed')
    return found


def judge(exact: Dict[int, float], half: Dict[int, float]) -> Dict[str, Any]:
    """Compare the mIoU of two precisions.

    Args:
        exact: mIoU in percent, by seed, in float32.
        half: The same in half precision, with the same seeds.

    Returns:
        Means, standard deviations, difference of the means, its standard error, and ``within_noise``.

    Raises:
        console.UserError: The seeds differ.
    """
    if exact.keys() != half.keys():
        raise console.UserError(f'the seeds differ: {sorted(exact)} in float32, {sorted(half)} in half precision')
    sides: List[Dict[str, Any]] = [
        {
            'miou_percent_by_seed': values,
            'mean_percent': statistics.mean(values.values()),
            'standard_deviation_percent': statistics.stdev(values.values()),
        }
        for values in (exact, half)
    ]
    error = math.sqrt(sum(side['standard_deviation_percent'] ** 2 for side in sides) / len(exact))
    difference = sides[1]['mean_percent'] - sides[0]['mean_percent']
    return {
        'float32': sides[0],
        'half': sides[1],
        'difference_percent': difference,
        'standard_error_percent': error,
        'within_noise': abs(difference) <= 2 * error,
    }


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; see the module's docstring."""
    args = parse(arguments)
    imported_packages.require()
    if args.mode == 'run':
        run(args)
    verdict = judge(read(args.folder, 'off'), read(args.folder, args.amp))
    (args.folder / 'precision.json').write_text(json.dumps({'amp': args.amp, **verdict}, indent=2) + '\n')
    for name in ('float32', 'half'):
        side = verdict[name]
        console.say(f'{name:8} {side["mean_percent"]:.2f} +- {side["standard_deviation_percent"]:.2f} mIoU')
    place = 'within' if verdict['within_noise'] else 'beyond'
    console.say(
        f'{args.amp} is {verdict["difference_percent"]:+.2f} points from float32, standard error '
        f'{verdict["standard_error_percent"]:.2f}: {place} the noise of seeds'
    )
    return 0 if verdict['within_noise'] else 1

"""Our trainer against the unpatched upstream's, in one run: same weights, same batches, A B A B.

    python tools/bench.py step                                     # the demo's small model
    python tools/bench.py step --backbone=base --crop=512x1024     # the recipe's size; needs much memory on a CPU
    python tools/bench.py profile --backbone=base --crop=512x1024  # operators, host synchronisations, peak memory
    python tools/bench.py loader                                   # samples per second and core, with and without cache
    python tools/bench.py validation                               # images per second, prediction and metric included
    python tools/bench.py guards                                   # ours with and without its guards; no upstream

An iteration is all that mmengine's loop does for one: hooks, preprocessing, forward pass and losses, backward pass,
clipping, optimizer, schedules; no log line is due. ``step`` gives medians after warm-up, with the device synchronised.
It ends with an error, and without a table, where a loss term of the first iteration differs from upstream's by more
than float rounding (``--tolerance``), since a speed-up of another computation is none. What counts as a host
synchronisation is said in ``bench_counts.py``, what peak memory is in ``bench_memory.py``.
"""

from __future__ import annotations

from recipe.core import refuse_hidden_stdlib  # noqa: F401  isort: skip

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from recipe.bench import report as bench_report
from recipe.core import console
from recipe.doctor import sources
from recipe.engine import devices

BACKBONES = {
    'demo': {},
    'tiny': dict(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, pretrain_img_size=224),
    'small': dict(embed_dims=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7, pretrain_img_size=224),
    'base': dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),
    'large': dict(embed_dims=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48]),
}
# Largest relative difference of a loss term that is float rounding, by precision.
TOLERANCE = {'off': 1e-4, 'bf16': 5e-2, 'fp16': 5e-2}


def size(text: str) -> Tuple[int, int]:
    """``512x1024`` as (height, width)."""
    height, separator, width = text.partition('x')
    if not (separator and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, such as 512x1024')
    if int(height) % 32 or int(width) % 32:
        raise argparse.ArgumentTypeError(f'{text}: both sides must be multiples of 32')
    return int(height), int(width)


def count(least: int) -> Callable[[str], int]:
    """An argument type: whole numbers from ``least`` on."""

    def parse_count(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {least} on')
        return int(text)

    return parse_count


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('mode', choices=['step', 'profile', 'loader', 'validation', 'guards'])
    parser.add_argument('--device', choices=['auto', 'npu', 'cuda', 'cpu'], default='auto')
    parser.add_argument(
        '--backbone', choices=list(BACKBONES), default='demo', help='demo: the model of configs/demo.py'
    )
    parser.add_argument('--crop', type=size, metavar='HxW', help='default: 128x256 for demo, else 512x1024')
    parser.add_argument('--batch', type=count(1), default=2, help='images a step (default: 2)')
    parser.add_argument('--amp', choices=list(TOLERANCE), default='off', help='of our side (default: off)')
    parser.add_argument(
        '--upstream_amp',
        choices=['off', 'fp16'],
        default='off',
        help='of upstream, which has fp16 alone (default: off)',
    )
    parser.add_argument(
        '--compile', choices=['off', 'ours', 'both'], default='off', help='torch.compile the train step'
    )
    parser.add_argument('--warmup', type=count(1), default=1, help='steps of each side before the clock (default: 1)')
    parser.add_argument('--repeats', type=count(1), default=5, help='timed steps, or rounds, of each side (default: 5)')
    parser.add_argument('--threads', type=count(1), help="of torch; default: torch's choice")
    parser.add_argument('--seed', type=count(0), default=0)
    parser.add_argument('--tolerance', type=float, help='relative, of each loss term; default: 1e-4, with amp 5e-2')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write everything measured there')
    parser.add_argument('--trace', type=Path, metavar='DIR', help='profile: also write a trace of each side')
    parser.add_argument(
        '--data_path',
        type=Path,
        help='loader, validation: Cityscapes root; default: drawn scenes, 1024x2048, for validation twice the crop',
    )
    parser.add_argument('--images', type=count(1), default=8, help='validation: pictures a round (default: 8)')
    parser.add_argument('--workers', type=count(0), default=2, help='validation: loader processes (default: 2)')
    parser.add_argument('--cache', type=Path, help='loader: decoded cache of --data_path (default: none)')
    parser.add_argument('--samples', type=count(1), default=32, help='loader: samples a round (default: 32)')
    args = parser.parse_args(arguments)
    if args.crop is None:
        args.crop = (128, 256) if args.backbone == 'demo' else (512, 1024)
    if args.tolerance is None:
        args.tolerance = max(TOLERANCE[args.amp], TOLERANCE[args.upstream_amp])
    if args.json and not args.json.parent.is_dir():
        parser.error(f'--json: the folder {args.json.parent} does not exist')
    if args.upstream_amp != 'off' and devices.likely_device(args.device) == 'cpu':
        parser.error(f"--upstream_amp={args.upstream_amp}: upstream's trainer refuses it on a CPU")
    return args


def model_options(args: argparse.Namespace) -> Tuple[str, Dict[str, Any]]:
    """Config file and overrides for the backbone and the crop."""
    from recipe.bench import sides_model

    overrides = {'model.data_preprocessor.size': args.crop}
    if args.backbone == 'demo':
        return sides_model.DEMO, overrides
    backbone = BACKBONES[args.backbone]
    overrides.update({f'model.backbone.{key}': value for key, value in backbone.items()})
    width = backbone['embed_dims']
    overrides['model.decode_head.in_channels'] = [width, 2 * width, 4 * width, 8 * width]
    return sides_model.RECIPE, overrides


def run_step(args: argparse.Namespace) -> Dict[str, Any]:
    """Time both sides; see the module's text."""
    from recipe.bench import worker

    with _pair(args) as (sides, trainers, batch):
        facts = sides.call(worker.describe, trainers)
        rows: Dict[str, List[Dict[str, Any]]] = {'upstream': [], 'ours': []}
        for number in range(args.warmup + args.repeats):
            theirs, ours = sides.call(worker.timed, trainers, batch, args.seed + number)
            if number == 0:
                difference, term = worst_term(theirs['losses'], ours['losses'])
                if not difference <= args.tolerance:
                    raise console.UserError(
                        f'the losses differ: {term} is {ours["losses"].get(term)}, upstream has '
                        f'{theirs["losses"].get(term)} (relative {difference:.1e}, tolerance {args.tolerance:.0e}); '
                        'nothing is reported'
                    )
            if number >= args.warmup:
                rows['upstream'].append(theirs)
                rows['ours'].append(ours)
            console.say(f'step {number + 1}: upstream {theirs["whole_s"]:.3f} s, ours {ours["whole_s"]:.3f} s')
    times = {
        part: bench_report.compare(
            *([row['whole_s'] if part == 'whole' else row['parts_s'][part] for row in rows[side]] for side in rows)
        )
        for part in (*worker.PARTS, 'whole')
    }
    result = {'seconds': times, 'largest_relative_loss_difference': difference, 'upstream': facts[0], 'ours': facts[1]}
    return {**result, 'images_per_second': {side: args.batch / times['whole'][side]['median'] for side in rows}}


def worst_term(theirs: Dict[str, float], ours: Dict[str, float]) -> Tuple[float, str]:
    """The loss term that differs most, relatively; infinite where one side lacks it or is not finite."""
    from recipe.bench import sides_model

    infinite = float('inf')
    return max(
        (
            sides_model.relative_difference(theirs[name], ours[name]) if name in theirs and name in ours else infinite,
            name,
        )
        for name in {*theirs, *ours}
    )


def run_profile(args: argparse.Namespace) -> Dict[str, Any]:
    """Count and weigh both sides; see the module's text."""
    from recipe.bench import memory as bench_memory
    from recipe.bench import worker

    result: Dict[str, Any] = {}
    with _pair(args, env=bench_memory.ENVIRONMENT) as (sides, trainers, batch):
        facts = sides.call(worker.describe, trainers)
        first = sides.call(worker.timed, trainers, batch, args.seed)
        result['largest_relative_loss_difference'] = worst_term(first[0]['losses'], first[1]['losses'])[0]
        counts = sides.call(worker.counted, trainers, batch, args.seed + 1)
        memory = sides.call(worker.measured_memory, trainers, batch, args.seed + 2)
        for index, side in enumerate(('upstream', 'ours')):
            result[side] = {**facts[index], **counts[index], **memory[index]}
        if args.trace:
            args.trace.mkdir(parents=True, exist_ok=True)
            for index, side in enumerate((sides.upstream, sides.ours)):
                path = str(args.trace.resolve() / f'{side.name}.json')
                console.say(f'trace: {side.call(worker.traced, trainers[index], batch, args.seed + 3, path)}')
    return result


def run_loader(args: argparse.Namespace) -> Dict[str, Any]:
    """Time the loading of samples on both sides; see ``bench_loader``."""
    from recipe.bench import loader
    from recipe.core import inputs

    with tempfile.TemporaryDirectory(prefix='bench-') as scratch:
        if args.data_path is None:
            root, cache = loader.drawn_scenes(Path(scratch))
        else:
            root, cache = inputs.require_cityscapes(str(args.data_path)), args.cache
        report = loader.measure(root, cache, args.samples, args.repeats, args.seed)
    loader.show(report)
    return dataclasses.asdict(report)


def run_validation(args: argparse.Namespace) -> Dict[str, Any]:
    """Time the validation of both sides; see ``bench_validation``."""
    from recipe.bench import sides_train, validation
    from recipe.bench.sides import Sides
    from recipe.core import inputs

    config, overrides = model_options(args)
    overrides.pop('model.data_preprocessor.size')
    with tempfile.TemporaryDirectory(prefix='bench-') as scratch:
        height, width = (2 * side for side in args.crop)
        if args.data_path is None:
            root = validation.scenes(Path(scratch), args.images, height, width)
        else:
            root = inputs.require_cityscapes(str(args.data_path))
        with Sides(threads=args.threads or 0, env={'PYTHONWARNINGS': 'ignore'}) as sides:
            both = sides.keep(validation.build, config, overrides, str(root), args.images, args.workers, args.seed)
            sides.ours.call(sides_train.load, both.ours, sides.upstream.call(sides_train.state, both.upstream))
            rows: Dict[str, List[float]] = {'upstream': [], 'ours': []}
            for number in range(args.repeats + 1):
                theirs, ours = sides.call(validation.run, both)
                validation.require_same(theirs['metrics'], ours['metrics'])
                if number:  # the first one warms up
                    rows['upstream'].append(theirs['images'] / theirs['seconds'])
                    rows['ours'].append(ours['images'] / ours['seconds'])
                console.say(f'round {number}: upstream {theirs["seconds"]:.2f} s, ours {ours["seconds"]:.2f} s')
    rates = {side: bench_report.summary(values) for side, values in rows.items()}
    ratio = rates['ours']['median'] / rates['upstream']['median']
    return {
        'images_per_second': {**rates, 'ratio': ratio},
        'metrics': {'upstream': theirs['metrics'], 'ours': ours['metrics']},
    }


def run_guards(args: argparse.Namespace) -> Dict[str, Any]:
    """Count and time ours with and without its guards; see ``bench_guards``."""
    from recipe.bench import guards, sides_model

    config, overrides = model_options(args)
    batch = sides_model.random_batch(args.batch, *args.crop, seed=args.seed, block=32)
    result = guards.measure(config, overrides, batch, args.warmup, args.repeats, args.seed, args.threads)
    guards.show(result)
    return result


@contextlib.contextmanager
def _pair(args: argparse.Namespace, env: Optional[Dict[str, str]] = None) -> Iterator[Tuple[Any, Any, Any]]:
    """Both workers with a trainer each of the same weights, and a batch.

    Args:
        args: Of the command line.
        env: Environment variables of the workers.
    """
    from recipe.bench import sides_model, sides_train
    from recipe.bench.sides import Pair, Sides

    config, overrides = model_options(args)
    with Sides(threads=args.threads or 0, env={'PYTHONWARNINGS': 'ignore', **(env or {})}) as sides:
        graphs = Pair(*(args.compile in compiled for compiled in _COMPILED))
        amp = Pair(args.upstream_amp, args.amp)
        trainers = sides.keep(sides_train.build, config, overrides, seed=args.seed, amp=amp, graphs=graphs)
        sides.ours.call(sides_train.load, trainers.ours, sides.upstream.call(sides_train.state, trainers.upstream))
        yield sides, trainers, sides_model.random_batch(args.batch, *args.crop, seed=args.seed, block=32)


_COMPILED = (('both',), ('ours', 'both'))  # for upstream, for ours


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; see the module's text."""
    args = parse(arguments)
    sources.require()
    device, _ = devices.find(args.device)
    result = {
        'step': run_step,
        'profile': run_profile,
        'loader': run_loader,
        'validation': run_validation,
        'guards': run_guards,
    }[args.mode](args)
    settings = {
        name: getattr(args, name)
        for name in ('mode', 'backbone', 'batch', 'amp', 'upstream_amp', 'compile', 'repeats', 'seed')
    }
    result = {'settings': {**settings, 'device': device, 'crop': list(args.crop)}, **result}
    result['command'] = ['python', 'tools/bench.py', *(sys.argv[1:] if arguments is None else arguments)]
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    if args.mode not in ('loader', 'guards'):
        bench_report.show(result)
    return 0


if __name__ == '__main__':
    console.run(main)

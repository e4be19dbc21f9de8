"""The recipe's trainer against upstream's, in one process: same weights, same batches, A B A B.

    python tools/bench.py step                                     # the demo's small model
    python tools/bench.py step --backbone=swin-b --crop=512x1024   # the recipe's size; needs much memory on a CPU
    python tools/bench.py profile --backbone=swin-b --crop=512x1024  # operators, host synchronisations, peak memory
    python tools/bench.py loader                                   # samples per second and core, with and without cache
    python tools/bench.py validation                               # images per second, prediction and metric included
    python tools/bench.py guards                                   # ours with and without its guards
    python tools/bench.py parts --backbone=swin-b --crop=512x1024    # what each part for CPUs alone gains
    python tools/bench.py size --backbone=swin-t                   # parameters, multiplications, memory of a step
    python tools/bench.py roofline --backbone=swin-b --device=npu    # kernels and bytes of a card, without a card

"Ours" is the recipe. Upstream is the patched checkouts without the recipe: its own model, loop, hooks and AdamW. A test
shows that on a CPU they compute what the unpatched upstream computes, bit for bit.

An iteration is all that mmengine's loop does for one: hooks, preprocessing, forward pass and losses, backward pass,
clipping, optimizer, schedules; no log line is due. ``step`` gives medians after warm-up, with the device synchronised.
If a loss term of the first iteration differs from upstream's by more than float rounding (``--tolerance``), it ends
with
an error and without a table: the two would not compute the same thing. recipe/bench/counts.py defines a host
synchronisation, recipe/engine/peak_memory.py peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from recipe.bench import report as bench_report
from recipe.core import console, imported_packages
from recipe.core.inputs import integer
from recipe.core.run_options import BACKBONES
from recipe.engine import devices

# Earlier names of the backbones.
_ALIASES = {'tiny': 'swin-t', 'small': 'swin-s', 'base': 'swin-b', 'large': 'swin-l'}
# Largest relative difference of a loss term that counts as float rounding, by precision.
TOLERANCE = {'off': 1e-4, 'bf16': 5e-2, 'fp16': 5e-2}


def size(text: str) -> Tuple[int, int]:
    """``512x1024`` as (height, width)."""
    height, separator, width = text.partition('x')
    if not (separator and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, such as 512x1024')
    if int(height) % 32 or int(width) % 32:
        raise argparse.ArgumentTypeError(f'{text}: both sides must be multiples of 32')
    return int(height), int(width)


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        'mode', choices=['step', 'profile', 'loader', 'validation', 'guards', 'parts', 'size', 'roofline']
    )
    parser.add_argument('--device', choices=['auto', 'npu', 'cuda', 'cpu'], default='auto')
    parser.add_argument(
        '--backbone',
        choices=['demo', *BACKBONES, *_ALIASES],
        default='demo',
        help='demo: the model of configs/demo.py; base is swin-b, and so on',
    )
    parser.add_argument('--crop', type=size, metavar='HxW', help='default: 128x256 for demo, else 512x1024')
    parser.add_argument('--batch', type=integer(1), default=2, help='images a step (default: 2)')
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
    parser.add_argument(
        '--graph', action='store_true', help='step: ours as one CUDA graph, after 11 iterations: give --warmup=13'
    )
    parser.add_argument('--warmup', type=integer(1), default=1, help='steps of each side before the clock (default: 1)')
    parser.add_argument(
        '--repeats', type=integer(1), default=5, help='timed steps, or rounds, of each side (default: 5)'
    )
    parser.add_argument('--threads', type=integer(1), help="of torch; default: torch's choice")
    parser.add_argument('--seed', type=integer(0), default=0)
    parser.add_argument('--tolerance', type=float, help='relative, of each loss term; default: 1e-4, with amp 5e-2')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write everything measured there')
    parser.add_argument('--trace', type=Path, metavar='DIR', help='profile: also write a trace of each side')
    parser.add_argument(
        '--data_path',
        type=Path,
        help='loader, validation: Cityscapes root; default: drawn scenes, 1024x2048, for validation twice the crop',
    )
    parser.add_argument('--images', type=integer(1), default=8, help='validation: pictures a round (default: 8)')
    parser.add_argument('--workers', type=integer(0), default=2, help='validation: loader processes (default: 2)')
    parser.add_argument('--cache', type=Path, help='loader: decoded cache of --data_path (default: none)')
    parser.add_argument('--samples', type=integer(1), default=32, help='loader: samples a round (default: 32)')
    parser.add_argument(
        '--images_per_s',
        type=integer(1),
        default=100,
        help='loader: images that a card trains on in a second; says how many loader processes it needs (default: 100)',
    )
    args = parser.parse_args(arguments)
    if args.crop is None:
        args.crop = (128, 256) if args.backbone == 'demo' else (512, 1024)
    if args.tolerance is None:
        args.tolerance = max(TOLERANCE[args.amp], TOLERANCE[args.upstream_amp])
    if args.json and not args.json.parent.is_dir():
        parser.error(f'--json: the folder {args.json.parent} does not exist')
    if args.upstream_amp != 'off' and devices.likely_device(args.device) == 'cpu':
        parser.error(f"--upstream_amp={args.upstream_amp}: upstream's trainer refuses it on a CPU")
    if args.mode == 'parts' and devices.likely_device(args.device) != 'cpu':
        parser.error('parts: measures what serves a CPU alone; give --device=cpu')
    if args.mode == 'roofline' and (args.device == 'cpu' or args.amp == 'fp16'):
        parser.error(
            'roofline: models a GPU or an NPU, in float32 or bf16; give --device=cuda or --device=npu, --amp=bf16'
        )
    return args


def model_options(args: argparse.Namespace) -> Tuple[str, Dict[str, Any]]:
    """Config file and overrides for the backbone and the crop."""
    from recipe.bench import model
    from recipe.engine import backbones

    overrides = {'model.data_preprocessor.size': args.crop}
    if args.backbone == 'demo':
        return model.DEMO, overrides
    return str(backbones.config_file(_ALIASES.get(args.backbone, args.backbone))), overrides


def run_step(args: argparse.Namespace) -> Dict[str, Any]:
    """Time both sides; see the module's docstring."""
    from recipe.bench import worker

    trainers = {side: make_trainer(args, side) for side in SIDES}
    trainers['ours'].model.load_state_dict(trainers['upstream'].model.state_dict())
    batch = make_batch(args)
    rows: Dict[str, List[Dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(args.warmup + args.repeats):
        taken = {side: worker.timed(trainer, batch, args.seed + number) for side, trainer in trainers.items()}
        theirs, ours = (taken[side] for side in SIDES)
        if number == 0:
            difference, term = worst_term(theirs['losses'], ours['losses'])
            if not difference <= args.tolerance:
                raise console.UserError(
                    f'the losses differ: {term} is {ours["losses"].get(term)}, upstream has '
                    f'{theirs["losses"].get(term)} (relative {difference:.1e}, tolerance {args.tolerance:.0e}); '
                    'nothing is reported'
                )
        if number >= args.warmup:
            for side in SIDES:
                rows[side].append(taken[side])
        console.say(f'step {number + 1}: upstream {theirs["whole_s"]:.3f} s, ours {ours["whole_s"]:.3f} s')
    times = {
        part: bench_report.compare(
            *([row['whole_s'] if part == 'whole' else row['parts_s'][part] for row in rows[side]] for side in SIDES)
        )
        for part in (*worker.PARTS, 'whole')
    }
    facts = {side: worker.describe(trainer) for side, trainer in trainers.items()}
    result = {'seconds': times, 'largest_relative_loss_difference': difference, **facts}
    return {**result, 'images_per_second': {side: args.batch / times['whole'][side]['median'] for side in SIDES}}


def worst_term(theirs: Dict[str, float], ours: Dict[str, float]) -> Tuple[float, str]:
    """The loss term with the largest relative difference; infinite if one side lacks it or is not finite."""
    from recipe.bench import model

    infinite = float('inf')
    return max(
        (
            model.relative_difference(theirs[name], ours[name]) if name in theirs and name in ours else infinite,
            name,
        )
        for name in {*theirs, *ours}
    )


def run_profile(args: argparse.Namespace) -> Dict[str, Any]:
    """Count operators and measure memory of both sides, one after the other; see the module's docstring."""
    from recipe.bench import worker

    batch = make_batch(args)
    if args.trace:
        args.trace.mkdir(parents=True, exist_ok=True)
    result: Dict[str, Any] = {}
    losses: List[Dict[str, float]] = []
    weights: Dict[str, Any] = {}
    for side in SIDES:
        trainer = make_trainer(args, side)  # the other side's trainer would count as memory
        trainer.model.load_state_dict(weights or trainer.model.state_dict())
        weights = {} if weights else {name: value.cpu().clone() for name, value in trainer.model.state_dict().items()}
        losses.append(worker.timed(trainer, batch, args.seed)['losses'])
        counts = worker.counted(trainer, batch, args.seed + 1)
        memory = worker.measured_memory(trainer, batch, args.seed + 2)
        result[side] = {**worker.describe(trainer), **counts, **memory}
        if args.trace:
            path = str(args.trace.resolve() / f'{side}.json')
            console.say(f'trace: {worker.traced(trainer, batch, args.seed + 3, path)}')
    return {'largest_relative_loss_difference': worst_term(*losses)[0], **result}


def run_loader(args: argparse.Namespace) -> Dict[str, Any]:
    """Time the loading of samples on both sides; see ``recipe.bench.loader``."""
    from recipe.bench import loader
    from recipe.data import diagnosis

    with tempfile.TemporaryDirectory(prefix='bench-') as scratch:
        if args.data_path is None:
            root, cache = loader.drawn_scenes(Path(scratch))
        else:
            root, cache = diagnosis.require_root(str(args.data_path)), args.cache
        report = loader.measure(root, cache, args.samples, args.repeats, args.seed, args.images_per_s)
    loader.show(report)
    return dataclasses.asdict(report)


def run_validation(args: argparse.Namespace) -> Dict[str, Any]:
    """Time the validation of both sides; see ``recipe.bench.validation``."""
    from recipe.bench import validation
    from recipe.data import diagnosis

    set_up_process(args)
    config, overrides = model_options(args)
    overrides.pop('model.data_preprocessor.size')
    with tempfile.TemporaryDirectory(prefix='bench-') as scratch:
        height, width = (2 * side for side in args.crop)
        if args.data_path is None:
            root = validation.scenes(Path(scratch), args.images, height, width)
        else:
            root = diagnosis.require_root(str(args.data_path))
        both = {
            side: validation.Validation(
                config, overrides, str(root), args.images, args.workers, args.seed, upstream=side == 'upstream'
            )
            for side in SIDES
        }
        both['ours'].model.load_state_dict(both['upstream'].model.state_dict())
        rows: Dict[str, List[float]] = {side: [] for side in SIDES}
        for number in range(args.repeats + 1):
            taken = {side: one.run() for side, one in both.items()}
            metrics = {side: found for side, (_, found) in taken.items()}
            validation.require_same(metrics['upstream'], metrics['ours'])
            if number:  # the first round warms up
                for side, (seconds, _) in taken.items():
                    rows[side].append(len(both[side].loop.dataloader.dataset) / seconds)
            theirs, ours = (taken[side][0] for side in SIDES)
            console.say(f'round {number}: upstream {theirs:.2f} s, ours {ours:.2f} s')
    rates = {side: bench_report.summary(values) for side, values in rows.items()}
    ratio = rates['ours']['median'] / rates['upstream']['median']
    return {'images_per_second': {**rates, 'ratio': ratio}, 'metrics': metrics}


def run_guards(args: argparse.Namespace) -> Dict[str, Any]:
    """Count and time ours with and without its guards; see ``recipe.bench.guards``."""
    from recipe.bench import guards

    set_up_process(args)
    config, overrides = model_options(args)
    result = guards.measure(config, overrides, make_batch(args), args.warmup, args.repeats, args.seed)
    guards.show(result)
    return result


def run_parts(args: argparse.Namespace) -> Dict[str, Any]:
    """Time ours without each part that is for CPUs only; see ``recipe.bench.parts``."""
    from recipe.bench import parts

    result = parts.measure(make_trainer(args, 'ours'), make_batch(args), args.warmup, args.repeats, args.seed)
    parts.show(result)
    return result


def run_size(args: argparse.Namespace) -> Dict[str, Any]:
    """Count parameters and multiplications, and measure the memory of a step; see ``recipe.bench.model_size``."""
    from recipe.bench import model, model_size, worker

    set_up_process(args)
    plain = model.build(model_options(args)[0])
    result = {
        'parameters': model_size.parameters(plain),
        'multiplications_of_a_picture': model_size.multiplications(plain, args.crop),
    }
    del plain
    trainer, batch = make_trainer(args, 'ours'), make_batch(args)
    worker.timed(trainer, batch, args.seed)  # makes the state of the optimizer
    result.update(worker.measured_memory(trainer, batch, args.seed + 1))
    model_size.show(result)
    return result


def run_roofline(args: argparse.Namespace) -> Dict[str, Any]:
    """Record the kernels of both sides; see ``recipe.bench.roofline``."""
    import torch

    version = tuple(map(int, torch.__version__.split('.')[:2]))
    if version < (2, 6):
        raise console.UserError(
            f'roofline needs torch 2.6, and this is torch {torch.__version__}',
            'set up another environment: bash tools/setup.sh --stack=cpu',
        )
    from recipe.bench import roofline

    set_up_process(args)
    kind = devices.likely_device(args.device)
    result = roofline.run(args, 'cuda' if kind == 'cpu' else kind, *model_options(args), make_batch(args))
    roofline.show(result)
    return result


SIDES = ('upstream', 'ours')
_COMPILED = {'upstream': ('both',), 'ours': ('ours', 'both')}


def set_up_process(args: argparse.Namespace) -> None:
    """Set torch's number of threads, and keep warnings out of the report."""
    import warnings

    import torch

    warnings.simplefilter('ignore')
    if args.threads:
        torch.set_num_threads(args.threads)


def make_trainer(args: argparse.Namespace, side: str) -> Any:
    """Build the trainer of one side."""
    import torch

    from recipe.bench.trainer import Trainer

    set_up_process(args)
    config, overrides = model_options(args)
    is_upstream = side == 'upstream'
    amp = args.upstream_amp if is_upstream else args.amp
    graphs = args.compile in _COMPILED[side]
    if args.graph and not is_upstream:
        if not torch.cuda.is_available():
            raise console.UserError('--graph: a CUDA graph needs a GPU, and torch sees none', 'leave it out')
        overrides = {**overrides, 'train_cfg.graph': True}
    return Trainer(config, overrides, args.seed, amp, graphs=graphs, upstream=is_upstream)


def make_batch(args: argparse.Namespace) -> Dict[str, List[Any]]:
    """Draw the batch used in all iterations."""
    from recipe.bench import model

    height, width = args.crop
    return model.random_batch(args.batch, height, width, seed=args.seed, block=32)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; see the module's docstring."""
    args = parse(arguments)
    imported_packages.require()
    # A roofline needs no device.
    device = args.device if args.mode == 'roofline' else devices.find(args.device)[0]
    result = {
        'step': run_step,
        'profile': run_profile,
        'loader': run_loader,
        'validation': run_validation,
        'guards': run_guards,
        'parts': run_parts,
        'size': run_size,
        'roofline': run_roofline,
    }[args.mode](args)
    settings = {
        name: getattr(args, name)
        for name in ('mode', 'backbone', 'batch', 'amp', 'upstream_amp', 'compile', 'repeats', 'seed')
    }
    result = {'settings': {**settings, 'device': device, 'crop': list(args.crop)}, **result}
    result['command'] = ['python', 'tools/bench.py', *(sys.argv[1:] if arguments is None else arguments)]
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    if args.mode not in ('loader', 'guards', 'parts', 'size', 'roofline'):
        bench_report.show(result)
    return 0

"""Kernels, bytes and FLOPs of an iteration by part of the model, and the time that they should take.

``bench.py roofline`` runs it. It needs no accelerator: it records an iteration on ``meta``, see ``meta_step``. All
times are a model, a lower bound: each kernel takes the longest of three times, its bytes over the bandwidth, its FLOPs
over the peak, and one launch. Bandwidth and peaks are those of the data sheet, times the share that good kernels reach.
The loader, Python, caches and the communication between ranks are left out. Copies of gradients, clipping and the
optimizer are in.

The bytes of the model when fused are an estimate of what is left if a compiler fuses everything but products,
convolutions, attention and other kernels of libraries.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence

import torch

from recipe.bench import kernels, meta_step
from recipe.bench.kernels import Kernel
from recipe.core import console

PHASES = (kernels.FORWARD, kernels.BACKWARD, kernels.OPTIMIZER)


@dataclass(frozen=True)
class Machine:
    """What a card can do.

    Attributes:
        bandwidth: Of its memory, bytes/s.
        half: Products of a half type, FLOP/s.
        single: Products of float32 without TF32, FLOP/s.
        launch: Time between two kernels that Python launches, s.
        graph_launch: The same in a graph, s.
        text: What was assumed.
    """

    bandwidth: float
    half: float
    single: float
    launch: float
    graph_launch: float
    text: str

    def seconds(self, one: Kernel, graph: bool = False) -> float:
        """Time of one kernel."""
        peak = self.half if one.dtype in (torch.bfloat16, torch.float16) else self.single
        return max(one.bytes / self.bandwidth, one.flops / peak, self.graph_launch if graph else self.launch)


MACHINES: Dict[str, Dict[str, Machine]] = {
    'cuda': {
        'H100': Machine(
            0.8 * 3.35e12, 0.6 * 989e12, 0.8 * 67e12, 5e-6, 1.5e-6,
            '3.35 TB/s x 0.8; half 989 x 0.6, float32 67 x 0.8 TFLOP/s; launch 5 us, in a graph 1.5 us',
        ),
        'A100': Machine(
            0.8 * 2.04e12, 0.6 * 312e12, 0.8 * 19.5e12, 5e-6, 1.5e-6,
            '2.04 TB/s x 0.8; half 312 x 0.6, float32 19.5 x 0.8 TFLOP/s; launch 5 us, in a graph 1.5 us',
        ),
    },
    'npu': {
        '910B': Machine(
            0.75 * 1.6e12, 0.6 * 376e12, 0.6 * 94e12, 10e-6, 3e-6,
            '1.6 TB/s x 0.75; half 376 x 0.6, float32 94 x 0.6 TFLOP/s; launch 10 us, in a graph 3 us',
        ),
    },
}  # fmt: skip


def by_part(found: Sequence[Kernel]) -> Dict[str, Dict[str, List[Kernel]]]:
    """Kernels by part of the model, then by phase; the parts that move most bytes first."""
    parts: Dict[str, Dict[str, List[Kernel]]] = defaultdict(lambda: {phase: [] for phase in PHASES})
    for one in found:
        parts[one.part][one.phase].append(one)
    return dict(sorted(parts.items(), key=lambda item: -sum(map(moved, item[1].values()))))


def moved(found: Sequence[Kernel]) -> int:
    """Bytes that kernels read and write."""
    return sum(one.bytes for one in found)


def summary(record: kernels.Kernels, kind: str, images: int) -> Dict[str, Any]:
    """What a record says, for JSON.

    Args:
        record: Of one iteration.
        kind: Kind of accelerator, a key of MACHINES.
        images: Images in the iteration.
    """
    found, least = record.found, kernels.fused(record.found)
    parts: Dict[str, Dict[str, Any]] = {}
    for part, phases in by_part(found).items():
        parts[part] = {phase: _numbers(phases[phase]) for phase in PHASES}
        parts[part]['fused_bytes'] = moved([one for one in least if one.part == part])
    times = {}
    for name, machine in MACHINES[kind].items():
        for graph in (False, True):
            eager = sum(machine.seconds(one, graph) for one in found)
            times[f'{name}{" in a graph" if graph else ""}'] = {
                'seconds': eager,
                'images_per_second': images / eager,
                'seconds_fused': sum(machine.seconds(one, graph) for one in least),
            }
    whole = {phase: _numbers([one for one in found if one.phase == phase]) for phase in PHASES}
    return {
        **_numbers(found),
        'fused_kernels': len(least),
        'fused_bytes': moved(least),
        'copies': dict(record.copies),
        'phases': whole,
        'parts': parts,
        'model': times,
    }


def _numbers(found: Sequence[Kernel]) -> Dict[str, int]:
    return {'kernels': len(found), 'bytes': moved(found), 'flops': sum(one.flops for one in found)}


def text(record: kernels.Kernels) -> str:
    """Kernels and bytes by phase and part, one line each: what a golden file holds."""
    lines = []
    for phase in PHASES:
        chosen = [one for one in record.found if one.phase == phase]
        lines.append(f'{phase}: {len(chosen)} kernels, {moved(chosen) / 1e6:.1f} MB')
        for part, phases in by_part(chosen).items():
            lines.append(f'{len(phases[phase]):7} {moved(phases[phase]) / 1e6:9.1f} MB  {part}')
    copies = ', '.join(f'{record.copies[name]} {name}' for name in sorted(record.copies))
    return '\n'.join([*lines, f'copies: {copies}', ''])


def measure(args: argparse.Namespace, config: str, overrides: Dict[str, Any], batch: Dict[str, Any]) -> Dict[str, Any]:
    """Seconds of an iteration of each side on the card of this machine, without other ranks."""
    from recipe.bench import worker
    from recipe.bench.trainer import Trainer

    found = {}
    for upstream in (True, False):
        graphs = not upstream and args.compile != 'off'
        amp = 'off' if upstream else args.amp
        trainer = Trainer(config, overrides, args.seed, amp, graphs=graphs, upstream=upstream)
        device = worker.device_of(trainer)
        taken = [worker.one_iteration(trainer, batch, number, device) for number in range(args.warmup + args.repeats)]
        found['upstream' if upstream else 'ours'] = statistics.median(taken[args.warmup :])
    return found


def show(result: Dict[str, Any]) -> None:
    """Print what was recorded, and measured if there was a card."""
    from rich.console import Console
    from rich.table import Table

    sides = {name: result[name] for name in ('upstream', 'ours')}
    table = Table(title='One iteration of a rank, recorded on meta: kernels and GB, upstream and ours')
    table.add_column('part of the model')
    for name in sides:
        for column in ('forward', 'backward', 'optimizer', 'fused'):
            table.add_column(f'{name} {column}', justify='right')
    for part in {**sides['upstream']['parts'], **sides['ours']['parts']}:
        cells: List[str] = []
        for side in sides.values():
            one = side['parts'].get(part)
            cells += [_cell(one[phase]) if one else '' for phase in PHASES]
            cells.append(f'{one["fused_bytes"] / 1e9:.2f}' if one else '')
        table.add_row(part, *cells)
    cells = []
    for side in sides.values():
        cells += [_cell(side['phases'][phase]) for phase in PHASES] + [f'{side["fused_bytes"] / 1e9:.2f}']
    table.add_row('all', *cells)
    out = Console(width=150)
    out.print(table)
    for name, side in sides.items():
        copies = ', '.join(f'{count} {what}' for what, count in side['copies'].items())
        console.say(
            f'{name}: {side["kernels"]} kernels, {side["bytes"] / 1e9:.1f} GB (fused: {side["fused_kernels"]}, '
            f'{side["fused_bytes"] / 1e9:.1f} GB), {side["flops"] / 1e12:.2f} TFLOP; waits and copies: {copies}'
        )
        for machine, one in side['model'].items():
            console.say(
                f'  model of {machine}: {1e3 * one["seconds"]:.1f} ms, {one["images_per_second"]:.1f} images/s; '
                f'fused {1e3 * one["seconds_fused"]:.1f} ms'
            )
    for name, machine in MACHINES[result['kind']].items():
        console.say(f'assumed for {name}: {machine.text}')
    console.say('a model: without loader, Python, caches and communication; no card ran')
    for name, seconds in result.get('measured_seconds', {}).items():
        console.say(f'measured, {name}: {1e3 * seconds:.1f} ms')


def _cell(numbers: Dict[str, int]) -> str:
    return f'{numbers["kernels"]}, {numbers["bytes"] / 1e9:.2f}' if numbers['kernels'] else ''


def run(
    args: argparse.Namespace, kind: str, config: str, overrides: Dict[str, Any], batch: Dict[str, Any]
) -> Dict[str, Any]:
    """Record both sides; measure them too if this machine has a card of this kind.

    Args:
        args: Of the command line.
        kind: ``cuda`` or ``npu``.
        config: Path of the config.
        overrides: Of the config, by dotted key.
        batch: From ``model.random_batch``.
    """
    result: Dict[str, Any] = {'kind': kind}
    for side in ('upstream', 'ours'):
        record = meta_step.trace(
            kind, config, overrides, batch, args.amp, upstream=side == 'upstream',
            static=side == 'ours' and args.compile != 'off',
        )  # fmt: skip
        result[side] = summary(record, kind, args.batch)
    card = getattr(torch, kind, None)
    if card is not None and card.is_available():
        result['measured_seconds'] = measure(args, config, overrides, batch)
    return result

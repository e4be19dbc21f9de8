"""Medians, ratios and tables of a benchmark."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List


def summary(values: List[float]) -> Dict[str, Any]:
    """Median and spread of measurements.

    Args:
        values: At least one.
    """
    return {'median': statistics.median(values), 'least': min(values), 'most': max(values), 'values': values}


def compare(upstream: List[float], ours: List[float]) -> Dict[str, Any]:
    """Both sides' times and ``ratio``, upstream's median over ours: 2 means that ours takes half the time."""
    one, other = summary(upstream), summary(ours)
    ratio = one['median'] / other['median'] if other['median'] > 0 else float('inf')
    return {'upstream': one, 'ours': other, 'ratio': ratio}


def show(result: Dict[str, Any]) -> None:
    """Print the result of ``bench.py`` as a table."""
    from rich.console import Console
    from rich.table import Table

    settings = result['settings']
    height, width = settings['crop']
    title = f'{settings["mode"]}: {settings["backbone"]}, {height}x{width}, batch {settings["batch"]}, '
    title += f'{settings["device"]}, amp {settings["amp"]} (upstream {settings["upstream_amp"]}), '
    title += f'compile {settings["compile"]}'
    table = Table(title=title)
    for name in ('', 'upstream', 'ours', 'ratio'):
        table.add_column(name, justify='left' if not name else 'right')
    for row in rows(result):
        table.add_row(*row)
    console = Console(width=100)
    console.print(table)
    if 'largest_relative_loss_difference' in result:
        console.print(f'largest relative difference of a loss term: {result["largest_relative_loss_difference"]:.1e}')


def rows(result: Dict[str, Any]) -> List[List[str]]:
    """The table's rows as text: name, upstream, ours, ratio."""
    mode = result['settings']['mode']
    if mode == 'validation':
        rate = result['images_per_second']
        cells = [
            f'{one["median"]:.3f} ({one["least"]:.3f}-{one["most"]:.3f})' for one in (rate['upstream'], rate['ours'])
        ]
        return [['images per second', *cells, f'{rate["ratio"]:.2f}']]
    if mode == 'step':
        return [_times(f'{part} (s)', one) for part, one in result['seconds'].items()]
    upstream, ours = result['upstream'], result['ours']
    found = [_numbers('operators dispatched', upstream['operators'], ours['operators'])]
    found.append(_numbers('host synchronisations', upstream['host_synchronisations'], ours['host_synchronisations']))
    kinds = [one['host_synchronisations_by_kind'] for one in (upstream, ours)]
    for kind in {**kinds[0], **kinds[1]}:
        found.append([f'  {kind}', *(str(one.get(kind, 0)) for one in kinds), ''])
    for name, text in (('peak_bytes', 'peak memory (MB)'), ('above_before_bytes', '  above what was there (MB)')):
        found.append(_numbers(text, round(upstream[name] / 1e6), round(ours[name] / 1e6)))
    return found


def _times(name: str, one: Dict[str, Any]) -> List[str]:
    cells = [
        f'{side["median"]:.4f} ({side["least"]:.4f}-{side["most"]:.4f})' for side in (one['upstream'], one['ours'])
    ]
    return [name, *cells, f'{one["ratio"]:.2f}']


def _numbers(name: str, upstream: int, ours: int) -> List[str]:
    return [name, str(upstream), str(ours), f'{upstream / ours:.2f}' if ours else '']

"""Describe a data set of your own in a small file, and check it.

    python tools/dataset.py inspect DIR [--out FILE] [--samples N] [--force]
    python tools/dataset.py verify FILE
    bash test/train_full_8p.sh --dataset=FILE

inspect guesses the file and says why; every guess can be edited in it. verify names every fault and ends with status 1
if there is one. The page docs/your_data.md explains the file.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import List, Optional

from recipe.core import console, imported_packages, inputs, run_folder
from recipe.core.inputs import integer
from recipe.data.sets import file

_ORDER = ('layout', 'splits', 'coding', 'names', 'ignore', 'training', 'class_weights')


def parse(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True
    text = 'guess the file from a folder of pictures and labels, and draw samples'
    inspect = commands.add_parser('inspect', help=text, description=text, allow_abbrev=False)
    inspect.add_argument('folder', type=Path, metavar='DIR', help='the data set')
    inspect.add_argument('--out', type=Path, metavar='FILE', help=f'the file to write (default: DIR/{file.NAME})')
    inspect.add_argument('--samples', type=integer(0), metavar='N', help='labels to read; 0: all (default: 400)')
    inspect.add_argument('--force', action='store_true', help='replace a file that is there')
    text = 'check a set against its file; exit status 1 if anything is wrong'
    verify = commands.add_parser('verify', help=text, description=text, allow_abbrev=False)
    verify.add_argument('file', type=Path, metavar='FILE', help=f'the {file.NAME}')
    verify.add_argument('--data_path', metavar='DIR', help='folder of the set, if it is not where the file says')
    for command in (inspect, verify):
        command.add_argument('--num_workers', type=integer(1), metavar='N', help='processes (default: one per core)')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command and return the exit status."""
    args = parse(argv)
    imported_packages.require()
    if args.command == 'verify':
        return _verify(args)
    _inspect(args)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from recipe.data.sets import verify

    data = file.read(args.file, args.data_path)
    report = verify.verify(data, args.num_workers, splits=file.SPLITS)
    for fault in report.faults:
        console.say(str(fault))
    console.say(f'{data.path}: {report.summary()}')
    return 0 if report.ok else console.EXIT_FAILURE


def _inspect(args: argparse.Namespace) -> None:
    from recipe.data.sets import inspect, sheet

    root = inputs.absolute(str(args.folder))
    out = inputs.absolute(str(args.out)) if args.out else root / file.NAME
    if out.is_dir():
        out = out / file.NAME
    if os.path.lexists(str(out)) and not args.force:
        raise console.UserError(f'{out} is there already', 'give --force to replace it, or --out FILE')
    place = run_folder.existing_part(out.parent)
    if not os.access(str(place), os.W_OK):
        raise console.UserError(f'{place} cannot be written to', 'give --out FILE')
    samples = inspect.SAMPLES if args.samples is None else args.samples
    data = inspect.inspect(root, out, samples, args.num_workers)
    file.write(data)
    data = file.read(out)  # as the launchers will
    for key in _ORDER:
        if key in data.reasons:
            console.say(f'{key + ":":<15}{_found(data, key)} - {data.reasons[key]}')
    for one in data.classes:
        share = '' if one.share is None else f'{one.share:8.3f} %'
        console.say(f'  {one.value!s:>16}  {one.name:<24}{share}')
    console.say(f'wrote    {out}')
    console.say(f'wrote    {sheet.draw(data, out.with_name(file.SHEET))}')
    given = shlex.quote(str(out))
    console.say(f'look at the samples, correct {out.name} if a guess is wrong, then')
    console.say(f'check:   python tools/dataset.py verify {given}')
    console.say(f'train:   bash test/train_full_8p.sh --dataset={given}')


def _found(data: file.DataSet, key: str) -> str:
    """A guess in a few words."""
    if key == 'layout':
        return data.layout
    if key == 'splits':
        return ', '.join(data.splits)
    if key == 'coding':
        return data.coding
    if key == 'names':
        return f'{len(data.classes)} classes'
    if key == 'ignore':
        return f'{len(data.ignore)} value{"s" * (len(data.ignore) != 1)}'
    if key == 'training':
        return f'crop {data.crop[1]}x{data.crop[0]}'
    rare = sorted(data.weights.items(), key=lambda item: -item[1])[:3]
    return ', '.join(f'{name} {weight:.2g}' for name, weight in rare)

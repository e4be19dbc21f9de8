"""The Cityscapes data set: prepare it, verify it, or make a small one of procedural scenes.

    python tools/cityscapes.py prepare --data_path ROOT [--zips FOLDER]
    python tools/cityscapes.py verify --data_path ROOT
    python tools/cityscapes.py cache --data_path ROOT [--to FOLDER]
    python tools/cityscapes.py demo --data_path ROOT --train 64 --val 16 --width 256 --height 128

ROOT holds leftImg8bit/ and gtFine/. Like the real set, a demo set has no labelTrainIds until prepare has run on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Dict, List, Optional

from recipe.core import console, imported_packages
from recipe.core.inputs import integer
from recipe.data import layout
from recipe.data import prepare as cityscapes_prepare
from recipe.data import verify as cityscapes_verify


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument('--data_path', type=Path, required=True, metavar='ROOT', help='the data set')
        sub.add_argument('--num_workers', type=integer(1), metavar='N', help='processes (default: one per core)')
        return sub

    prepare = command('prepare', 'unpack the official zips if need be, and make labelTrainIds from the polygons')
    prepare.add_argument('--zips', type=Path, metavar='FOLDER', help='folder of the official zips (default: ROOT)')
    prepare.add_argument('--force', action='store_true', help='remake labels that exist')

    verify = command('verify', 'check layout, pairs, counts and every file; exit status 1 where anything is wrong')
    verify.add_argument(
        '--expect', type=_counts, metavar='train=N,val=M', help='pairs there must be (default: 2975 and 500)'
    )
    verify.add_argument('--num_classes', type=integer(1), default=cityscapes_verify.NUM_CLASSES, metavar='N')
    verify.add_argument('--cache', type=Path, metavar='FILE', help='where to remember files that were found whole')

    cache = command('cache', 'keep all pictures decoded, for launchers with --decoded_cache; states its size first')
    cache.add_argument('--to', type=Path, metavar='FOLDER', help=f'where to (default: ROOT/{layout.DECODED})')

    demo = command('demo', 'write a small set of procedural street scenes in the layout of Cityscapes')
    for name, default, text in (
        ('train', 64, 'scenes to train on'),
        ('val', 16, 'scenes to validate on'),
        ('width', 256, 'pixels'),
        ('height', 128, 'pixels'),
        ('seed', 0, 'seed of all scenes'),
    ):
        demo.add_argument(f'--{name}', type=int, default=default, metavar='N', help=f'{text} (default: {default})')
    return parser.parse_args(argv)


def _counts(text: str) -> Dict[str, int]:
    """Parse 'train=N,val=M'; either may be left out."""
    counts = {}
    for part in text.split(','):
        split, _, number = part.partition('=')
        if split not in layout.SPLITS or not number.isdigit():
            raise argparse.ArgumentTypeError(f'{text!r} is not of the form train=N,val=M')
        counts[split] = int(number)
    return counts


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command and return the exit status."""
    args = parse_args(argv)
    if args.command == 'prepare':
        made = cityscapes_prepare.prepare(args.data_path, args.zips, args.num_workers, args.force)
        console.say(f'prepared {args.data_path}: {made} labels made')
        return 0
    if args.command == 'verify':
        report = cityscapes_verify.verify(
            args.data_path, args.expect, args.num_workers, cache=args.cache, num_classes=args.num_classes
        )
        for fault in report.faults:
            console.say(str(fault))
        console.say(f'{args.data_path}: {report.summary()}')
        return 0 if report.ok else console.EXIT_FAILURE
    if args.command == 'cache':
        imported_packages.require()
        from recipe.data import cache as cityscapes_cache  # needs the patched mmseg, which a check of a set does not

        folder = args.to or args.data_path / layout.DECODED
        built = cityscapes_cache.build(args.data_path, folder, args.num_workers)
        console.say(f'{folder}: {built.pictures} decoded pictures, {built.made} of them made now')
        return 0
    from recipe.data import demo as cityscapes_demo  # needs OpenCV, which a check of a real set does not

    wanted = cityscapes_demo.DemoSet(args.train, args.val, args.width, args.height, args.seed)
    made = cityscapes_demo.demo(args.data_path, wanted, args.num_workers)
    console.say(f'{args.data_path}: {wanted.train + wanted.val} demo scenes, {made} of them made now')
    return 0

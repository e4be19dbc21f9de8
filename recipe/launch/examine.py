"""Checks a machine before a training: versions, cards, all-reduce, data, weights, disk, limits, network, clock.

    python tools/doctor.py --data_path=/data/cityscapes      # the options of train_full_8p.sh; --json for programs
    python tools/doctor.py performance --device=npu          # as train_performance_8p.sh would start
    python tools/doctor.py --images_per_s=100                # do the cores load so many images a second for each card?

Starts no training and takes seconds. It writes only the list of data set files that were found whole. Exit status 0:
no failure, at most warnings. The launchers make the same checks before they start a rank. With --nnodes, start it on
every machine; all of them take part in the all-reduce.
"""

from __future__ import annotations

import contextlib
import math
import sys
from typing import List, Optional, Sequence, Tuple

from recipe.core import console
from recipe.core.run_options import SCRIPTS, Options
from recipe.doctor import report
from recipe.doctor.finding import FAILURE
from recipe.launch import checks, options
from recipe.launch.plan import Plan

SPEED = '--images_per_s'


def parse(argv: Sequence[str]) -> Optional[Tuple[Options, bool, Optional[float]]]:
    """Read the command line.

    Returns:
        The launcher's options, whether to print JSON, and images per second and card if the user gives them; or None if
        the user asks for help.

    Raises:
        console.UserError: An option is unknown, or a value is wrong.
    """
    argv = list(argv)
    ours = argv[: argv.index('--')] if '--' in argv else argv
    if {'-h', '--help'} & set(ours):
        return None
    script = argv.pop(0) if argv and argv[0] in SCRIPTS else 'full'
    as_json = '--json' in ours
    if as_json:
        argv.remove('--json')
    speed = _take_speed(argv)
    return options.parse(script, argv), as_json, speed


def _take_speed(argv: List[str]) -> Optional[float]:
    """Remove ``--images_per_s`` from the options, and return its value."""
    end = argv.index('--') if '--' in argv else len(argv)
    for index, word in enumerate(argv[:end]):
        name, has_value, text = word.partition('=')
        if name == SPEED:
            if not has_value:
                text = argv[index + 1] if index + 1 < end else ''
            del argv[index : index + (1 if has_value else 2)]
            try:
                speed = float(text)
            except ValueError:
                speed = math.nan
            if not 0 < speed < math.inf:
                raise console.UserError(f'{SPEED}={text}: not a positive number', f'give one, such as {SPEED}=100')
            return speed
    return None


def main() -> Optional[int]:
    """Entry point; see the module's docstring."""
    given = parse(sys.argv[1:])
    if given is None:
        for line in (__doc__ or '').splitlines():
            console.say(line)
        return None
    asked, as_json, speed = options.settle(given[0]), *given[1:]
    # Messages of a check, such as the progress of a download, are not part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        findings = checks.collect(Plan(asked, starts=False, images_per_s=speed))
    (report.print_json if as_json else report.print_table)(findings)
    return console.EXIT_FAILURE if report.worst(findings) == FAILURE else None

"""Looks a machine over before a training: versions, cards, all-reduce, data, weights, disk, limits, network, clock.

    python tools/doctor.py --data_path=/data/cityscapes      # the options of train_full_8p.sh; --json for programs
    python tools/doctor.py performance --device=npu          # as train_performance_8p.sh would start

Starts no training; all that it writes is the note of which files of the data set were whole. Takes seconds. Exit
status 0: no failure, warnings at most. The launchers make the same checks before they start a rank. With --nnodes and
started on every machine, all of them take part in the all-reduce.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Callable, List, Optional, Sequence, Tuple

from recipe.core import console
from recipe.core.run_options import SCRIPTS, Options
from recipe.doctor import cards, clock, compiler, limits, network, report, sources, versions
from recipe.doctor.finding import FAILURE, Finding, attempt
from recipe.doctor.subject import Subject
from recipe.engine import devices
from recipe.launch import collective, files, options

# In the order in which one thing rests upon another.
MACHINE: Tuple[Callable[[Subject], List[Finding]], ...] = (
    versions.examine,
    sources.examine,
    cards.examine,
    limits.examine,
    compiler.examine,
    network.examine,
    clock.examine,
)


def before_training(subject: Subject) -> List[Finding]:
    """What the launcher checks itself, beyond its options, data, weights and disk.

    Args:
        subject: The training.

    Returns:
        Findings. The all-reduce, which takes longest, is left out where something else has failed, and on a CPU, where
        there are no cards and starting the ranks twice would cost more than it finds.
    """
    findings = [finding for examine in MACHINE for finding in examine(subject)]
    if subject.device != 'cpu' and report.worst(findings) != FAILURE:
        findings += collective.examine(subject)
    return findings


def by_hand(asked: Options) -> List[Finding]:
    """Check everything, also behind a failure.

    Args:
        asked: Options that passed ``options.settle``.
    """
    findings = files.checkout_findings()
    device, nproc, there = devices.likely_device(asked.device), asked.nproc or devices.DEFAULT_NPROC, False
    packages = sources.hidden_packages()
    if report.worst(packages) == FAILURE:  # whatever follows would import them
        return [*findings, *packages]

    def find() -> str:
        nonlocal device, nproc, there
        device, count = devices.find(asked.device)  # before anything else imports torch
        nproc = devices.choose_nproc(device, count, asked.nproc, asked.demo)
        there = True
        return f'{nproc} x {device}'

    findings += attempt('device', find)
    subject = Subject(asked, device, nproc)
    if all(finding.level != FAILURE for finding in sources.examine(subject)):
        made, config = files.config_findings(subject)
        findings += made
        subject = Subject(asked, device, nproc, config)
    findings += [finding for examine in MACHINE for finding in examine(subject)]
    if subject.config is not None:
        findings += files.examine(subject)
    if there:
        findings += collective.examine(subject, all_machines=True)
    return findings


def parse(argv: Sequence[str]) -> Optional[Tuple[Options, bool]]:
    """Read the command line.

    Returns:
        The launcher's options and whether to print JSON, or None if the user asks for help.
    """
    argv = list(argv)
    ours = argv[: argv.index('--')] if '--' in argv else argv
    if {'-h', '--help'} & set(ours):
        return None
    script = argv.pop(0) if argv and argv[0] in SCRIPTS else 'full'
    as_json = '--json' in ours
    if as_json:
        argv.remove('--json')
    return options.parse(script, argv), as_json


def main() -> Optional[int]:
    """Entry point; see the module's docstring."""
    given = parse(sys.argv[1:])
    if given is None:
        console.say(__doc__ or '')
        return None
    asked, as_json = options.settle(given[0]), given[1]
    # What a check says on its way, such as the progress of a download, is not part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        findings = by_hand(asked)
    (report.print_json if as_json else report.print_table)(findings)
    return console.EXIT_FAILURE if report.worst(findings) == FAILURE else None

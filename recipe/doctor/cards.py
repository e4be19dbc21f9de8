"""Checks the cards that a training will use: are they there, healthy and free?"""

from __future__ import annotations

import re
from typing import List, Optional

from recipe.core import console
from recipe.doctor import smi
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding, failure
from recipe.doctor.smi import Card
from recipe.doctor.subject import Subject

VISIBLE = {'npu': 'ASCEND_RT_VISIBLE_DEVICES', 'cuda': 'CUDA_VISIBLE_DEVICES'}
# An idle 910B reports some 3400 of 65536 MiB as used.
BUSY = 0.15
# States of `npu-smi info -t health` besides OK in which a card still works.
_USABLE = ('Warning',)


def chosen(cards: List[Card], nproc: int, visible: Optional[str]) -> List[Card]:
    """The cards that the ranks of this machine get.

    Args:
        cards: All cards of the machine.
        nproc: Ranks.
        visible: Content of the variable that restricts the cards: numbers, ranges (NPU) or UUIDs (GPU); None for all.
    """
    if visible is None:
        return cards[:nproc]
    found: List[Card] = []
    for part in filter(None, (part.strip() for part in visible.split(','))):
        numbers = re.fullmatch(r'(\d+)(?:-(\d+))?', part)
        if numbers:
            wanted = range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1)
            found += [card for number in wanted for card in cards if card.index == number]
        else:
            found += [card for card in cards if card.uuid and card.uuid.startswith(part)]
    return found[:nproc]


def examine(subject: Subject) -> List[Finding]:
    """Ask npu-smi or nvidia-smi; no findings on a CPU."""
    if subject.device == 'cpu':
        return [Finding('cards', OK, 'none is used, the training is on the CPU')]
    tool = {'npu': 'npu-smi', 'cuda': 'nvidia-smi'}[subject.device]
    try:
        listing = smi.ask(subject.device)
    except console.UserError as error:
        return [failure('cards', error)]
    if listing is None:
        fix = f'in a container, mount {tool} and its libraries to have health and busy memory checked'
        return [Finding('cards', WARNING, f'no {tool} on PATH, so the health of the cards is unknown', fix)]
    cards = chosen(listing.cards, subject.nproc, subject.env.get(VISIBLE[subject.device]))
    findings = _health(cards, tool) + _busy(cards, subject)
    if len(cards) < subject.nproc:
        found = f'{tool} lists {len(cards)} of the {subject.nproc} cards to use'
        findings.append(Finding('cards', WARNING, found, f'see {tool} and {VISIBLE[subject.device]}'))
    names = ', '.join(sorted({card.name for card in cards}))
    return findings or [Finding('cards', OK, f'{len(cards)} x {names}, healthy and free')]


def _health(cards: List[Card], tool: str) -> List[Finding]:
    findings = []
    for card in cards:
        if card.health == smi.OK:
            continue
        level = WARNING if card.health in _USABLE or card.health.endswith(smi.MEMORY_ERRORS) else FAILURE
        more = 'npu-smi info -t health -i NPU' if tool == 'npu-smi' else 'nvidia-smi -q'
        fix = f'see {more}; reset the card, or leave it out'
        findings.append(Finding(f'card {card.index}', level, f'health is {card.health}', fix))
    return findings


def _busy(cards: List[Card], subject: Subject) -> List[Finding]:
    busy = [card for card in cards if card.pids or card.used_mib > BUSY * card.total_mib > 0]
    if not busy:
        return []
    words = []
    for card in busy:
        pids = f' by process {", ".join(map(str, card.pids[:4]))}' if card.pids else ''
        words.append(f'card {card.index}: {card.used_mib} of {card.total_mib} MiB{pids}')
    shown = '; '.join(words[:4]) + (f' and {len(words) - 4} more' if len(words) > 4 else '')
    fix = f'end these processes, or choose other cards with {VISIBLE[subject.device]}'
    return [Finding('busy cards', WARNING, f'memory is in use: {shown}', fix)]

"""Parses the output of ``npu-smi`` and ``nvidia-smi`` on the cards of a machine. Standard library only."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

from recipe.core import console

TIMEOUT_S = 30  # the first call after boot loads the driver; a hung card never answers
OK = 'OK'
MEMORY_ERRORS = 'uncorrected memory errors'
GPU_QUERY = 'index,uuid,name,memory.used,memory.total,ecc.errors.uncorrected.volatile.total,driver_version'
_NPU = re.compile(r'\|\s*(\d+)\s+(\S+)\s*\|\s*(\w+)\s*\|')
_CHIP = re.compile(r'\|\s*(\d+)(?:\s+(\d+))?\s*\|\s*(?:[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f.]+|NA)\s*\|([^|]*)\|')
_MEMORY = re.compile(r'(\d+)\s*/\s*(\d+)')
_PROCESS = re.compile(r'\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|\s*([^|]*?)\s*\|\s*(\d+)\s*\|')


@dataclass(frozen=True)
class Card:
    """One card as a training sees it: a chip of an NPU, or a GPU.

    Attributes:
        index: Number of the card in the device's libraries, from 0.
        name: ``910B3``, ``NVIDIA H100``.
        health: ``OK``, or the state that the tool reports.
        used_mib, total_mib: Memory of the card in MiB; total 0 if the tool does not report it.
        uuid: Of a GPU.
        pids: Processes that hold memory on it, as far as the tool sees them.
    """

    index: int
    name: str
    health: str
    used_mib: int
    total_mib: int
    uuid: str = ''
    pids: Tuple[int, ...] = ()


@dataclass
class Listing:
    """All cards of a machine.

    Attributes:
        cards: Sorted by index.
        driver: Version of the driver, or of the tool that comes with it; None if it is not reported.
    """

    cards: List[Card] = field(default_factory=list)
    driver: Optional[str] = None


def parse_npu(text: str) -> Listing:
    """Parse the table of ``npu-smi info``.

    Each chip has two lines. The first holds NPU number, name and health. The second holds chip number, on some servers
    the
    chip's number in the whole machine (Phy-ID), bus address and memory. Below them are the processes by NPU and chip
    number.
    """
    rows: List[dict] = []
    pids: Dict[Tuple[int, int], List[int]] = {}
    upper: Optional[re.Match] = None
    for line in text.splitlines():
        process, chip = _PROCESS.match(line), _CHIP.match(line)
        if process and not upper:
            pids.setdefault((int(process[1]), int(process[2])), []).append(int(process[3]))
        elif chip and upper:
            # On cards with high-bandwidth memory this is the last figure; other cards have nothing after it.
            memory = [(int(used), int(total)) for used, total in _MEMORY.findall(chip[3]) if int(total)]
            used, total = memory[-1] if memory else (0, 0)
            where = int(upper[1]), int(chip[1])
            index = int(chip[2]) if chip[2] else len(rows)
            card = dict(index=index, name=upper[2], health=upper[3], used_mib=used, total_mib=total)
            rows.append({'where': where, 'card': card})
            upper = None
        else:
            upper = _NPU.match(line)
    cards = [Card(**row['card'], pids=tuple(pids.get(row['where'], ()))) for row in rows]
    version = re.search(r'Version:\s*(\S+)', text)
    return Listing(sorted(cards, key=lambda card: card.index), version[1] if version else None)


def parse_gpu(text: str, processes: str = '') -> Listing:
    """Parse ``nvidia-smi --query-gpu=GPU_QUERY`` and ``--query-compute-apps=gpu_uuid,pid`` in CSV without units."""
    pids: Dict[str, List[int]] = {}
    for line in processes.splitlines():
        uuid, _, pid = (part.strip() for part in line.partition(','))
        if pid.isdigit():
            pids.setdefault(uuid, []).append(int(pid))
    listing = Listing()
    for line in text.splitlines():
        values = [value.strip() for value in line.split(',')]
        if len(values) != GPU_QUERY.count(',') + 1 or not values[0].isdigit():
            continue
        index, uuid, name, used, total, errors, listing.driver = values
        broken = 'ERR' in line
        health = 'ERR!' if broken else f'{errors} {MEMORY_ERRORS}' if errors.isdigit() and int(errors) else OK
        used_mib, total_mib = (int(value) if value.isdigit() else 0 for value in (used, total))
        held_by = tuple(pids.get(uuid, ()))
        listing.cards.append(Card(int(index), name, health, used_mib, total_mib, uuid, held_by))
    return listing


def ask(device: str) -> Optional[Listing]:
    """Run the device's tool.

    Args:
        device: ``npu`` or ``cuda``.

    Returns:
        None if the tool is not installed, as in many containers.

    Raises:
        console.UserError: It fails, hangs, or prints something other than a table of cards.
    """
    tool = {'npu': 'npu-smi', 'cuda': 'nvidia-smi'}[device]
    if shutil.which(tool) is None:
        return None
    if device == 'npu':
        listing = parse_npu(_run(tool, 'info'))
    else:
        output = '--format=csv,noheader,nounits'
        processes = _run(tool, '--query-compute-apps=gpu_uuid,pid', output)
        listing = parse_gpu(_run(tool, f'--query-gpu={GPU_QUERY}', output), processes)
    if not listing.cards:
        raise console.UserError(f'{tool} lists no card', f'see what {tool} says, and whether the driver is loaded')
    return listing


def _run(*command: str) -> str:
    shown = ' '.join(command[:2])
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise console.UserError(f'{shown} did not answer within {TIMEOUT_S} s', 'reset the card that hangs') from None
    except OSError as error:
        raise console.UserError(
            f'{shown} cannot be run ({console.reason(error)})', 'install the driver of the cards again'
        ) from None
    text = done.stdout.decode('utf-8', 'replace')
    if done.returncode:
        said = next((line.strip() for line in text.splitlines() if line.strip()), 'and says nothing')
        raise console.UserError(
            f'{shown} fails with status {done.returncode}: {said}',
            'mend the driver, or restart the machine where a card is lost',
        )
    return text

"""What npu-smi and nvidia-smi print, made after their documentation and after reports in public issue threads."""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

_RULE = '+---------------------------+---------------+----------------------------------------------------+\n'
_BOLD = '+===========================+===============+====================================================+\n'
_WIDE = '+------------------------------------------------------------------------------------------------+\n'


def npu_smi(
    healths: Sequence[str] = ('OK',) * 8,
    used_mib: Sequence[int] = (3380,) * 8,
    processes: Sequence[Tuple[int, int, int]] = (),
    name: str = '910B3',
    chips: int = 1,
    version: str = '24.1.1',
) -> str:
    """``npu-smi info``.

    Args:
        healths: Of each chip.
        used_mib: Memory of each chip.
        processes: NPU, chip, process id.
        name: Of the chips.
        chips: Of each NPU; servers with two have a column more.
        version: Of the tool.
    """
    phy = chips > 1
    text = _WIDE + f'| npu-smi {version:<24} Version: {version:<54} |\n' + _RULE
    text += '| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|\n'
    text += f'| Chip  {"Phy-ID" if phy else "      "}              '
    text += '| Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |\n' + _BOLD
    for index, (health, used) in enumerate(zip(healths, used_mib)):
        npu, chip = divmod(index, chips)
        power = '97.5' if chip == 0 else '-'
        text += f'| {npu:<5} {name:<19} | {health:<13} | {power:<11} 41                0    / 0             |\n'
        text += f'| {chip:<5} {index if phy else "":<19} | 0000:{0xC1 + index:02X}:00.0  '
        text += f'| 0           0    / 0          {used:<5}/ 65536         |\n'
        text += _BOLD if chip == chips - 1 else _WIDE
    text += (
        _RULE + '| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |\n'
    )
    text += _BOLD
    for npu in range(len(healths) // chips):
        mine = [row for row in processes if row[0] == npu]
        for _, chip, pid in mine:
            text += f'| {npu:<7} {chip:<17} | {pid:<13} |                          | 50128                   |\n'
        if not mine:
            text += f'| {f"No running processes found in NPU {npu}":<94} |\n'
        text += _BOLD
    return text


def nvidia_smi(*cards: Dict[str, str]) -> str:
    """``nvidia-smi --query-gpu=...`` without header and units, a line a card.

    Args:
        cards: What differs from a good card.
    """
    lines = []
    for index, differs in enumerate(cards):
        good = {'used': '4', 'total': '81559', 'errors': '0'}
        good.update(differs)
        lines.append(
            f'{index}, GPU-{index}0000000-1111-2222-3333-444444444444, NVIDIA H100 80GB HBM3, '
            f'{good["used"]}, {good["total"]}, {good["errors"]}, 550.54.15\n'
        )
    return ''.join(lines)

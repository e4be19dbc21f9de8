"""Which accelerators this machine has, and how many ranks to start on them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Dict, Optional, Tuple

from recipe.core import console, imported_packages, network, openmp

DEFAULT_NPROC = 8
DEMO_NPROC_CPU = 2
# Environment variables that hide all accelerators from torch.
HIDDEN = {'CUDA_VISIBLE_DEVICES': '', 'ASCEND_RT_VISIBLE_DEVICES': ''}


def likely_device(asked: str) -> str:
    """The device that training will probably use, found without torch.

    Args:
        asked: Value of ``--device``.
    """
    if asked != 'auto':
        return asked
    if importlib.util.find_spec('torch_npu'):
        return 'npu'
    nvidia = ('/dev/nvidiactl', '/dev/nvidia0', '/dev/dxg')  # dxg: in Linux under Windows
    return 'cuda' if any(Path(node).exists() for node in nvidia) else 'cpu'


def find(asked: str) -> Tuple[str, int]:
    """The kind of device to train on, and how many of them torch sees.

    Args:
        asked: ``auto``, ``npu``, ``cuda`` or ``cpu``. ``cpu`` hides the accelerators from this process and its
            children; call it before anything imports torch.

    Returns:
        Kind of device and their number; for ``cpu`` the number of cores.

    Raises:
        console.UserError: There is no device of the kind that was asked for; says why.
    """
    if asked == 'cpu':
        os.environ.update(HIDDEN)
    _require_torch()
    if asked == 'cpu':
        return 'cpu', len(os.sched_getaffinity(0))
    counts = {'npu': _npus() if asked in ('auto', 'npu') else 0, 'cuda': _gpus()}
    if asked != 'auto':
        if not counts[asked]:
            why, fix = _why_none(asked)
            raise console.UserError(f'--device={asked}: {why}', f'{fix}, or give --device=auto')
        return asked, counts[asked]
    for device, count in counts.items():
        if count:
            return device, count
    return 'cpu', len(os.sched_getaffinity(0))


def _require_torch() -> None:
    """Check that torch can be imported; it reads variables such as TORCH_LOGS meanwhile, and raises many errors."""
    try:
        import torch.distributed  # noqa: F401  only to see whether it can be imported
    except Exception as error:
        raise console.UserError(
            f'torch cannot be imported: {type(error).__name__}: {" ".join(str(error).split())[:300]}',
            'see whether a variable of torch is wrong (env | grep TORCH), or run: bash tools/setup.sh',
        ) from None


def _npus() -> int:
    torch = imported_packages.load('torch')

    if importlib.util.find_spec('torch_npu') is None:
        return 0
    try:
        import torch_npu  # noqa: F401  adds torch.npu
    except Exception as error:  # a missing CANN library raises ImportError, OSError or RuntimeError
        raise console.UserError(
            f'torch_npu is installed and cannot be imported: {str(error).strip().splitlines()[0]}',
            "source CANN's set_env.sh, see python tools/doctor.py, or give --device=cpu",
        ) from None
    return torch.npu.device_count() if torch.npu.is_available() else 0


def _gpus() -> int:
    torch = imported_packages.load('torch')

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _why_none(device: str) -> Tuple[str, str]:
    """Why there is no card of a kind, and what to do."""
    import torch

    if device == 'npu' and importlib.util.find_spec('torch_npu') is None:
        return 'torch_npu is not installed', 'set up with: bash tools/setup.sh --stack=npu-2.1'
    if device == 'cuda' and torch.version.cuda is None:
        return 'the installed torch is built without CUDA', 'set up with: bash tools/setup.sh --stack=cuda'
    tool = {'npu': 'npu-smi info', 'cuda': 'nvidia-smi'}[device]
    return 'torch sees no card', f'see whether {tool} shows one'


def choose_nproc(device: str, count: int, asked: Optional[int], demo: bool) -> int:
    """Number of ranks to start on this machine.

    Args:
        device: From ``find``.
        count: From ``find``.
        asked: Value of ``--nproc``, None if it was not given.
        demo: Whether it is a demo, which uses as many cards as there are.

    Raises:
        console.UserError: There are fewer cards than ranks; says which number to give.
    """
    if device == 'cpu':
        if asked is None and not demo:
            raise console.UserError(
                f'no accelerator is used, and {DEFAULT_NPROC} cards is the default',
                'to train on this CPU give --nproc=1 (slow: minutes an iteration), or try --demo',
            )
        return asked or DEMO_NPROC_CPU
    wanted = asked or (min(count, DEFAULT_NPROC) if demo else DEFAULT_NPROC)
    if wanted > count:
        raise console.UserError(
            f'{"--nproc=" if asked else "the default of "}{wanted} cards, but this machine has {count} {device} '
            f'card{"s" if count > 1 else ""}',
            f'give --nproc={count}',
        )
    return wanted


def rank_environment(device: str, nproc: int, master_addr: str, several_machines: bool) -> Dict[str, str]:
    """Environment variables for the ranks, without those that the user has set, unless torch cannot bear them.

    Args:
        device: From ``find``.
        nproc: Ranks on this machine.
        master_addr: IPv4 address of rank 0's machine.
        several_machines: Whether other machines run ranks too.
    """
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // nproc)
    values = {'OMP_NUM_THREADS': str(threads)}
    interface = network.interface_towards(master_addr)
    if interface and (several_machines or device == 'cpu'):
        # HCCL and NCCL take the value as a prefix of names, unless it begins with an equals sign. gloo knows no sign.
        values['GLOO_SOCKET_IFNAME'] = interface
        values.setdefault(network.INTERFACE_VARIABLES[device], f'={interface}')
    values = {name: value for name, value in values.items() if name not in os.environ}
    if openmp.settled:  # a limit of the user's, not a number for each rank
        values['OMP_NUM_THREADS'] = str(min(openmp.settled, threads))
    if device == 'cpu' and os.environ.get('TORCH_DISTRIBUTED_DEBUG', '').upper() == 'DETAIL':
        console.warn('TORCH_DISTRIBUTED_DEBUG=DETAIL: torch crashes with it on a CPU (seen with 2.13); INFO is used')
        values['TORCH_DISTRIBUTED_DEBUG'] = 'INFO'
    return values

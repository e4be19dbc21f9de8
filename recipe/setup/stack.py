"""Which stack fits this machine, and which Python fits the stack. Standard library only, Python 3.8 on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from recipe.core import console, hardware

Version = Tuple[int, int]

# mmcv's largest file, pybind.cpp, took 2.14 GiB (g++ 12.2 -O3, torch 2.13); others take less.
COMPILER_BYTES = 5 << 29


@dataclass(frozen=True)
class Stack:
    """A set of packages that belong together.

    Attributes:
        name: Name of the requirements file.
        oldest: First Python version that it supports.
        newest: Last one; None if no limit is known.
        device_package: Import name of the package that a working device needs besides torch.
    """

    name: str
    oldest: Version
    newest: Optional[Version]
    device_package: Optional[str] = None

    def takes(self, version: Version) -> bool:
        """Whether the stack supports a Python version."""
        return self.oldest <= version and (self.newest is None or version <= self.newest)

    @property
    def pythons(self) -> str:
        """The supported versions in words: ``3.8 to 3.11``."""
        oldest = '.'.join(map(str, self.oldest))
        return f'{oldest} or newer' if self.newest is None else f'{oldest} to {".".join(map(str, self.newest))}'


STACKS = {
    stack.name: stack
    for stack in (
        Stack('npu-2.1', (3, 8), (3, 11), 'torch_npu'),
        Stack('npu-2.7', (3, 9), (3, 11), 'torch_npu'),
        Stack('npu-2.8', (3, 9), (3, 11), 'torch_npu'),
        Stack('cuda', (3, 9), None),
        Stack('cpu', (3, 9), None),
    )
}

# Tried in this order if `python3` itself does not fit. 3.11 is the newest that every stack supports.
CANDIDATES = ('python3', 'python3.11', 'python3.10', 'python3.9', 'python3.8', 'python3.12', 'python3.13', 'python3.14')

_PROBE = """
import importlib.util, json, sys
found = {'executable': sys.executable, 'version': list(sys.version_info[:3]), 'venv': sys.prefix != sys.base_prefix}
try:
    from importlib.metadata import version
    found['torch'] = version('torch')
except Exception:
    found['torch'] = None
names = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
found['missing'] = [name for name in names if importlib.util.find_spec(name) is None]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Python:
    """A Python interpreter.

    Attributes:
        path: Absolute path.
        version: Three numbers.
        torch: Version of the torch installed in it, None if there is none.
        missing: Packages of torch, mmengine, mmcv, mmdet and mmseg that it cannot find.
    """

    path: str
    version: Tuple[int, ...]
    torch: Optional[str]
    missing: Tuple[str, ...]

    @property
    def text(self) -> str:
        """The version as text: ``3.11.7``."""
        return '.'.join(map(str, self.version))

    @property
    def minor(self) -> Version:
        """The minor version: ``(3, 11)``."""
        return (self.version[0], self.version[1])


def probe(command: str) -> Optional[Python]:
    """Ask an interpreter for its path, version and packages.

    Args:
        command: Name on PATH or path.

    Returns:
        None if it does not run (such as a version manager's shim for a missing version) or is not Python 3.
    """
    path = shutil.which(command)
    if path is None:
        return None
    # -S would be faster, but hides the packages of a virtual environment; -I keeps PYTHONPATH and this folder out.
    try:
        done = subprocess.run(
            [path, '-I', '-c', _PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True
        )
        found = json.loads(done.stdout.decode())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Python(found['executable'], tuple(found['version']), found['torch'], tuple(found['missing']))


def find_python(stack: Stack, wanted: Optional[str] = None) -> Python:
    """Find the interpreter to build an environment with.

    Args:
        stack: Must support its version.
        wanted: The only interpreter to consider, if given.

    Raises:
        console.UserError: None fits; names the supported versions and the versions found.
    """
    found: List[str] = []
    for command in [wanted] if wanted else CANDIDATES:
        python = probe(command)
        if python is None:
            continue
        if stack.takes(python.minor):
            return python
        if f'{python.text} ({python.path})' not in found:
            found.append(f'{python.text} ({python.path})')
    if wanted and not found:
        raise console.UserError(f'--python {wanted} is not a Python 3 that runs', status=console.EXIT_USAGE)
    raise console.UserError(
        f'stack {stack.name} needs Python {stack.pythons}',
        f'found: {", ".join(found) or "none"}. Install one, then: '
        f'bash tools/setup.sh --stack {stack.name} --python /path/to/python3',
    )


def pick(python: Optional[Python], root: Path = Path('/')) -> Tuple[Stack, str]:
    """Choose the stack for this machine.

    Args:
        python: The interpreter that would be used. Its version and its torch decide between the NPU stacks.
        root: Root of the file system to look at.

    Returns:
        The stack and the reason, in words.
    """
    signs = hardware.ascend_signs(root)
    if signs:
        name, why = _npu(python)
        shown = f'{signs[0]} and {len(signs) - 1} more' if len(signs) > 1 else signs[0]
        return STACKS[name], f'Ascend NPU ({shown}); {why}'
    cuda = hardware.driver_cuda()
    if cuda is not None:
        return STACKS['cuda'], f'NVIDIA GPU (nvidia-smi; the driver runs CUDA {cuda[0]}.{cuda[1]})'
    return STACKS['cpu'], 'neither an Ascend NPU (npu-smi, /dev/davinci*) nor an NVIDIA GPU (nvidia-smi)'


def _npu(python: Optional[Python]) -> Tuple[str, str]:
    installed = re.match(r'(\d+)\.(\d+)', python.torch) if python and python.torch else None
    if python and installed:
        version = (int(installed.group(1)), int(installed.group(2)))
        name = {(2, 1): 'npu-2.1', (2, 6): 'npu-2.7', (2, 7): 'npu-2.7', (2, 8): 'npu-2.8'}.get(version)
        if name:
            return name, f'torch {python.torch} is installed'
    return 'npu-2.1', 'the reference stack'


def compile_jobs(asked: Optional[str] = None, root: Path = Path('/')) -> Tuple[int, str]:
    """How many compilers to run at a time.

    Args:
        asked: MAX_JOBS of the shell.
        root: Root of the file system to look at.

    Returns:
        The number and the reason, in words.

    Raises:
        console.UserError: ``asked`` is no number.
    """
    if asked:
        if not re.fullmatch(r'[1-9][0-9]{0,5}', asked):
            raise console.UserError(f'MAX_JOBS={asked} is no number of compilers', 'unset it, or give a whole number')
        return int(asked), 'as this shell has it'
    cores, free = hardware.cores(root), hardware.free_memory_bytes(root)
    if free is None:
        return cores, f'{cores} cores; the free memory is not known'
    return (
        max(1, min(cores, free // COMPILER_BYTES)),
        f'{cores} cores, {free / 2**30:.1f} GiB of free memory, {COMPILER_BYTES / 2**30:g} GiB for each compiler',
    )


def constraints(stack: Stack) -> Dict[str, str]:
    """Constraints of this machine beyond the stack's requirements file.

    Returns:
        Reason, in words, by constraint.
    """
    cuda = hardware.driver_cuda() if stack.name == 'cuda' else None
    if cuda is not None and cuda < (13, 0):
        return {'torch<2.11': f'the driver runs CUDA {cuda[0]}.{cuda[1]}; from 2.11 on torch brings CUDA 13'}
    return {}

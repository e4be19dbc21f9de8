"""Checks the compilers that torch.compile calls during a training in graphs."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any, List, Tuple

from recipe.doctor.finding import FAILURE, OK, Finding
from recipe.doctor.subject import Subject

# By device: the variable that names a compiler, and the defaults. On a CPU inductor writes C++; on a GPU Triton
# compiles its kernel launcher in C.
COMPILERS = {'cpu': ('CXX', ('g++',)), 'cuda': ('CC', ('gcc', 'clang'))}
_WITHOUT = 'or train without --compile=1'


def examine(subject: Subject) -> List[Finding]:
    """Look for the compilers; no findings if inductor compiles no graphs of the training."""
    if subject.device not in COMPILERS or not _has_inductor(subject.config):
        return []
    variable, names = COMPILERS[subject.device]
    command, found = _command(subject, variable, names)
    if not found:
        missing = f'{variable}={command} is no program' if command else f'there is no {" or ".join(names)}'
        fix = f'install {names[0]} (Debian: apt-get install {names[0]}) or set {variable}, {_WITHOUT}'
        return [Finding('compiler', FAILURE, f'torch.compile needs one, and {missing}', fix)]
    if subject.device == 'cuda' and importlib.util.find_spec('triton') is None:
        fix = f'install the triton that belongs to this torch (pip install triton), {_WITHOUT}'
        return [Finding('compiler', FAILURE, 'torch.compile needs the package triton, which is not installed', fix)]
    return [Finding('compiler', OK, found)]


def _command(subject: Subject, variable: str, names: Tuple[str, ...]) -> Tuple[str, str]:
    """The requested compiler and the path of the program that would run; the path is empty if there is none."""
    path, asked = subject.env.get('PATH'), subject.env.get(variable, '').strip()
    for name in (asked, *asked.split()[:1]) if asked else names:  # a program, or one with arguments
        found = shutil.which(name, path=path)
        if found:
            return asked, found
    return asked, ''


def _has_inductor(config: Any) -> bool:
    hooks = (config or {}).get('custom_hooks') or []
    return any(hook.get('type') == 'CompileHook' and hook.get('backend', 'inductor') == 'inductor' for hook in hooks)

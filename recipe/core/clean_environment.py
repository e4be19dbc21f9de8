"""Environment variables for programs that install something or train, without those that other programs set for theirs.

A shell may carry settings of other projects (PYTHONPATH, PIP_TARGET, VIRTUAL_ENV) or of a caller (git's hooks,
PIP_DRY_RUN). With them, pip may believe that missing packages are installed, or install elsewhere. The user's settings
of package sources are kept. Standard library only, Python 3.8 on.
"""

from __future__ import annotations

import ast
import functools
import os
import subprocess
from typing import Dict, List, Tuple

from recipe.core import console

# Python's own variables that change neither what is imported nor how it runs.
_KEPT_PYTHON = ('PYTHONPYCACHEPREFIX', 'PYTHONUTF8', 'PYTHONUNBUFFERED')
# Location of packages that are installed without a virtual environment; needed also when they are used.
_USER_SITE = ('PYTHONUSERBASE', 'PYTHONNOUSERSITE')

_DROPPED_PREFIXES = ('PYTHON', 'PIP_', 'CONDA_', 'SETUPTOOLS_', 'DISTUTILS_')
_DROPPED = (
    '__PYVENV_LAUNCHER__',
    'VIRTUAL_ENV',
    'MPLBACKEND',  # a notebook's value, which matplotlib refuses elsewhere
    'MMCV_WITH_OPS',  # the set-up's own options decide what is built
    'FORCE_CUDA',
    'FORCE_MLU',
    'FORCE_MPS',
    'FORCE_NPU',
)

_READ_BY_TORCHRUN = ('PET_', 'TORCHELASTIC_')
_SET_BY_TORCHRUN = (
    *('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'GROUP_RANK', 'GROUP_WORLD_SIZE', 'ROLE_NAME'),
    *('ROLE_RANK', 'ROLE_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
)

# pip's options for package sources, and for how it fetches and caches packages.
_PIP_SOURCES = (
    'break-system-packages',
    'build-constraint',
    'cache-dir',
    'cert',
    'client-cert',
    'constraint',
    'default-timeout',
    'extra-index-url',
    'find-links',
    'index-url',
    'keyring-provider',
    'log',
    'no-cache-dir',
    'no-index',
    'no-proxy-env',
    'pypi-url',
    'proxy',
    'resume-retries',
    'retries',
    'timeout',
    'trusted-host',
    'uploaded-prior-to',
    'use-feature',
)


def clean(user_site: bool = False) -> Dict[str, str]:
    """This process's variables without those that change what Python, pip or a build does.

    Args:
        user_site: Keep the variables that locate the user's own site-packages.
    """
    kept = (*_KEPT_PYTHON, *(_USER_SITE if user_site else ()))
    return {
        key: value
        for key, value in os.environ.items()
        if (key in kept and (key != 'PYTHONUTF8' or value in ('0', '1')))  # Python ends if it is anything else
        or not (key in _DROPPED or key.startswith(_DROPPED_PREFIXES))
    }


def for_ranks() -> Dict[str, str]:
    """This process's variables without those that torchrun reads or sets.

    Kubeflow sets each of torchrun's options as ``PET_<NAME>``. An outer torchrun sets its own variables. The options on
    the command line decide here.
    """
    return {
        key: value
        for key, value in os.environ.items()
        if key not in _SET_BY_TORCHRUN and not key.startswith(_READ_BY_TORCHRUN)
    }


def for_pip(python: str, command: str, user_site: bool = False) -> Dict[str, str]:
    """Environment variables for pip. It reads no configuration file; the files' settings of sources are passed on.

    Args:
        python: Interpreter that runs pip.
        command: pip's command; its section of a configuration file counts besides ``[global]``.
        user_site: As for ``clean``.

    Raises:
        console.UserError: pip cannot read its configuration.
    """
    settings: Dict[str, str] = {}
    for section in ('global', command):
        settings.update({key: value for where, key, value in _configured(python) if where == section})
    settings.update({_plain(key[4:]): value for key, value in os.environ.items() if key.startswith('PIP_') and value})
    env = clean(user_site)
    env.update({f'PIP_{key.upper().replace("-", "_")}': settings[key] for key in _PIP_SOURCES if key in settings})
    env['PIP_CONFIG_FILE'] = os.devnull
    return env


def _plain(name: str) -> str:
    return name.lower().replace('_', '-')


@functools.lru_cache(maxsize=None)
def _configured(python: str) -> List[Tuple[str, str, str]]:
    """Section, option and value of every entry in pip's configuration files."""
    given = os.environ.get('PIP_CONFIG_FILE')
    if given == os.devnull:
        return []
    env = clean()
    # The files may name another interpreter, or silence pip.
    env.update(PIP_PYTHON=python, PIP_QUIET='0', PIP_REQUIRE_VIRTUALENV='0')
    if given:
        env['PIP_CONFIG_FILE'] = given
    done = subprocess.run(
        [python, '-m', 'pip', 'config', 'list'],
        cwd='/',  # Python searches the current folder first
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise console.UserError(f'{python} -m pip config list fails: {done.stderr}', 'mend it, then try again')
    found = []
    for line in done.stdout.splitlines():
        name, separator, value = line.partition('=')
        section, _, key = name.partition('.')
        if separator and section != ':env:':
            found.append((section, _plain(key), ast.literal_eval(value)))
    return found

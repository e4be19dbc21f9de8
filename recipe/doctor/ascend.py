"""Versions of the Ascend software that is not a Python package: CANN and the driver. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Mapping, Optional, Tuple

_DEFAULT_HOMES = ('/usr/local/Ascend/ascend-toolkit/latest', '/usr/local/Ascend/cann', '/usr/local/Ascend/latest')
_INSTALL_INFO = 'ascend_toolkit_install.info'
_DRIVER_INFO = 'usr/local/Ascend/driver/version.info'


def cann(root: Path, env: Mapping[str, str]) -> Optional[Tuple[str, str]]:
    """CANN's version and its folder, None where none is installed.

    Args:
        root: Of the file system to look at.
        env: Environment; what CANN's set_env.sh has set comes before the usual places.
    """
    named = [env[name] for name in ('ASCEND_TOOLKIT_HOME', 'ASCEND_HOME_PATH') if env.get(name)]
    for home in (*named, *_DEFAULT_HOMES):
        folder = root / home.lstrip('/')
        # One folder for each architecture that is installed; a user runs one.
        for info in [folder / _INSTALL_INFO, *sorted(folder.glob(f'*-linux/{_INSTALL_INFO}'))]:
            version = _line(info, 'version')
            if version:
                return version, home
    return None


def driver(root: Path) -> Optional[str]:
    """The driver's version, None where none is installed or, as in a container, its note is not mounted."""
    return _line(root / _DRIVER_INFO, 'version')


def _line(path: Path, key: str) -> Optional[str]:
    """Value of a ``key=value`` line, whatever the key's case."""
    try:
        text = path.read_text(encoding='utf-8', errors='replace')
    except OSError:
        return None
    found = re.search(rf'^\s*{key}\s*=\s*(\S+)', text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else None


def order(version: str) -> List[Tuple[int, int]]:
    """Something to compare versions by: ``24.1.RC3`` < ``24.1.0`` < ``25.0.RC1``; a release is after its candidates."""
    return [
        (-1, int(part[2:] or 0)) if part.startswith('rc') else (int(part), 0)
        for part in re.findall(r'\d+|rc\d*', version.lower())
    ]

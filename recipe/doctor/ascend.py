"""Versions of the Ascend software outside Python: CANN and the driver. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Mapping, Optional, Tuple

# The toolkit, or nnae, its part that runs models.
_HOMES = ('ascend-toolkit/latest', 'cann', 'latest', 'nnae/latest')
_INSTALL_INFOS = ('ascend_toolkit_install.info', 'ascend_nnae_install.info')
_INSTALLER_NOTE = 'etc/Ascend/ascend_cann_install.info'
_DRIVER_INFO = 'usr/local/Ascend/driver/version.info'


def cann(root: Path, env: Mapping[str, str]) -> Optional[Tuple[str, str]]:
    """CANN's version and its folder; None if it is not installed.

    Args:
        root: Root of the file system to look at.
        env: Environment variables; those set by CANN's set_env.sh take precedence over the usual folders.
    """
    named = [env[name] for name in ('ASCEND_TOOLKIT_HOME', 'ASCEND_HOME_PATH') if env.get(name)]
    places = filter(None, (_line(root / _INSTALLER_NOTE, r'Install_Path\w*'), '/usr/local/Ascend'))
    for home in (*named, *(f'{place}/{name}' for place in places for name in _HOMES)):
        folder = root / home.lstrip('/')
        # There is one folder for each installed architecture; a user runs one of them.
        infos = [info for name in _INSTALL_INFOS for info in (folder / name, *sorted(folder.glob(f'*-linux/{name}')))]
        for info in infos:
            version = _line(info, 'version')
            if version:
                return version, home
    return None


def driver(root: Path) -> Optional[str]:
    """The driver's version; None if it is not installed or, as in a container, its version file is not mounted."""
    return _line(root / _DRIVER_INFO, 'version')


def _line(path: Path, key: str) -> Optional[str]:
    """Value of a ``key=value`` line, whatever the key's case; the key is a regular expression."""
    try:
        text = path.read_text(encoding='utf-8', errors='replace')
    except OSError:
        return None
    found = re.search(rf'^\s*{key}\s*=\s*(\S+)', text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else None


def order(version: str) -> List[Tuple[int, int]]:
    """A sort key for versions: ``24.1.RC3`` < ``24.1.0`` < ``25.0.RC1``; a release is after its candidates."""
    return [
        (-1, int(part[2:] or 0)) if part.startswith('rc') else (int(part), 0)
        for part in re.findall(r'\d+|rc\d*', version.lower())
    ]

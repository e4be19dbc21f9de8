"""The pin table ``upstream.json``: the sources that the patches belong to, and where to get them.

Standard library only, Python 3.8 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Tuple

from recipe.core import console, json_files

TABLE = 'upstream.json'


@dataclass(frozen=True)
class Sdist:
    """A source distribution that holds the same sources as the commit."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The requirement for pip: ``name==version``."""
        return f'{self.name}=={self.version}'


@dataclass(frozen=True)
class Pin:
    """One upstream.

    Attributes:
        name: Name of the checkout's folder.
        url: Git repository.
        commit: 40-hex commit that the patch was made on.
        patch: Patch file, relative to the root.
        package: Import package.
        sdist: The same sources as a source distribution.
        also_applies_to: More (url, commit) pairs that the patch applies to unchanged.
    """

    name: str
    url: str
    commit: str
    patch: str
    package: str
    sdist: Sdist
    also_applies_to: Tuple[Tuple[str, str], ...]

    @property
    def sources(self) -> Tuple[str, ...]:
        """Valid origins of a checkout: commits of the pinned repository, or the distribution's hash."""
        return (self.commit, *(commit for _, commit in self.also_applies_to), self.sdist.sha256)


def _hex(value: str, digits: int, where: str) -> str:
    if not re.fullmatch(f'[0-9a-f]{{{digits}}}', value):
        raise ValueError(f'{where} is {value!r}, not {digits} hexadecimal digits')
    return value


def _pin(name: str, row: Dict[str, Any]) -> Pin:
    sdist = row['sdist']
    return Pin(
        name=name,
        url=row['url'],
        commit=_hex(row['commit'], 40, f'{name}: commit'),
        patch=row['patch'],
        package=row['package'],
        sdist=Sdist(sdist['name'], sdist['version'], _hex(sdist['sha256'], 64, f'{name}: sdist.sha256')),
        also_applies_to=tuple(
            (other['url'], _hex(other['commit'], 40, f'{name}: also_applies_to'))
            for other in row.get('also_applies_to', [])
        ),
    )


def load(root: Path) -> Dict[str, Pin]:
    """Read the pin table.

    Args:
        root: Folder that holds ``upstream.json``.

    Returns:
        The pins by name, in the table's order (the order of installation).

    Raises:
        console.UserError: The table is missing or wrong; names the entry.
    """
    path = root / TABLE
    try:
        return {name: _pin(name, row) for name, row in json_files.read(path, dict).items()}
    except FileNotFoundError:
        raise console.UserError(f'{path} is missing', '--root must be the folder of the recipe') from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f'{error} is missing' if isinstance(error, KeyError) else error
        raise console.UserError(f'{path} is not a pin table: {said}') from None

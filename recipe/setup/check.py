"""Prints, as JSON, what is missing or damaged in an environment.

    .venv/bin/python recipe check '{"requirements": [FILE], "no_deps": [FILE], "packages": {NAME: FOLDER}}'

Run by the environment's own Python. Standard library and pip's copy of packaging, Python 3.8 on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple


def _plain(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def _distributions() -> Dict[str, metadata.Distribution]:
    """Installed distributions by name. If there are two of a name, the one that Python finds first."""
    found: Dict[str, metadata.Distribution] = {}
    for one in metadata.distributions():
        # A half-removed distribution has no name and no version.
        if one.metadata['Name'] and one.metadata['Version']:
            found.setdefault(_plain(one.metadata['Name']), one)
    return found


def _lines(file: str) -> Iterator[str]:
    """The requirements in a file. Included files are not followed: the caller lists them too."""
    for line in Path(file).read_text('utf-8').splitlines():
        text = re.sub(r'(^|\s)#.*', '', line).strip()
        if text and not text.startswith('-'):
            yield text


class Check:
    """Compares required with installed packages.

    Attributes:
        missing: Requirements that are not met, such as ``torch==2.1.0 (2.0.1 is installed)``.
        damaged: Required distributions with a file that is gone or empty: that file by ``name==version``.
    """

    def __init__(self) -> None:
        self.missing: List[str] = []
        self.damaged: Dict[str, str] = {}
        self._installed = _distributions()
        self._seen: Set[Tuple[str, str]] = set()

    def require(self, files: List[str], follow: bool) -> None:
        """Look for the packages that requirements files name.

        Args:
            files: Requirements files.
            follow: Also look for what the required packages require.
        """
        from pip._vendor.packaging.requirements import InvalidRequirement, Requirement

        waiting: List[Tuple[str, str]] = [(line, '') for file in files for line in _lines(file)]
        while waiting:
            text, extra = waiting.pop(0)
            if (text, extra) in self._seen:
                continue
            self._seen.add((text, extra))
            try:
                requirement = Requirement(text)
            except InvalidRequirement:  # of an old package; pip skips it too
                continue
            if requirement.marker and not requirement.marker.evaluate({'extra': extra}):
                continue
            found = self._installed.get(_plain(requirement.name))
            if found is None:
                self.missing.append(f'{requirement} (not installed)')
                continue
            if not requirement.specifier.contains(found.version, prereleases=True):
                self.missing.append(f'{requirement} ({found.version} is installed)')
            self._look_at_files(found)
            if follow:
                waiting += [(needed, one) for needed in found.requires or [] for one in ('', *requirement.extras)]

    def _look_at_files(self, found: metadata.Distribution) -> None:
        name = f'{found.metadata["Name"]}=={found.version}'
        # Without a RECORD (packages of the operating system) the files are unknown.
        if name in self.damaged or not found.read_text('RECORD'):
            return
        for file in found.files or []:
            try:
                whole = Path(str(found.locate_file(file))).stat().st_size > 0 or not file.size
            except OSError:
                whole = False
            # A file that was edited is accepted; compiled files come and go.
            if not whole and file.suffix != '.pyc':
                self.damaged[name] = str(file)
                return


def misplaced(packages: Dict[str, str]) -> List[str]:
    """Packages that are not imported from the folder where they should be."""
    wrong = []
    for name, folder in packages.items():
        found = None
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(name)
        origin = found.origin if found else None
        if origin is None or Path(folder).resolve() not in Path(origin).resolve().parents:
            wrong.append(f'{name} ({origin or "not installed"})')
    return wrong


def main() -> None:
    """Print what is missing or damaged; see the module's docstring."""
    asked = json.loads(sys.argv[1])
    # Search neither the folder of this file nor the folder in which Python was started.
    sys.path[:] = [place for place in sys.path[1:] if place]
    check = Check()
    try:
        check.require(asked['requirements'], follow=True)
        check.require(asked['no_deps'], follow=False)
    except ImportError:
        check.missing.append('pip (not installed)')
    folders = sorted({sysconfig.get_path('purelib'), sysconfig.get_path('platlib')})
    found = {'missing': check.missing, 'damaged': check.damaged, 'misplaced': misplaced(asked['packages'])}
    print(json.dumps({**found, 'folders': folders}))

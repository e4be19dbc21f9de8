"""Finds the pictures and videos that a user names, and names what is made of each."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Sequence, Tuple

from recipe.core import console, inputs
from recipe.predict import picture

_PICTURE = re.compile(r'\.(bmp|gif|jfif|jp2|jpe?g|p[bgnp]m|png|tiff?|webp)', re.IGNORECASE)
_VIDEO = re.compile(r'\.(3gp|avi|flv|m2ts|m4v|mjpeg|mkv|mov|mp4|mpe?g|mts|ogv|ts|vob|webm|wmv|y4m)', re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A file to predict.

    Attributes:
        path: The file, absolute.
        name: Beginning of the names of what is made of it, relative to the output folder; no other source has it.
        is_video: Whether it is a video: by its suffix, or because it has another one and is no picture.
    """

    path: Path
    name: str
    is_video: bool


def find(given: Sequence[str], listed: Iterable[str], out: Path) -> List[Source]:
    """Find the files that a user names.

    The name of a source is the file's path without its suffix, below the folder that the user named, or below the part
    of a pattern that is plain. If two would have the same name, all names are below the folder that all files have in
    common, and a suffix that tells two files apart stays. A file that is named twice counts once.

    Args:
        given: Files, folders (with all below them), patterns such as ``'frames/*.png'``, or ``-`` for ``listed``.
        listed: Lines that name files, folders or patterns.
        out: The output folder; what is in it is no source, unless it is named itself.

    Returns:
        The files in the given order, those of a folder sorted.

    Raises:
        console.UserError: There is no file at all, or a folder or pattern stands for none. A file that is not there
            beside others is unreadable, as a damaged one is.
    """
    names = [name for one in given for name in (_lines(listed) if one == '-' else [one])]
    if not names:
        raise console.UserError('input: no file is named on the standard input', 'write one on each line')
    roots: Dict[Path, Path] = {}
    for name in names:
        root, paths = _files(name, out)
        for path in paths:
            roots.setdefault(path, root)
    if not any(path.is_file() for path in roots):
        raise console.UserError(f'input: there is no file {next(iter(roots))}', 'check the path')
    return _named(roots)


def _lines(listed: Iterable[str]) -> Iterator[str]:
    return (line for line in (line.rstrip('\r\n') for line in listed) if line.strip())


def _files(name: str, out: Path) -> Tuple[Path, List[Path]]:
    """The files that a name stands for, and the folder below which their own names begin."""
    path = inputs.absolute(name)
    if path.is_dir():
        found = _below(path, out)
        if not found:
            raise console.UserError(f'input: {path} holds no pictures and no videos', 'name the files themselves')
        return path, found
    if os.path.lexists(path) or not glob.has_magic(name):
        return path.parent, [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  Path.glob takes no absolute pattern
    found = [file for match in matches for file in (_below(match, out) if match.is_dir() else [match])]
    found = [file for file in found if out not in file.parents]
    if not found:
        raise console.UserError(f'input: no file fits {name}', 'check the pattern')
    return next(part for part in path.parents if not glob.has_magic(str(part))), found


def _below(folder: Path, out: Path) -> List[Path]:
    """Pictures and videos below a folder, without what is in the output folder and without hidden files."""
    found = []
    for place, folders, names in os.walk(str(folder)):
        here = Path(place)
        folders[:] = sorted(one for one in folders if not one.startswith('.') and here / one != out)
        found += [here / one for one in sorted(names) if not one.startswith('.') and _is_known(here / one)]
    return found if folder != out else []


def _is_known(path: Path) -> bool:
    return any(kind.fullmatch(path.suffix) for kind in (_PICTURE, _VIDEO))


def _is_video(path: Path) -> bool:
    if _VIDEO.fullmatch(path.suffix) or _PICTURE.fullmatch(path.suffix):
        return not _PICTURE.fullmatch(path.suffix)
    return path.is_file() and not picture.is_known(path) and importlib.util.find_spec('av') is not None


def _named(roots: Dict[Path, Path]) -> List[Source]:
    """Name files, each below its folder, or all below one folder if that is ambiguous."""
    whole = [path.relative_to(root) for path, root in roots.items()]
    if len(set(whole)) < len(whole):
        common = os.path.commonpath([path.parent for path in roots])
        whole = [path.relative_to(common) for path in roots]
    taken = Counter([*whole, *(name.with_suffix('') for name in whole)])
    sources = []
    for path, name in zip(roots, whole):
        brief = name.with_suffix('')
        is_unique = taken[brief] == 1 + (brief == name)  # a name without a suffix counts twice
        sources.append(Source(path, (brief if is_unique else name).as_posix(), _is_video(path)))
    return sources

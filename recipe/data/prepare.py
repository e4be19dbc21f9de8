"""Makes a Cityscapes root ready for training: unpacks the official zips, then makes labelTrainIds from the polygons."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import shutil
import stat
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Dict, List, Optional

from recipe.core import console, files, json_files
from recipe.data import layout, parallel

_LONGEST_SIDE = 1 << 15  # pixels; of a label
# No official archive comes near this limit: pictures hardly shrink in a zip, polygons to a tenth.
_MOST_GROWTH = 100
_SMALL_BYTES = 64 << 20  # what unpacks to less is harmless
DOWNLOAD = 'https://www.cityscapes-dataset.com/downloads/'


@dataclasses.dataclass(frozen=True)
class Converted:
    """Result of converting one polygon file.

    Args:
        path: The polygon file.
        fault: One line that says what is wrong with it; None if its label was made.
    """

    path: str
    fault: Optional[str] = None


def prepare(
    root: Path, zips: Optional[Path] = None, workers: Optional[int] = None, force: bool = False, progress: bool = True
) -> int:
    """Unpack what is still packed and make every missing ``*_gtFine_labelTrainIds.png``.

    May be killed at any time and started again: complete files are kept, half-written ones are made anew.

    Args:
        root: The data set's root; holds leftImg8bit/ and gtFine/ afterwards.
        zips: Folder of the official zips; by default the root itself.
        workers: Processes; by default one per core.
        force: Whether to remake labels that exist.
        progress: Whether to show progress on stdout.

    Returns:
        How many labels were made.

    Raises:
        console.UserError: No such folder, nothing to prepare, or a damaged zip or polygon file.
    """
    if not root.is_dir() and zips is None:
        raise console.UserError(
            f'no such folder: {root}',
            'give --data_path the folder that holds leftImg8bit/ and gtFine/, or the official zips',
        )
    unpack(root, zips, progress)
    labels = root / layout.LABELS
    if not labels.is_dir():
        raise console.UserError(
            f'no {layout.LABELS}/ and no {layout.ZIPS[layout.LABELS]} in {zips or root}',
            f'download it from {DOWNLOAD} (an account is needed) and run prepare again',
        )
    files.sweep(labels)
    passed_over = layout.passed_over(root)
    if passed_over:
        console.say(passed_over)
    polygons = sorted(layout.stems(labels, layout.POLYGON_SUFFIX).values())
    if not polygons:
        made = layout.stems(labels, layout.TRAIN_IDS_SUFFIX)
        if made:  # somebody's own set
            console.say(f'labels: {len(made)} are there already, and no polygons to make any from')
            return 0
        raise console.UserError(
            f'no *{layout.POLYGON_SUFFIX} below {labels}', f'unpack {layout.ZIPS[layout.LABELS]} again'
        )
    waiting = [path for path in polygons if force or not _size(label_of(path))]
    if len(waiting) < len(polygons):
        console.say(f'labels: {len(polygons) - len(waiting)} of {len(polygons)} are there already')
    results = parallel.run(convert, waiting, 'labels', workers, progress)
    faults = [result for result in results if result.fault]
    for result in faults:
        console.say(f'{result.path}: {result.fault}')
    if faults:
        raise console.UserError(
            f'{len(faults)} of {len(waiting)} polygon files could not be converted, first: '
            f'{faults[0].path}: {faults[0].fault}',
            f'unpack {layout.ZIPS[layout.LABELS]} again for these',
        )
    return len(waiting)


def label_of(polygons: str) -> str:
    """Return the path of the labelTrainIds picture that belongs to a polygon file."""
    return polygons[: -len(layout.POLYGON_SUFFIX)] + layout.TRAIN_IDS_SUFFIX


def convert(polygons: str) -> Converted:
    """Make one labelTrainIds picture with cityscapesscripts' own converter.

    Args:
        polygons: Path of a ``*_gtFine_polygons.json``.
    """
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    said = io.StringIO()
    try:
        _check_polygons(Path(polygons))
        # The converter prints its usage and exits at a label that it does not know.
        with contextlib.redirect_stdout(said), files.whole(Path(label_of(polygons))) as partial:
            json2labelImg(polygons, str(partial), 'trainIds')
    except SystemExit:
        reason = next((line for line in said.getvalue().splitlines() if line.startswith('ERROR: ')), 'ERROR: refused')
        return Converted(polygons, reason[len('ERROR: ') :])
    except OSError as error:
        if error.errno is not None:  # disk full, no permission: the same for every file
            raise console.UserError(f'cannot write {label_of(polygons)}: {console.reason(error)}') from None
        return Converted(polygons, f'not convertible ({error})')
    except json_files.JsonError as error:
        return Converted(polygons, f'not a whole polygon file ({error})')
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        return Converted(polygons, f'not a whole polygon file ({type(error).__name__}: {error})')
    return Converted(polygons)


def _check_polygons(path: Path) -> None:
    """Check a polygon file as far as the converter relies on it; it knows the labels itself.

    Raises:
        json_files.JsonError: It is damaged.
    """
    annotation = json_files.read(path, dict)
    for side in ('imgWidth', 'imgHeight'):
        if side not in annotation:
            raise json_files.JsonError(f'{side} is missing')
        json_files.whole_number(annotation[side], 1, _LONGEST_SIDE)


def unpack(root: Path, zips: Optional[Path] = None, progress: bool = True) -> None:
    """Unpack the official zips for the folders that need it.

    Args:
        root: Folder that receives leftImg8bit/ and gtFine/.
        zips: Folder of the zips; by default the root. If given, both parts must be there, packed or unpacked.
        progress: Whether to print each step.

    Raises:
        console.UserError: A zip is missing or damaged, holds unsafe names, or the disk is too small.
    """
    if zips is not None and not zips.is_dir():
        raise console.UserError(
            f'no such folder: {zips}', f'give --zips the folder that holds {layout.ZIPS[layout.IMAGES]}'
        )
    for part, name in layout.ZIPS.items():
        path = (zips or root) / name
        if path.is_dir():
            raise console.UserError(
                f'{path} is a folder, not a zip', f'put the zip there, or move its {part}/ to {root}'
            )
        if path.is_symlink() and not path.exists():
            raise console.UserError(f'{path} is a broken symbolic link', 'mend the link')
        if path.is_file():
            _unpack_one(path, root, part, progress)
        elif zips is not None and not (root / part).is_dir():
            raise console.UserError(f'no {name} in {zips}', f'download it from {DOWNLOAD} (an account is needed)')


def _unpack_one(path: Path, root: Path, part: str, progress: bool) -> None:
    broken = f'{path} is damaged or not downloaded to its end; download it again from {DOWNLOAD}'
    try:
        with zipfile.ZipFile(str(path)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _check_member(path, member)
            _check_names(path, members)
            _check_growth(path, members)
            members = [member for member in members if PurePosixPath(member.filename).parts[0] == part]
            count = len(members)
            members = [member for member in members if not layout.is_hidden(PurePosixPath(member.filename).name)]
            if len(members) < count:
                console.say(f'{path}: passed over {count - len(members)} files whose names begin with a dot')
            if not members:
                raise console.UserError(
                    f'{path} holds no {part}/: it is another archive', f'download {path.name} again'
                )
            files.sweep(root / part)
            waiting = [member for member in members if _size(str(root / member.filename)) != member.file_size]
            if not waiting:
                return
            _check_space(root, sum(member.file_size for member in waiting))
            extract = functools.partial(_extract, archive, root)
            parallel.run(extract, waiting, f'unpacking {path.name}', workers=1, progress=progress)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise console.UserError(f'{broken} ({error})') from None
    except (NotImplementedError, RuntimeError) as error:  # a compression or an encryption that zipfile does not support
        raise console.UserError(f'{path}: {error}', f'download it again from {DOWNLOAD}') from None
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise console.UserError(f'cannot unpack {path} into {root}: {console.reason(error)}') from None


def _extract(archive: zipfile.ZipFile, root: Path, member: zipfile.ZipInfo) -> None:
    target = root / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    # Reading a member to its end checks its checksum.
    with files.whole(target) as partial, archive.open(member) as source, open(partial, 'wb') as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _refusal(path: Path, what: str) -> console.UserError:
    return console.UserError(f'{path} {what}: not an official archive', f'download it again from {DOWNLOAD}')


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse a member that no official archive has, such as one that would be written outside of its folder."""
    parts = PurePosixPath(member.filename).parts
    kind = stat.S_IFMT(member.external_attr >> 16)
    unsafe = not parts or '..' in parts or member.filename.startswith('/') or '\\' in member.filename or ':' in parts[0]
    if unsafe or kind == stat.S_IFLNK:
        raise _refusal(path, f'holds the member {member.filename!r}, which points outside the data set')
    if kind not in (0, stat.S_IFREG):
        raise _refusal(path, f'holds the member {member.filename!r}, which is no regular file')
    if member.flag_bits & 1:
        raise _refusal(path, f'holds the member {member.filename!r}, which is encrypted')
    if _swells(member.compress_size, member.file_size):
        raise _refusal(path, f'holds the member {member.filename!r}, which unpacks to {member.file_size >> 20} MiB')


def _check_names(path: Path, members: List[zipfile.ZipInfo]) -> None:
    """Refuse members of which one would replace another, at least on some file systems."""
    seen: Dict[str, str] = {}
    for member in members:
        name = str(PurePosixPath(member.filename))
        key = unicodedata.normalize('NFC', name).casefold()
        if key in seen:
            again = 'twice' if seen[key] == name else f'and {seen[key]!r}, which differ in case only'
            raise _refusal(path, f'holds the member {name!r} {again}')
        seen[key] = name
    for key, name in seen.items():
        for folder in PurePosixPath(key).parents:
            if str(folder) in seen:
                raise _refusal(path, f'holds the member {seen[str(folder)]!r} as a file, and {name!r} below it')


def _check_growth(path: Path, members: List[zipfile.ZipInfo]) -> None:
    """Refuse an archive that is far larger when unpacked."""
    total, packed = sum(member.file_size for member in members), path.stat().st_size
    if _swells(packed, total):
        raise _refusal(path, f'would unpack from {packed >> 20} to {total >> 20} MiB')


def _swells(packed: int, unpacked: int) -> bool:
    return unpacked > max(_MOST_GROWTH * packed, _SMALL_BYTES)


def _check_space(root: Path, needed: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(str(root)).free
    if needed > free:
        raise console.UserError(
            f'unpacking needs {needed / 1e9:.1f} GB in {root}, where {free / 1e9:.1f} GB are free',
            'make room or give another --data_path',
        )


def _size(path: str) -> int:
    """Return a file's size in bytes; 0 if there is none."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0

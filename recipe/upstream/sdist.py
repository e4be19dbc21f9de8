"""Makes checkouts from source distributions, for machines that cannot reach the git servers.

Standard library, pip and git only, Python 3.8 on.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath
from typing import Dict, List

from recipe.core import clean_environment, console, tied_process
from recipe.upstream.pins import Pin, Sdist

# Before pip hands over a source distribution, it asks the build backend for the metadata, and the three upstreams'
# setup.py import torch for that. This backend replaces setuptools and answers from PKG-INFO, which every source
# distribution contains. No code of the package runs, and neither torch nor setuptools is needed.
_BACKEND = """
import email
import pathlib
import shutil


class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        info = email.message_from_string(pathlib.Path('PKG-INFO').read_text('utf-8'))
        folder = pathlib.Path(metadata_directory, '%s-%s.dist-info' % (info['Name'], info['Version']))
        folder.mkdir()
        shutil.copy('PKG-INFO', str(folder / 'METADATA'))
        return folder.name
"""

_MISMATCH = re.compile(r'([^/\s]+\.tar\.gz)\S*(?: \(from .*\))?:\s+Expected sha256 (\w+)\s+Got\s+(\w+)')


def download(sdists: List[Sdist], folder: Path) -> Dict[Sdist, Path]:
    """Download source distributions through pip, with pip's own index, mirror and proxy settings.

    Args:
        sdists: Distributions to download.
        folder: Empty folder for the archives and pip's temporary files.

    Returns:
        The archive of each.

    Raises:
        console.UserError: pip is missing or could not download one; holds pip's last lines.
    """
    backend = folder / 'backend/setuptools'
    backend.mkdir(parents=True)
    (backend / '__init__.py').touch()
    (backend / 'build_meta.py').write_text(_BACKEND)
    archives = folder / 'archives'
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-input']
    command += ['--no-deps', '--no-binary', ':all:', '--use-pep517', '--no-build-isolation', '-d', str(archives)]
    # With a hash beside each requirement, pip verifies an archive before it opens it.
    wanted = folder / 'requirements.txt'
    wanted.write_text(''.join(f'{sdist.requirement} --hash=sha256:{sdist.sha256}\n' for sdist in sdists))
    command += ['--requirement', str(wanted)]
    env = {**clean_environment.for_pip(sys.executable, 'download'), 'PYTHONPATH': str(backend.parent)}
    options = {'env': env, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    with tied_process.started(command, **options) as process:
        output, _ = process.communicate()
    if process.returncode:
        differs = _MISMATCH.search(output)
        if differs:
            raise console.UserError(_mismatch(*differs.groups()))
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith('ERROR')), lines[-1] if lines else '')
        names = ', '.join(sdist.requirement for sdist in sdists)
        raise console.UserError(f'pip ({sys.executable}) could not bring the source distribution of {names}: {said}')
    return {sdist: _archive(archives, sdist) for sdist in sdists}


def _mismatch(name: str, expected: str, got: str) -> str:
    return (
        f'{name}: sha256 differs: expected {expected}, got {got}; nothing was unpacked. The package index serves '
        'another file than the pinned one: use another index, or --origin git'
    )


def _archive(folder: Path, sdist: Sdist) -> Path:
    def plain(name: str) -> str:
        return re.sub(r'[-_.]+', '-', name).lower()

    found = sorted(path.name for path in folder.iterdir())
    for name in found:
        if plain(name) == plain(f'{sdist.name}-{sdist.version}.tar.gz'):
            return folder / name
    raise console.UserError(f'pip brought no {sdist.name}-{sdist.version}.tar.gz but {found}')


def verify(archive: Path, sdist: Sdist) -> None:
    """Check an archive's hash.

    Raises:
        console.UserError: It differs; holds file, expected and found hash.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sdist.sha256:
        raise console.UserError(_mismatch(archive.name, sdist.sha256, found))


def unpack(archive: Path, pin: Pin, target: Path) -> None:
    """Unpack a source distribution, laid out like the git checkout.

    The content of ``<package>/.mim`` in the distribution (configs, tools, index files) goes to the top. Metadata that
    only
    a distribution has is left out.

    Args:
        archive: Verified ``.tar.gz``.
        pin: Names the import package.
        target: Folder, which must not exist.

    Raises:
        console.UserError: The archive is damaged, or holds a member that may not be unpacked; names it.
    """
    target.mkdir()
    mim = PurePosixPath(pin.package, '.mim')
    try:
        with tarfile.open(str(archive), 'r:gz') as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not _is_safe(member, path):
                    raise console.UserError(f'{archive.name}: refusing to unpack {member.name!r}')
                inside = PurePosixPath(*path.parts[1:])  # without the folder <name>-<version>
                if mim in inside.parents:
                    inside = inside.relative_to(mim)
                if member.isfile() and not _is_metadata(inside):
                    _write(tar, member, target / inside)
    except (tarfile.TarError, EOFError) as error:
        raise console.UserError(f'{archive.name}: damaged archive: {error}') from None


def _is_safe(member: tarfile.TarInfo, path: PurePosixPath) -> bool:
    inside = not path.is_absolute() and not {'..', '.git'} & set(path.parts)
    return inside and (member.isdir() or (member.isfile() and len(path.parts) > 1))


def _is_metadata(path: PurePosixPath) -> bool:
    return path.name == 'PKG-INFO' or path.parts[0].endswith('.egg-info')


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if target.exists():
        raise console.UserError(f'{Path(str(tar.name)).name}: {member.name} would be unpacked over another file')
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # a regular file, as checked
    target.write_bytes(source.read())
    target.chmod(0o755 if member.mode & 0o100 else 0o644)

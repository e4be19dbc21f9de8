"""Checks that Python, torch, torch_npu, CANN, the driver and mx_driving fit together.

The known-good versions are in known_good.json.
"""

from __future__ import annotations

import importlib.util
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from recipe.core import hardware
from recipe.doctor import ascend
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding
from recipe.doctor.subject import Subject

TABLE = Path(__file__).resolve().with_name('known_good.json')


class Versions(NamedTuple):
    """Installed versions; None if something is not installed.

    Attributes:
        cuda: Version that torch was built for.
        driver_cuda: Newest version that the NVIDIA driver supports.
        cann_home: Folder of CANN.
    """

    python: str
    torch: Optional[str] = None
    torch_npu: Optional[str] = None
    mx_driving: Optional[str] = None
    cann: Optional[str] = None
    cann_home: Optional[str] = None
    driver: Optional[str] = None
    cuda: Optional[str] = None
    driver_cuda: Optional[Tuple[int, int]] = None


def examine(subject: Subject) -> List[Finding]:
    """Compare the installed versions with the table."""
    return judge(subject.device, installed(subject), json.loads(TABLE.read_text(encoding='utf-8')))


def installed(subject: Subject) -> Versions:
    """Read the installed versions on this machine."""
    cuda = driver_cuda = None
    if subject.device == 'cuda':
        import torch

        cuda, driver_cuda = torch.version.cuda, hardware.driver_cuda()
    cann = ascend.cann(subject.root, subject.env) if subject.device == 'npu' else None
    driver = ascend.driver(subject.root) if subject.device == 'npu' else None
    version, home = cann or (None, None)
    return Versions(
        python=platform.python_version(),
        torch=_package('torch'),
        torch_npu=_package('torch_npu'),
        mx_driving=_package('mx_driving'),
        cann=version,
        cann_home=home,
        driver=driver,
        cuda=cuda,
        driver_cuda=driver_cuda,
    )


def _package(name: str) -> Optional[str]:
    for spelling in (name, name.replace('_', '-')):
        try:
            return metadata.version(spelling).split('+')[0]
        except metadata.PackageNotFoundError:
            continue
    return 'unknown' if importlib.util.find_spec(name) else None


def judge(device: str, have: Versions, table: Dict[str, Any]) -> List[Finding]:
    """Findings on one set of versions.

    Args:
        device: ``npu``, ``cuda`` or ``cpu``.
        have: Installed versions.
        table: Content of known_good.json.
    """
    findings = _stack(device, have, table['stacks']['rows'][device])
    if device == 'npu':
        findings += _torch_npu(have, table) + _driver(have, table) + _mx_driving(have, table)
    if device == 'cuda':
        findings += _cuda(have)
    return findings


def _is_in(version: str, range_: str) -> bool:
    """Whether a version is in a range such as ``>=2.1,<2.9``; one that cannot be read is in none."""
    try:
        return SpecifierSet(range_).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _release(version: str) -> Tuple[int, ...]:
    """Convert ``2.1.0.post17`` to (2, 1, 0); empty if it cannot be read."""
    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def _stack(device: str, have: Versions, row: Dict[str, str]) -> List[Finding]:
    findings = []
    if not _is_in(have.python, row['python']):
        fix = f'set up with another Python: bash tools/setup.sh --python=PATH ({row["python"]})'
        findings.append(Finding('Python', WARNING, f'{have.python} was not tried with {device}', fix))
    if have.torch is None:
        return [*findings, Finding('torch', FAILURE, 'torch is not installed', 'run: bash tools/setup.sh')]
    if not _is_in(have.torch, row['torch']):
        fix = f'torch{row["torch"]} was: bash tools/setup.sh'
        findings.append(Finding('torch', WARNING, f'{have.torch} was not tried with {device}', fix))
    return findings or [Finding('Python, torch', OK, f'Python {have.python}, torch {have.torch}')]


def _torch_npu(have: Versions, table: Dict[str, Any]) -> List[Finding]:
    rows = table['torch_npu']['rows']
    good = ', '.join(row['torch_npu'] for row in rows if row['torch'] == have.torch)
    use = f'pip install --no-deps torch_npu==VERSION, one of: {good}' if good else 'run: bash tools/setup.sh'
    if have.torch_npu is None:
        return [Finding('torch_npu', FAILURE, 'torch_npu is not installed', use)]
    if _release(have.torch_npu) != _release(have.torch or ''):
        found = f'torch_npu {have.torch_npu} does not fit torch {have.torch}: the first three numbers must be the same'
        return [Finding('torch_npu', FAILURE, found, use)]
    cann = f'CANN {have.cann} ({have.cann_home})'
    pair = f'torch_npu {have.torch_npu}, {cann}'
    row = next((row for row in rows if row['torch_npu'] == have.torch_npu), None)
    if have.cann is None:
        fix = "install CANN's toolkit and kernels, then source its set_env.sh"
        return [Finding('CANN', FAILURE, 'no CANN found', f'{fix}: {row["cann"]} was made for it' if row else fix)]
    if row is None:
        return [Finding('torch_npu', WARNING, f'{pair}: not among the known-good combinations', use)]
    takes = [row['cann'], *table['release_also_takes_cann']['rows'].get(row['release'], ())]
    if not any(_same_release(have.cann, known) for known in takes):
        fix = f'install CANN {row["cann"]}, which torch_npu {have.torch_npu} was made with'
        return [Finding('torch_npu', WARNING, f'{pair}: not among the known-good combinations', fix)]
    return [Finding('torch_npu', OK, f'{pair}, a known-good combination')]


def _same_release(version: str, known: str) -> bool:
    """Whether a version counts as a known release; patch releases such as 8.0.0.1 and a beta's suffix do."""
    key = ascend.order(known)
    return ascend.order(version)[: len(key)] == key


def _driver(have: Versions, table: Dict[str, Any]) -> List[Finding]:
    if have.driver is None:
        fix = 'in a container, mount /usr/local/Ascend/driver/version.info; see npu-smi info'
        return [Finding('driver', WARNING, "the driver's version cannot be found", fix)]
    if have.cann is None:
        return []
    rows = table['oldest_driver_of_cann']['rows']
    oldest = next((driver for known, driver in rows.items() if _same_release(have.cann, known)), None)
    if oldest and ascend.order(have.driver) < ascend.order(oldest):
        found = f'driver {have.driver} is older than {oldest}, the oldest known to go with CANN {have.cann}'
        return [Finding('driver', WARNING, found, f'update driver and firmware to {oldest} or newer')]
    return [
        Finding('driver', OK, have.driver + (f', from {oldest} on known to go with CANN {have.cann}' if oldest else ''))
    ]


def _mx_driving(have: Versions, table: Dict[str, Any]) -> List[Finding]:
    rows = table['mx_driving']['rows']
    torch = have.torch or ''
    fits = [row['mx_driving'] for row in rows if _is_in(torch, row['torch'])]
    fix = f'pip install --no-deps mx_driving=={fits[0]}' if fits else 'run: bash tools/setup.sh --stack=npu-2.1'
    if have.mx_driving is None:
        return [Finding('mx_driving', FAILURE, 'mx_driving is not installed, and deformable attention needs it', fix)]
    row = next((row for row in rows if row['mx_driving'] == have.mx_driving), None)
    if row is not None and have.mx_driving not in fits:
        found = f'mx_driving {have.mx_driving} is for torch{row["torch"]}'
        return [Finding('mx_driving', FAILURE, found, fix)]
    if row is None:
        found = f'mx_driving {have.mx_driving} is not among the known-good versions'
        return [Finding('mx_driving', WARNING, found, fix)]
    return [Finding('mx_driving', OK, have.mx_driving)]


def _cuda(have: Versions) -> List[Finding]:
    if have.cuda is None or have.driver_cuda is None:
        return []
    shown = '.'.join(map(str, have.driver_cuda))
    # Within a major version, newer CUDA libraries run on an older driver.
    if Version(have.cuda).major > have.driver_cuda[0]:
        found = f'torch {have.torch} is built for CUDA {have.cuda}, and the driver runs CUDA up to {shown}'
        return [Finding('CUDA', FAILURE, found, 'update the driver, or: pip install "torch<2.11"')]
    return [Finding('CUDA', OK, f'torch is built for CUDA {have.cuda}, the driver runs CUDA {shown}')]

"""One policy for reading checkpoint files, the same under every torch.

torch before 2.6 runs whatever code a checkpoint holds; torch from 2.6 on
refuses mmengine's own :class:`~mmengine.logging.HistoryBuffer`. Here a file is
compared with its checksums and read by :mod:`.containers`, which runs nothing.
"""

import logging
import os
import os.path as osp
import pickle
import zipfile
from functools import partial
from typing import Any, BinaryIO, Callable, Union

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader

from recipe.engine.checkpoint.containers import LEGACY_MAGIC, ZIP_MAGIC, DamagedError, check_zip, load_legacy, load_zip
from recipe.engine.checkpoint.errors import CheckpointError, RefusedError, UntrustedCheckpointError, one_line

# Set to 1 by a user who trusts the files: then what they hold may run code.
TRUST_VARIABLE = 'MMSEG_TRUST_CHECKPOINT'
MapLocation = Union[str, torch.device, Callable, None]


def is_trusted() -> bool:
    """Whether the user trusts checkpoint files with running code."""
    return os.environ.get(TRUST_VARIABLE) == '1'


def _is_legacy(file: BinaryIO, path: str) -> bool:
    """Tell torch's two formats apart by how a file begins."""
    file.seek(0)
    start = file.read(len(LEGACY_MAGIC))
    file.seek(0)
    if not start:
        raise CheckpointError(path, 'is empty')
    if start == LEGACY_MAGIC:
        return True
    if not start.startswith(ZIP_MAGIC):
        raise CheckpointError(path, 'is not a checkpoint of PyTorch')
    return False


def check_file(path: str) -> None:
    """Test that a file is a checkpoint and, by its checksums, a whole one.

    Args:
        path (str): A file written by ``torch.save``.

    Raises:
        CheckpointError: What is wrong with the file. Files in torch's legacy
            format have no checksums: only their first bytes are looked at.
    """
    with open(path, 'rb') as file:
        if _is_legacy(file, path):
            return
        try:
            check_zip(file)
        except DamagedError as e:
            raise CheckpointError(path, str(e)) from e
        except (ValueError, OverflowError) as e:  # of a place in the file
            raise CheckpointError(path, f'is damaged ({e})') from e


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    """Load a checkpoint file.

    It takes the place of mmengine's loader for local files, so that
    ``Runner.resume``, ``load_from`` and ``init_cfg`` all come here.

    Args:
        filename (str): A file written by ``torch.save``.
        map_location (str or torch.device or Callable, optional): Same as in
            :func:`torch.load`. Defaults to None.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedCheckpointError: The file holds something else than data, and
            the environment variable ``MMSEG_TRUST_CHECKPOINT`` is not 1.
        CheckpointError: The file is damaged or is not a checkpoint.
    """
    return _load(filename, map_location)


def load_outline(filename: str) -> Any:
    """Load a checkpoint without the values of its large tensors.

    The whole file is compared with its checksums, and takes no memory.

    Args:
        filename (str): A file written by ``torch.save``.

    Returns:
        dict: The checkpoint; tensors above a mebibyte are on the meta device
        where the file's format and trust in it allow that.

    Raises:
        CheckpointError: As :func:`load_from_local`.
    """
    return _load(filename, 'cpu', outline=True)


def _load(filename: str, map_location: MapLocation, outline: bool = False) -> Any:
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    with open(filename, 'rb') as file:
        load = load_legacy if _is_legacy(file, filename) else partial(load_zip, outline=outline)
        try:
            if is_trusted():
                return _load_trusted(file, filename, map_location)
            restore = torch.serialization._get_restore_location(map_location)
            return _without_program(load(file, restore))
        except DamagedError as e:
            raise CheckpointError(filename, str(e)) from e
        except RefusedError as e:
            raise UntrustedCheckpointError(filename, str(e)) from e
        # The legacy format has no checksums: damage shows as any kind of
        # error.
        except Exception as e:
            reason = str(e).strip().split('\n')[0]
            raise CheckpointError(filename, f'cannot be read ({type(e).__name__}: {reason})') from e


def _load_trusted(file: BinaryIO, filename: str, map_location: MapLocation) -> Any:
    """Load a file with torch's own means, which may run code."""
    print_log(f'{one_line(filename)} is trusted: code that it holds may run', logger='current', level=logging.WARNING)
    if not _is_legacy(file, filename):
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as e:
            raise DamagedError(f'is cut short or damaged ({e})') from e
        if damaged:
            raise DamagedError(f'is damaged (checksum of {damaged})')
        file.seek(0)
    return torch.load(file, map_location=map_location, pickle_module=pickle, weights_only=False)


def _without_program(checkpoint: Any) -> Any:
    """Leave nothing where ``Runner.resume`` looks for a program to run.

    mmengine runs ``meta['config']``, which mmcv 1 wrote, to read
    ``gpu_ids`` from it. The text stays, under mmengine's own name for it.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict) and 'config' in meta:
        meta.setdefault('cfg', meta.pop('config'))
    return checkpoint

"""Reads checkpoint files in the same way under every version of torch.

torch before 2.6 runs any code in a checkpoint. torch from 2.6 on refuses mmengine's own
:class:`~mmengine.logging.HistoryBuffer`. Here :mod:`.containers` checks the checksums of a file and reads it without
running code.
"""

import logging
import os
import os.path as osp
import pickle
import zipfile
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Callable, Iterator, Union

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader

from recipe.engine.checkpoint.containers import (
    LEGACY_MAGIC,
    ZIP_MAGIC,
    DamagedError,
    check_zip,
    load_legacy,
    load_plain,
    load_zip,
)
from recipe.engine.checkpoint.errors import CheckpointError, RefusedError, UntrustedCheckpointError, one_line

# A user who trusts the files sets it to 1. Then code in them may run.
TRUST_VARIABLE = 'MMSEG_TRUST_CHECKPOINT'
MapLocation = Union[str, torch.device, Callable, None]


def is_trusted() -> bool:
    """Whether the user allows checkpoint files to run code."""
    return os.environ.get(TRUST_VARIABLE) == '1'


def _is_legacy(file: BinaryIO, path: str) -> bool:
    """Whether the first bytes are those of torch's legacy format; CheckpointError if they are of neither format."""
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
    """Check that a file is a checkpoint and matches its checksums.

    Files in torch's legacy format have no checksums: only their first bytes are checked.

    Args:
        path (str): A file written by ``torch.save``.

    Raises:
        CheckpointError: The file is damaged or not a checkpoint; the reason says how.
    """
    with open(path, 'rb') as file:
        if _is_legacy(file, path):
            return
        try:
            check_zip(file)
        except DamagedError as e:
            raise CheckpointError(path, str(e)) from e
        except (ValueError, OverflowError) as e:  # an impossible offset in the file
            raise CheckpointError(path, f'is damaged ({e})') from e


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    """Load a checkpoint file.

    It replaces mmengine's loader for local files, so ``Runner.resume``, ``load_from`` and ``init_cfg`` all use it.

    Args:
        filename (str): A file written by ``torch.save``.
        map_location (str or torch.device or Callable, optional): Same as in
            :func:`torch.load`. Defaults to None.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedCheckpointError: The file holds something other than data, and the environment variable
            ``MMSEG_TRUST_CHECKPOINT`` is not 1.
        CheckpointError: The file is damaged or is not a checkpoint.
    """
    return _load(filename, map_location)


def load_outline(filename: str) -> Any:
    """Load a checkpoint without the values of its large tensors.

    The whole file is compared with its checksums. Large tensors take no memory.

    Args:
        filename (str): A file written by ``torch.save``.

    Returns:
        dict: The checkpoint. Tensors above a mebibyte are on the meta device, unless the file has the legacy format or
        is trusted.

    Raises:
        CheckpointError: As in :func:`load_from_local`.
    """
    return _load(filename, 'cpu', outline=True)


def is_plain_pickle(filename: str) -> bool:
    """Whether the first bytes of a file are those of a pickle that is no checkpoint of torch."""
    with open(filename, 'rb') as file:
        start = file.read(len(LEGACY_MAGIC))
    return start.startswith(pickle.PROTO) and start != LEGACY_MAGIC


def load_pickle(filename: str) -> Any:
    """Load a plain pickle, such as a file of weights of facebookresearch's trainers.

    Args:
        filename (str): A file written by ``pickle.dump``; may hold numpy arrays, but no tensors.

    Returns:
        Any: Its content. Code in it never runs, even if the user trusts the file.

    Raises:
        CheckpointError: As in :func:`load_from_local`.
    """
    with open(filename, 'rb') as file, _errors_of(filename):
        return load_plain(file)


def _load(filename: str, map_location: MapLocation, outline: bool = False) -> Any:
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    with open(filename, 'rb') as file:
        load = load_legacy if _is_legacy(file, filename) else partial(load_zip, outline=outline)
        with _errors_of(filename):
            if is_trusted():
                return _load_trusted(file, filename, map_location)
            restore = torch.serialization._get_restore_location(map_location)
            return _without_program(load(file, restore))


@contextmanager
def _errors_of(filename: str) -> Iterator[None]:
    """Turn all errors of reading a file into CheckpointError."""
    try:
        yield
    except DamagedError as e:
        raise CheckpointError(filename, str(e)) from e
    except RefusedError as e:
        raise UntrustedCheckpointError(filename, str(e)) from e
    # Pickles and the legacy format have no checksums, so damage can raise any kind of error.
    except Exception as e:
        reason = str(e).strip().split('\n')[0]
        raise CheckpointError(filename, f'cannot be read ({type(e).__name__}: {reason})') from e


def _load_trusted(file: BinaryIO, filename: str, map_location: MapLocation) -> Any:
    """Load a file with ``torch.load``, which may run code in it."""
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
    """Rename ``meta['config']`` to ``meta['cfg']``, so that ``Runner.resume`` does not run it.

    mmcv 1 wrote ``meta['config']``, and mmengine runs it to read ``gpu_ids``. ``cfg`` is mmengine's own name.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict) and 'config' in meta:
        meta.setdefault('cfg', meta.pop('config'))
    return checkpoint

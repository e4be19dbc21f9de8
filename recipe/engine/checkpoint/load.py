"""One policy for reading checkpoint files, the same under every torch.

torch before 2.6 runs whatever code a checkpoint holds; torch from 2.6 on
refuses mmengine's own :class:`~mmengine.logging.HistoryBuffer`. Here a file is
checked against its checksums and unpickled with a list of allowed globals.
"""

import importlib
import io
import logging
import os
import os.path as osp
import pickle
import types
import zipfile
from typing import Any, Callable, ClassVar, Dict, FrozenSet, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader

ZIP_MAGIC = b'PK\x03\x04'
# pickle of torch.serialization.MAGIC_NUMBER: how files begin that were
# written by torch before 1.6 or with _use_new_zipfile_serialization=False
LEGACY_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
# numpy.core.multiarray, or numpy._core.multiarray from numpy 2 on
NUMPY_MULTIARRAY = np.empty(0).__reduce__()[0].__module__

# Set to 1 by a user who trusts the files: then what they hold may run code.
TRUST_VARIABLE = 'MMSEG_TRUST_CHECKPOINT'

ALLOWED_GLOBALS: Dict[str, FrozenSet[str]] = {
    'builtins': frozenset(
        (
            'bool',
            'bytearray',
            'bytes',
            'complex',
            'dict',
            'float',
            'frozenset',
            'int',
            'list',
            'range',
            'set',
            'slice',
            'str',
            'tuple',
        )
    ),
    'collections': frozenset(('Counter', 'OrderedDict', 'defaultdict', 'deque')),
    # how protocol 2, which torch.save writes, spells bytes
    '_codecs': frozenset(('encode',)),
    'numpy': frozenset(('dtype', 'ndarray')),
    'numpy.core.multiarray': frozenset(('_reconstruct', 'scalar')),
    'torch': frozenset(('Size', 'Tensor', 'device'))
    | frozenset(name for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    'torch._utils': frozenset(('_rebuild_parameter', '_rebuild_tensor', '_rebuild_tensor_v2')),
    'torch.nn.parameter': frozenset(('Parameter',)),
    'torch.serialization': frozenset(('_get_layout',)),
    'mmengine.config.config': frozenset(('ConfigDict',)),
    'mmengine.logging.history_buffer': frozenset(('HistoryBuffer',)),
}


class CheckpointError(RuntimeError):
    """A checkpoint file that cannot be used.

    Args:
        path (str): The file.
        reason (str): What is wrong with it, in one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f'{path}: {reason}')
        self.path = path
        self.reason = reason


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint file that could run code, which was not allowed."""


class RefusedGlobalError(pickle.UnpicklingError):
    """A pickle that asks for something outside of the list."""


def _statistic_of_history(owner: Any, name: str) -> Callable:
    """What ``getattr`` is used for in mmengine's checkpoints.

    The state of a ``HistoryBuffer`` lists its methods ``min``, ``max``, ...
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise RefusedGlobalError(
            f'refused, it asks for {name} of {owner!r}, which no checkpoint needs and which could run code'
        )
    return getattr(owner, name)


# The pure Python unpickler, as in torch's own weights_only: the one in C does
# not let BUILD be restricted.
class RestrictedUnpickler(pickle._Unpickler):
    """Unpickles the types in ``ALLOWED_GLOBALS`` and no others."""

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Look up a global of the pickle.

        Args:
            module (str): Module of the global.
            name (str): Its name.

        Raises:
            RefusedGlobalError: The global is not on the list.
        """
        # Python 2's name, which protocol 2 writes for compatibility
        module = {'__builtin__': 'builtins'}.get(module, module)
        if (module, name) == ('builtins', 'getattr'):
            return _statistic_of_history
        # numpy 2 moved its private module; a file from either must load
        # under either.
        listed = module.replace('numpy._core.', 'numpy.core.')
        if name not in ALLOWED_GLOBALS.get(listed, ()):
            raise RefusedGlobalError(
                f'refused, it asks for {module}.{name}, which no checkpoint needs and which could run code'
            )
        if listed == 'numpy.core.multiarray':
            module = NUMPY_MULTIARRAY
        return getattr(importlib.import_module(module), name)

    def load_build(self) -> None:
        """Set an object's state, but never that of a class or a function."""
        if isinstance(self.stack[-2], (type, types.FunctionType, types.ModuleType)):
            raise RefusedGlobalError(f'refused, it alters {self.stack[-2]!r}, which no checkpoint does')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _restricted_load(file, **kwargs) -> Any:
    """``pickle.load`` with the restricted unpickler."""
    return RestrictedUnpickler(file, **kwargs).load()


# torch.load takes a module that stands in for pickle
_PICKLE_MODULE = types.ModuleType('restricted_pickle')
_PICKLE_MODULE.Unpickler = RestrictedUnpickler
_PICKLE_MODULE.load = _restricted_load


def check_file(path: str) -> None:
    """Test that a file is a checkpoint and, by its checksums, a whole one.

    Args:
        path (str): A file written by ``torch.save``.

    Raises:
        CheckpointError: What is wrong with the file. Files in torch's legacy
            format have no checksums: only their first bytes are looked at.
    """
    with open(path, 'rb') as f:
        start = f.read(len(LEGACY_MAGIC))
    if not start:
        raise CheckpointError(path, 'is empty')
    if start == LEGACY_MAGIC:
        return
    if not start.startswith(ZIP_MAGIC):
        raise CheckpointError(path, 'is not a checkpoint of PyTorch')
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    # A damaged header can ask for any feature that zipfile knows or does not
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as e:
        raise CheckpointError(path, f'is cut short or damaged ({e})') from e
    if damaged:
        raise CheckpointError(path, f'is damaged (checksum of {damaged})')
    if any(name.endswith('/constants.pkl') for name in names):
        raise CheckpointError(path, 'is a TorchScript program')


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Union[str, torch.device, Callable, None] = None) -> Any:
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
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    check_file(filename)
    with open(filename, 'rb') as f:
        # torch.load tries files that are not zips as tar archives first and
        # unpacks these, unless they come from memory.
        is_zip = f.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        f.seek(0)
        file = filename if is_zip else io.BytesIO(f.read())
    trusted = os.environ.get(TRUST_VARIABLE) == '1'
    if trusted:
        print_log(f'{filename} is trusted: code that it holds may run', logger='current', level=logging.WARNING)
    try:
        return torch.load(
            file, map_location=map_location, pickle_module=pickle if trusted else _PICKLE_MODULE, weights_only=False
        )
    except RefusedGlobalError as e:
        raise UntrustedCheckpointError(filename, str(e)) from e
    # The legacy format has no checksums: damage shows as any kind of error.
    except Exception as e:
        reason = str(e).strip().split('\n')[0]
        raise CheckpointError(filename, f'cannot be read ({type(e).__name__}: {reason})') from e

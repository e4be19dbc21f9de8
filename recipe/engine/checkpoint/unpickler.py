"""Reads the pickle of a checkpoint without running code that it names.

A pickle is a program: it names functions and calls them with any arguments. Here a name has to be in a table, and each
call goes to a function of this file that checks its arguments. Harmless types need checks as well: ``bytearray`` could
ask for a terabyte of memory, and ``numpy.dtype`` could pass a pointer to numpy.
"""

import importlib
import pickle
import re
import types
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, Callable, ClassVar, Dict, List, Optional

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from recipe.engine.checkpoint.errors import RefusedError

# numpy.core.multiarray, or numpy._core.multiarray from numpy 2 on
_MULTIARRAY = importlib.import_module(np.empty(0).__reduce__()[0].__module__)
# A checkpoint of this recipe has 100 000; each takes about a microsecond.
_MOST_INSTRUCTIONS = 20_000_000
_MOST_VALUES = 20_000_000  # a value counts once per reference to it
_DEEPEST_NESTING = 100
_MOST_DIMENSIONS = 64  # torch's own limit
# A view that repeats elements may have more of them than its storage.
_MOST_REPEATED_ELEMENTS = 1 << 20
_STATISTICS = ('min', 'max', 'current', 'mean')

_ATOMS = (str, int, float, bool, bytes, complex, type(None), torch.dtype, torch.device)
_DEFAULTS = (bool, int, float, str, list, dict, set, tuple, OrderedDict, Counter)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def _require(holds: bool, what: str) -> None:
    """Raise RefusedError about ``what`` unless ``holds``."""
    if not holds:
        raise RefusedError(f'refused, it holds {what}')


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_key(value: Any) -> bool:
    """Whether a value may be a key. Nested tuples may not: there is no limit to the time of hashing them."""
    if type(value) is tuple:
        return all(isinstance(item, _ATOMS) for item in value)
    return isinstance(value, (*_ATOMS, np.generic, type))


# Calls. Each function takes the arguments of the function or type that it replaces.


def _encode(text: Any, encoding: Any = None) -> bytes:
    """``_codecs.encode``, with which protocol 2 writes bytes."""
    _require(type(text) is str and encoding in ('latin1', 'latin-1'), 'bytes in an unknown spelling')
    return text.encode('latin1')


def _bytes(content: Any = b'') -> bytes:
    _require(type(content) is bytes, 'bytes in an unknown spelling')
    return content


def _bytearray(content: Any = b'', encoding: Any = 'latin-1') -> bytearray:
    if type(content) is str:
        content = _encode(content, encoding)
    _require(type(content) is bytes, 'bytes in an unknown spelling')
    return bytearray(content)


def _complex(real: Any, imaginary: Any) -> complex:
    _require(type(real) is float and type(imaginary) is float, 'a complex number of other things than numbers')
    return complex(real, imaginary)


def _range(*ends: Any) -> range:
    _require(1 <= len(ends) <= 3 and all(type(end) is int for end in ends), 'a range of other things than numbers')
    return range(*ends)


def _slice(*ends: Any) -> slice:
    _require(
        len(ends) == 3 and all(end is None or type(end) is int for end in ends), 'a slice of other things than numbers'
    )
    return slice(*ends)


def _set_of(kind: Callable) -> Callable:

    def make(items: Any = ()) -> Any:
        _require(type(items) in (list, tuple) and all(map(_is_key, items)), 'a set of other things than plain values')
        return kind(items)

    return make


def _ordered_dict(pairs: Any = ()) -> OrderedDict:
    _require(
        type(pairs) in (list, tuple)
        and all(type(pair) in (list, tuple) for pair in pairs)
        and all(len(pair) == 2 and _is_key(pair[0]) for pair in pairs),
        'a dict of other things than pairs',
    )
    return OrderedDict(pairs)


def _counter(counts: Any = None) -> Counter:
    _require(counts is None or type(counts) is dict, 'a counter of no dict')
    counter: Counter = Counter()
    counter.update({} if counts is None else counts)
    return counter


def _default_dict(factory: Any = None) -> defaultdict:
    _require(
        factory is None or (isinstance(factory, type) and factory in _DEFAULTS),
        'a dict with a default of an unknown kind',
    )
    return defaultdict(factory)


def _deque(items: Any = (), maxlen: Any = None) -> deque:
    _require(type(items) in (list, tuple) and (maxlen is None or _is_count(maxlen)), 'a deque of no list')
    return deque(items, maxlen)


def _config_dict(items: Any = None) -> ConfigDict:
    _require(items is None or type(items) is dict, 'a config that is no dict')
    config = ConfigDict()
    # ConfigDict's own methods would copy nested values.
    dict.update(config, items or {})
    return config


def _history_buffer() -> HistoryBuffer:
    return HistoryBuffer.__new__(HistoryBuffer)


def _statistic_of_history(owner: Any, name: Any) -> Callable:
    """``getattr``, for the statistics methods of ``HistoryBuffer`` only."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise RefusedError(
            f'refused, it asks for {name} of {owner!r}, which no checkpoint needs and which could run code'
        )
    return getattr(owner, name)


def _is_number_type(dtype: Any) -> bool:
    return (
        isinstance(dtype, np.dtype)
        and dtype.kind in 'biufc'
        and dtype.names is None
        and dtype.subdtype is None
        and not dtype.hasobject
    )


def _dtype(name: Any, *_: Any) -> np.dtype:
    _require(
        type(name) is str and re.fullmatch('[<>|=]?[biufc][0-9]{1,2}', name) is not None,
        f'an array of numpy type {name!r}; only bool, int, uint, float and complex are read',
    )
    # A copy, because BUILD may set its byte order.
    return np.dtype(name, False, True)


def _array(kind: Any, shape: Any, typecode: Any) -> np.ndarray:
    """``_reconstruct``: an empty array; BUILD fills in its content."""
    _require(kind is np.ndarray and shape == (0,), 'an array of its own kind')
    return np.empty(0, 'b')


def _scalar(dtype: Any, content: Any = None) -> np.generic:
    _require(
        _is_number_type(dtype) and type(content) is bytes and len(content) == dtype.itemsize,
        'a number of numpy that is none',
    )
    return _MULTIARRAY.scalar(dtype, content)


def _size(sizes: Any = ()) -> torch.Size:
    _require(type(sizes) in (list, tuple) and all(map(_is_count, sizes)), 'a size of other things than numbers')
    return torch.Size(sizes)


def _device(kind: Any, number: Any = None) -> torch.device:
    _require(type(kind) is str and (number is None or _is_count(number)), 'a device of an unknown kind')
    return torch.device(kind) if number is None else torch.device(kind, number)


def _layout(name: Any) -> torch.layout:
    _require(name == 'torch.strided', f'a tensor with layout {name!r}')
    return torch.strided


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> torch.Tensor:
    """A view of a storage; refused if it exceeds the storage.

    ``Tensor.set_`` alone would enlarge the storage to fit the view.
    """
    _require(isinstance(storage, torch.storage.TypedStorage), 'a tensor without a storage')
    _require(
        type(shape) in (tuple, torch.Size)
        and type(stride) is tuple
        and len(shape) == len(stride) <= _MOST_DIMENSIONS
        and all(map(_is_count, (offset, *shape, *stride))),
        'a tensor of an impossible shape',
    )
    _require(type(requires_grad) is bool and not hooks and not metadata, 'a tensor with hooks or metadata')
    elements, last = 1, offset
    for size, step in zip(shape, stride):
        elements *= size
        last += max(size - 1, 0) * step
    room = storage._untyped_storage.nbytes() // torch._utils._element_size(storage.dtype)
    _require(offset <= room and (not elements or last < room), 'a tensor that exceeds its storage')
    _require(elements <= max(room, _MOST_REPEATED_ELEMENTS), 'a tensor of more elements than are stored')
    tensor = torch.empty(0, dtype=storage.dtype, device=storage._untyped_storage.device)
    tensor.set_(storage._untyped_storage, offset, torch.Size(shape), stride)
    tensor.requires_grad = requires_grad
    return tensor


def _parameter(data: Any, requires_grad: Any, hooks: Any = None) -> torch.nn.Parameter:
    _require(
        isinstance(data, torch.Tensor) and type(requires_grad) is bool and not hooks,
        'a parameter with hooks or without a tensor',
    )
    return torch.nn.Parameter(data, requires_grad)


# States. Each function takes an object and the state that BUILD sets.


def _set_array(array: np.ndarray, state: Any) -> None:
    _require(type(state) is tuple and len(state) == 5, 'an array without data')
    version, shape, dtype, is_fortran, content = state
    _require(
        version == 1
        and type(shape) is tuple
        and len(shape) <= 32
        and all(map(_is_count, shape))
        and _is_number_type(dtype)
        and type(is_fortran) in (bool, int)
        and type(content) is bytes,
        'an array that is not one of numbers',
    )
    count = 1
    for size in shape:
        count *= size
    _require(count * dtype.itemsize == len(content), 'an array whose size is not that of its data')
    array.__setstate__((1, shape, dtype, bool(is_fortran), content))


def _set_dtype(dtype: np.dtype, state: Any) -> None:
    """Set the byte order only. The rest of the state could hold fields, offsets and pointers."""
    _require(
        type(state) is tuple
        and len(state) == 8
        and type(state[0]) is int
        and type(state[1]) is str
        and (state[0], *state[2:]) == (3, None, None, None, -1, -1, 0)
        and state[1] in ('<', '>', '|', '='),
        'an array of a numpy type with fields or flags',
    )
    dtype.__setstate__(state)


def _set_history(buffer: HistoryBuffer, state: Any) -> None:
    _require(type(state) is dict, 'a history without values')
    state = dict(state)
    # HistoryBuffer would store these in its class, and so change all histories of this process.
    methods = state.pop('statistics_methods', {})
    _require(
        type(methods) is dict
        and all(name in _STATISTICS and method is getattr(HistoryBuffer, name) for name, method in methods.items()),
        'a history with statistics of its own',
    )
    values, counts = (state.pop(name, None) for name in ('_log_history', '_count_history'))
    longest = state.pop('max_length', None)
    _require(
        not state
        and _is_count(longest)
        and isinstance(values, np.ndarray)
        and isinstance(counts, np.ndarray)
        and values.ndim == 1
        and values.shape == counts.shape,
        'a history that is no list of values',
    )
    buffer._set_default_statistics()
    buffer.__dict__.update(max_length=longest, _log_history=values, _count_history=counts)


def _set_ordered_dict(mapping: OrderedDict, state: Any) -> None:
    """Set ``_metadata`` of a state dict: the versions of its modules."""
    _require(isinstance(state, dict) and set(state) <= {'_metadata'}, 'a dict with attributes')
    versions = state.get('_metadata', {})
    _require(
        isinstance(versions, dict)
        and all(
            isinstance(name, str) and isinstance(version, dict) and type(version.get('version', 1)) in (int, type(None))
            for name, version in versions.items()
        ),
        'a state dict without versions',
    )
    mapping.__dict__.update(state)


_TYPES: Dict[str, type] = {
    f'{kind.__module__}.{kind.__name__}': kind
    for kind in (
        bool,
        bytearray,
        bytes,
        complex,
        dict,
        float,
        frozenset,
        int,
        list,
        range,
        set,
        slice,
        str,
        tuple,
        Counter,
        OrderedDict,
        defaultdict,
        deque,
        np.dtype,
        np.ndarray,
        torch.Size,
        torch.Tensor,
        torch.device,
        torch.nn.Parameter,
        ConfigDict,
        HistoryBuffer,
    )
}
_VALUES: Dict[str, Any] = {
    **_TYPES,
    'torch.Tensor': torch.Tensor,
    'torch.nn.parameter.Parameter': torch.nn.Parameter,
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}
_FUNCTIONS: Dict[str, Callable] = {
    'builtins.getattr': _statistic_of_history,
    '_codecs.encode': _encode,
    'numpy.core.multiarray._reconstruct': _array,
    'numpy.core.multiarray.scalar': _scalar,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch.serialization._get_layout': _layout,
}
_CALLS: Dict[Any, Callable] = {
    **{function: function for function in _FUNCTIONS.values()},
    bytes: _bytes,
    bytearray: _bytearray,
    complex: _complex,
    range: _range,
    slice: _slice,
    set: _set_of(set),
    frozenset: _set_of(frozenset),
    OrderedDict: _ordered_dict,
    Counter: _counter,
    defaultdict: _default_dict,
    deque: _deque,
    np.dtype: _dtype,
    torch.Size: _size,
    torch.device: _device,
    ConfigDict: _config_dict,
    HistoryBuffer: _history_buffer,
}
_STATES: Dict[type, Callable] = {
    np.ndarray: _set_array,
    HistoryBuffer: _set_history,
    OrderedDict: _set_ordered_dict,
}


class StorageType:
    """Stands for a class such as ``torch.FloatStorage``, whose use would warn.

    Args:
        dtype (torch.dtype): Type of the elements.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _storage_type(name: str) -> Optional[StorageType]:
    """The storage type of a name, None if it is not known."""
    if name in ('torch.storage.UntypedStorage', 'torch.UntypedStorage'):
        return StorageType(torch.uint8)
    dtype = (
        torch.storage._storage_type_to_dtype_map().get(name.rpartition('.')[2])
        if re.fullmatch(r'torch(\.(storage|cuda|npu))?\.\w+Storage', name)
        else None
    )
    # Quantized tensors need more than their storage.
    return None if dtype is None or 'q' in str(dtype) else StorageType(dtype)


# The unpickler in pure Python, because the one in C cannot restrict single instructions. torch's weights_only uses pure
# Python too.
class RestrictedUnpickler(pickle._Unpickler):
    """Unpickles plain values, numpy numbers and arrays, and tensors.

    Args:
        file (BinaryIO): The pickle.
        load_storage (Callable, optional): Called with the type of a storage, its key, location and number of elements;
            returns the storage. Defaults to None, for pickles without tensors.
    """

    # The instructions that torch.save and pickle write in protocols 2 to 4. Instructions that take text, import by
    # number or allocate before they read are left out.
    dispatch: ClassVar[dict] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            pickle.PROTO,
            pickle.FRAME,
            pickle.STOP,
            pickle.MARK,
            pickle.POP,
            pickle.POP_MARK,
            pickle.NONE,
            pickle.NEWTRUE,
            pickle.NEWFALSE,
            pickle.BININT,
            pickle.BININT1,
            pickle.BININT2,
            pickle.LONG1,
            pickle.BINFLOAT,
            pickle.BINUNICODE,
            pickle.SHORT_BINUNICODE,
            pickle.BINUNICODE8,
            pickle.BINSTRING,
            pickle.SHORT_BINSTRING,
            pickle.BINBYTES,
            pickle.SHORT_BINBYTES,
            pickle.BINBYTES8,
            pickle.EMPTY_LIST,
            pickle.EMPTY_TUPLE,
            pickle.EMPTY_DICT,
            pickle.EMPTY_SET,
            pickle.TUPLE,
            pickle.TUPLE1,
            pickle.TUPLE2,
            pickle.TUPLE3,
            pickle.BINGET,
            pickle.LONG_BINGET,
            pickle.BINPUT,
            pickle.LONG_BINPUT,
            pickle.MEMOIZE,
            pickle.GLOBAL,
            pickle.STACK_GLOBAL,
            pickle.BINPERSID,
        )
    }

    def __init__(self, file: Any, load_storage: Optional[Callable] = None) -> None:
        # torch.load reads strings of Python 2 with this encoding, too.
        super().__init__(file, encoding='utf-8')
        self._load_storage: Any = load_storage

    def load(self) -> Any:
        """Read one pickle.

        Raises:
            RefusedError: It asks for something that no checkpoint needs.
            Exception: It is damaged; the error may be of any kind.
        """
        # The same attributes as in pickle._Unpickler.load.
        self._unframer = pickle._Unframer(self._file_read, self._file_readline)
        self.read = self._unframer.read
        self.readinto = self._unframer.readinto
        self.readline = self._unframer.readline
        self.metastack: List[Any] = []
        self.stack: List[Any] = []
        self.append = self.stack.append
        self.proto = 0
        dispatch = self.dispatch
        try:
            for _ in range(_MOST_INSTRUCTIONS):
                code = self.read(1)
                if not code:
                    raise EOFError('it ends within its description')
                run = dispatch.get(code[0])
                if run is None and code[0] not in pickle._Unpickler.dispatch:
                    raise pickle.UnpicklingError(f'{code!r} is no instruction')
                if run is None:
                    raise RefusedError(f'refused, it holds the pickle instruction {code!r}, which no checkpoint needs')
                run(self)
        except pickle._Stop as stop:
            require_finite_tree(stop.value)
            return stop.value
        raise RefusedError(f'refused, it takes more than {_MOST_INSTRUCTIONS} instructions to build')

    def find_class(self, module: str, name: str) -> Any:
        """Look up a function, type or value that the pickle names.

        Args:
            module (str): Name of a module.
            name (str): A name in it.

        Raises:
            RefusedError: It is not in the tables.
        """
        # Protocol 2 writes Python 2's name.
        module = {'__builtin__': 'builtins'}.get(module, module)
        # numpy 2 renamed its private module. Files from numpy 1 and 2 have to load under both.
        path = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')
        if path in _FUNCTIONS:
            return _FUNCTIONS[path]
        found = _VALUES.get(path) or _storage_type(path)
        if found is None:
            raise RefusedError(
                f'refused, it asks for {module}.{name}, which no checkpoint needs and which could run code'
            )
        return found

    def persistent_load(self, description: Any) -> Any:
        """Return the storage that the pickle refers to."""
        _require(
            self._load_storage is not None
            and type(description) is tuple
            and len(description) >= 5
            and description[0] == 'storage'
            and isinstance(description[1], StorageType),
            'a reference to something else than a storage',
        )
        return self._load_storage(*description[1:])

    def _call(self, function: Any, args: Any) -> Any:
        made: Any = None
        if isinstance(function, (type, types.FunctionType)):
            made = _CALLS.get(function)
        _require(made is not None, f'a call of {function!r}, which no checkpoint makes')
        _require(type(args) is tuple, 'a call without arguments')
        return made(*args)

    def load_reduce(self) -> None:
        """Call a function from the table."""
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    dispatch[pickle.REDUCE[0]] = load_reduce
    # Making an instance and calling its class are the same here.
    dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_build(self) -> None:
        """Set an object's state, if its type is in the table."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, (type, types.FunctionType, types.ModuleType)):
            raise RefusedError(f'refused, it alters {target!r}, which no checkpoint does')
        set_state: Any = _set_dtype if isinstance(target, np.dtype) else _STATES.get(type(target))
        _require(set_state is not None, f'a state for {type(target).__name__}, which has none')
        set_state(target, state)

    dispatch[pickle.BUILD[0]] = load_build

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        _require(
            type(target) in (dict, OrderedDict, defaultdict, Counter)
            and len(items) % 2 == 0
            and all(map(_is_key, items[::2])),
            'a dict of other things than plain keys and their values',
        )
        for key, value in zip(items[::2], items[1::2]):
            target[key] = value

    def load_setitem(self) -> None:
        """Add an item to a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Add items to a dict."""
        self._set_items(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _extend(self, items: list) -> None:
        target = self.stack[-1]
        _require(type(target) in (list, deque), 'items of no list')
        target.extend(items)

    def load_append(self) -> None:
        """Add an item to a list."""
        self._extend([self.stack.pop()])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        """Add items to a list."""
        self._extend(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_additems(self) -> None:
        """Add items to a set."""
        items = self.pop_mark()
        target = self.stack[-1]
        _require(type(target) is set and all(map(_is_key, items)), 'a set of other things than plain values')
        target.update(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        """Make a frozenset."""
        self.append(_CALLS[frozenset](self.pop_mark()))

    dispatch[pickle.FROZENSET[0]] = load_frozenset


def require_finite_tree(value: Any) -> None:
    """Refuse values that contain themselves, are nested too deeply, or have too many references.

    Code that walks through, copies or compares a checkpoint may visit a value once per reference.

    Args:
        value (Any): The unpickled value.

    Raises:
        RefusedError: It contains itself, or exceeds a limit.
    """
    known: Dict[int, Any] = {}

    def measure(container: Any, depth: int) -> tuple:
        """Number of values in a container, and depth of its nesting."""
        _require(depth < _DEEPEST_NESTING, 'values that are nested too deeply')
        known[id(container)] = None
        count = len(container)
        height = 0
        for item in container.values() if isinstance(container, dict) else container:
            if not isinstance(item, _CONTAINERS):
                continue
            if id(item) not in known:
                known[id(item)] = measure(item, depth + 1)
            found = known[id(item)]
            _require(found is not None, 'values that contain themselves')
            count += found[0]
            height = max(height, found[1])
            _require(count < _MOST_VALUES, 'too many values')
        _require(depth + height < _DEEPEST_NESTING, 'values that are nested too deeply')
        return count, height + 1

    if isinstance(value, _CONTAINERS):
        measure(value, 0)

"""The one reader of small JSON files, which may be damaged or come from anybody. Standard library only, Python 3.8 on.

``json.loads`` alone raises RecursionError, OverflowError or MemoryError for some texts, and returns values that break
their readers later: infinite numbers, numbers of a million digits, text that no encoding can write.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, List, Type, TypeVar, Union

MOST_BYTES = 16 << 20
_DEEPEST = 32  # levels of lists and objects
_LARGEST = 1 << 63
_MOST_DIGITS = 25  # of a whole number; more cannot be in range

Value = TypeVar('Value')


class JsonError(ValueError):
    """A text is not the JSON that its reader can use; the message says why, in a few words without a path."""


def read(path: Path, kind: Type[Value], most_bytes: int = MOST_BYTES) -> Value:
    """Read a JSON file.

    Args:
        path: The file, in UTF-8, with or without a byte order mark.
        kind: Type of the outermost value, ``dict`` or ``list``.
        most_bytes: Limit of its size.

    Raises:
        JsonError: It is larger, not UTF-8, no JSON, nested too deeply, or holds another kind of value.
        OSError: It cannot be read.
    """
    with path.open('rb') as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise JsonError(f'larger than {most_bytes >> 20} MiB')
    return parse(data, kind)


def parse(text: Union[bytes, str], kind: Type[Value], finite: bool = True) -> Value:
    """Parse a JSON text, as ``read`` does.

    Args:
        text: Of a size that the caller has limited.
        kind: Type of the outermost value.
        finite: Refuse NaN and infinite numbers. They are no JSON, but Python and mmengine write them.

    Raises:
        JsonError: As ``read``.
    """
    try:
        text = text.decode('utf-8-sig') if isinstance(text, bytes) else text
        constants, floats = (_refuse_constant, _finite) if finite else (None, None)
        value = json.loads(text, parse_int=_whole, parse_float=floats, parse_constant=constants)
    except UnicodeDecodeError:
        raise JsonError('not in UTF-8') from None
    except (RecursionError, MemoryError):
        raise JsonError(f'nested more than {_DEEPEST} levels deep') from None
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(f'no JSON: {error}') from None
    if not isinstance(value, kind):
        raise JsonError(f'holds {_name(value)}, not {_name(kind())}')
    _check(value)
    return value


def number(value: Any, low: float = 0, high: float = _LARGEST) -> float:
    """A value that must be a finite number in a range.

    Raises:
        JsonError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise JsonError(f'{str(value)[:40]!r} in place of a number from {low:g} to {high:g}')
    return value


def whole_number(value: Any, low: int = 0, high: int = _LARGEST) -> int:
    """A value that must be a whole number in a range.

    Raises:
        JsonError: It is something else.
    """
    if not isinstance(value, int):
        raise JsonError(f'{str(value)[:40]!r} in place of a whole number')
    return int(number(value, low, high))


def _check(value: Any) -> None:
    """Refuse what is nested too deeply, and text with half a surrogate pair, level by level."""
    level: List[Any] = [value]
    for _ in range(_DEEPEST):
        texts: List[str] = [item for item in level if isinstance(item, str)]
        below: List[Any] = []
        for item in level:
            if isinstance(item, dict):
                texts += item
                below += item.values()
            elif isinstance(item, list):
                below += item
        try:
            ''.join(texts).encode('utf-8')
        except UnicodeEncodeError:
            raise JsonError('holds text that is no Unicode') from None
        level = below
        if not level:
            return
    raise JsonError(f'nested more than {_DEEPEST} levels deep')


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS or not -_LARGEST <= int(digits) < _LARGEST:
        raise JsonError(f'the number {digits[:20]}... is too large')
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f'the number {text[:20]} is too large')
    return value


def _refuse_constant(name: str) -> Any:
    raise JsonError(f'{name} is no number of JSON')


def _name(value: Any) -> str:
    names = {dict: 'an object', list: 'a list', str: 'a text', bool: 'true or false', type(None): 'null'}
    return names.get(type(value), 'a number')

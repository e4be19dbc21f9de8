"""What callables take, read from a Python definition or an operator's schema, and whether a call fits it."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import List, Optional, Tuple

from npu_uses import Call


@dataclass(frozen=True)
class Signature:
    """What a callable takes.

    Args:
        positional: Parameters that can be given by position, in order.
        keyword: All parameters that can be given by name.
        required: Those without a default.
        any_positional: Whether there is ``*args``.
        any_keyword: Whether there is ``**kwargs``.
    """

    positional: Tuple[str, ...]
    keyword: Tuple[str, ...]
    required: Tuple[str, ...]
    any_positional: bool = False
    any_keyword: bool = False

    def fault(self, call: Call) -> Optional[str]:
        """Why a call does not fit; None if it does."""
        if call.positional > len(self.positional) and not self.any_positional:
            return f'takes {len(self.positional)} positional arguments at most, not {call.positional}'
        by_position = self.positional[: call.positional]
        for name in call.keywords:
            if name in by_position:
                return f'gets {name} twice'
            if name not in self.keyword and not self.any_keyword:
                return f'has no argument {name}; it has {", ".join(self.keyword) or "none by name"}'
        missing = [name for name in self.required if name not in by_position and name not in call.keywords]
        if missing and not call.more:
            return f'lacks {", ".join(missing)}'
        return None


def python_signature(node: ast.FunctionDef, skip: int = 0) -> Signature:
    """Read a function's parameters, without the first ``skip`` of them (``self``, ``ctx``)."""
    args = node.args
    only = [arg.arg for arg in getattr(args, 'posonlyargs', [])]
    positional = (only + [arg.arg for arg in args.args])[skip:]
    required = positional[: max(len(positional) - len(args.defaults), 0)]
    named = [arg.arg for arg in args.kwonlyargs]
    required += [name for name, default in zip(named, args.kw_defaults) if default is None]
    keyword = [name for name in positional if name not in only] + named
    return Signature(
        tuple(positional), tuple(keyword), tuple(required), args.vararg is not None, args.kwarg is not None
    )


def schema_signature(arguments: str) -> Signature:
    """Read the arguments of a schema such as ``(Tensor x, float scale=1., *, int[]? size=None)``."""
    positional: List[str] = []
    keyword: List[str] = []
    required: List[str] = []
    by_position = True
    for argument in re.split(r',(?![^\[(]*[\])])', arguments[1:-1]):
        argument = argument.strip()
        if argument in ('', '*'):
            by_position = by_position and argument != '*'
            continue
        name, default, _ = argument.split(' ')[-1].partition('=')
        keyword.append(name)
        positional += [name] * by_position
        required += [name] * (not default)
    return Signature(tuple(positional), tuple(keyword), tuple(required))

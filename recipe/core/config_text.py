"""Reads the config that mmengine dumped beside a log, without running it.

``mmengine.Config.fromfile`` executes the file as Python, and a log may come from anybody. This reads only what a dump
consists of: assignments of literals and of ``dict(...)`` calls. It also reads the copy of the config inside a text log,
and needs no mmengine.
"""

from __future__ import annotations

import ast
from typing import Any, Dict, Optional


def read_config(text: str) -> Dict[str, Any]:
    """Read the assignments of a dumped config.

    Args:
        text: Source as ``Config.dump`` writes it.

    Returns:
        Values by name. A value that is not a literal (a name, an import, any call but ``dict``) reads as None. Text
        that
        is not Python, or is nested too deeply, gives an empty dict.
    """
    try:
        return {
            target.id: _value(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return {}


def lookup(config: Dict[str, Any], dotted: str) -> Optional[Any]:
    """Value at a dotted path such as ``train_dataloader.batch_size``, or None if there is none."""
    value: Any = config
    for key in dotted.split('.'):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def lookup_int(config: Dict[str, Any], dotted: str) -> Optional[int]:
    """Positive whole number at a dotted path, or None if there is anything else."""
    value = lookup(config, dotted)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_value(key): _value(item) for key, item in zip(node.keys, node.values) if isinstance(key, ast.Constant)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand)
        return -number if isinstance(number, (int, float)) else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        merged: Dict[str, Any] = {}
        for argument in node.args:
            positional = _value(argument)
            merged.update(positional if isinstance(positional, dict) else {})
        merged.update({keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg})
        return merged
    return None

"""Ends the program on import if a module on PYTHONPATH or in the current folder hides a standard module.

Each program of the recipe imports it first: with another ``json.py`` on the path, the next import would fail somewhere
inside Python. It uses only modules that the interpreter has already loaded. Until ``console.run`` takes over, it also
keeps a Ctrl-C from ending in a traceback.
"""

import os
import sys

# Annotations are strings: even ``from __future__ import annotations`` imports a module that may be hidden.

# Modules that nobody imports by accident, or that are meant to be found elsewhere.
_HARMLESS = {'antigravity', 'idlelib', 'lib2to3', 'sitecustomize', 'test', 'this', 'turtle', 'turtledemo', 'venv'}
_STDLIB = os.path.dirname(os.__file__)


def hidden(path: 'list[str]', own: str) -> 'tuple[str, str] | None':
    """Find the first module that hides a standard module.

    Args:
        path: As ``sys.path``.
        own: Folder of the recipe.

    Returns:
        The file and the name of the module; None if there is none.
    """
    names = set(_modules(_STDLIB)) | set(_modules(os.path.join(_STDLIB, 'lib-dynload')))
    for folder in path:
        if _is_same(folder, _STDLIB):
            break
        if not _is_same(folder, own):
            for name, file in sorted(_modules(folder or '.').items()):
                if name in names - _HARMLESS:
                    return os.path.abspath(file), name
    return None


def _modules(folder: str) -> 'dict[str, str]':
    """Files of the modules and packages in a folder, by name."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return {}
    found = {}
    for entry in entries:
        file = os.path.join(folder, entry)
        name, _, kind = entry.partition('.')
        if kind == 'py' or kind.endswith('so'):
            found[name] = file
        elif not kind and os.path.isfile(os.path.join(file, '__init__.py')):
            found[name] = os.path.join(file, '__init__.py')
    return found


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _refuse() -> None:
    found = hidden(sys.path, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    if found is None:
        return
    file, name = found
    folder = os.path.dirname(file) if not file.endswith('__init__.py') else os.path.dirname(os.path.dirname(file))
    sys.stderr.write(
        f'error: {file} hides {name} of the standard library; take {folder} off PYTHONPATH (an empty entry there is '
        'the current folder), or rename the file\n'
    )
    sys.exit(1)


def _say_interrupted() -> None:
    sys.stderr.write('error: interrupted\n')  # Python then ends by SIGINT, which a shell counts as 130


sys.excepthook = lambda kind, value, trace: (
    _say_interrupted() if issubclass(kind, KeyboardInterrupt) else sys.__excepthook__(kind, value, trace)
)
_refuse()

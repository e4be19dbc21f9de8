"""What Ascend's packages hold, read from their wheels: Python sources, and the schemas in the native libraries.

Nothing is imported or installed, so that this works without torch, without CANN and for several versions at once.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set, Tuple, Union

from npu_signatures import Signature, python_signature, schema_signature
from npu_uses import Call, Use

# The wheels for one machine say the same as those for others.
WHEELS = ['--python-version=3.11', '--implementation=cp', '--abi=cp311', '--only-binary=:all:'] + [
    f'--platform={name}_x86_64' for name in ('manylinux2014', 'manylinux_2_17', 'manylinux_2_28')
]
PACKAGES = ('torch_npu', 'mx_driving')
FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef)


class ContractError(Exception):
    """A use that the packages contradict; the message names it."""


@dataclass(frozen=True)
class Thing:
    """What a name leads to.

    Args:
        module: The module that defines it.
        node: Its definition; None for a module, an operator or a native function.
        kind: module, function, class, instance, operator, native or value.
        overloads: Schemas of an operator.
    """

    module: str
    node: Optional[ast.AST] = None
    kind: str = 'value'
    overloads: Tuple[Signature, ...] = ()


class Packages:
    """The two packages of one stack.

    Args:
        wheels: Their files.
    """

    def __init__(self, wheels: List[Path]) -> None:
        self.files: Dict[str, zipfile.ZipFile] = {}
        for wheel in wheels:
            archive = zipfile.ZipFile(wheel)
            self.files.update(dict.fromkeys(archive.namelist(), archive))
        self._read = lru_cache(maxsize=None)(lambda path: self.files[path].read(path))
        self._open: Set[Tuple[str, str]] = set()  # being looked for
        self._source = lru_cache(maxsize=None)(self._parse)

    def check(self, use: Use) -> None:
        """Check that a use fits.

        Raises:
            ContractError: If the name does not exist, or does not take the arguments.
        """
        try:
            thing = self.resolve(use.name, use.stored)
            if use.call is not None:
                self._check_call(thing, use.call)
        except ContractError as fault:
            raise ContractError(f'{use.where}: {use.name} {fault}') from None

    def _check_call(self, thing: Thing, call: Call) -> None:
        if thing.kind == 'native':
            return  # pybind11 keeps no signature that could be read
        if thing.kind == 'operator':
            faults = [signature.fault(call) for signature in thing.overloads]
            if all(faults):
                raise ContractError(faults[0])
            return
        signature = self._signature(thing)
        if signature is None:
            raise ContractError(f'is called, and it is a {thing.kind}')
        fault = signature.fault(call)
        if fault:
            raise ContractError(fault)

    def _signature(self, thing: Thing) -> Optional[Signature]:
        if thing.kind == 'function':
            return python_signature(thing.node)
        if thing.kind == 'apply':
            # Function.apply is a C function: no argument has a name; the first of forward is the context.
            whole = python_signature(thing.node, skip=1)
            required = whole.required[: len(whole.positional)]
            return Signature(whole.positional, (), required, whole.any_positional)
        if thing.kind == 'class':
            for owner in self._bases(thing):
                for node in owner.node.body:
                    if isinstance(node, FUNCTION_NODES) and node.name in ('__init__', '__new__'):
                        return python_signature(node, skip=1)
            raise ContractError('is a class whose __init__ is not in the package: its arguments cannot be checked')
        return None

    def resolve(self, name: str, stored: bool = False) -> Thing:
        """Find what a dotted name leads to.

        Raises:
            ContractError: If it leads nowhere.
        """
        parts = name.split('.')
        if parts[:2] == ['torch', 'npu']:  # torch_npu registers it there
            parts[:2] = ['torch_npu', 'npu']
        elif parts[:3] == ['torch', 'ops', 'npu']:
            if len(parts) == 3:
                return Thing('torch_npu', kind='module')
            return self._operator(parts[3])
        thing = Thing(parts[0], kind='module')
        if self._source(parts[0]) is None:
            raise ContractError('is of a package that was not looked at')
        for depth, part in enumerate(parts[1:], 2):
            found = self._member(thing, part, stored and depth == len(parts))
            if found is None:
                raise ContractError(f'does not exist: {".".join(parts[: depth - 1])} has no {part}')
            thing = found
        return thing

    def _member(self, thing: Thing, name: str, stored: bool) -> Optional[Thing]:
        if thing.kind == 'module':
            return self._in_module(thing.module, name)
        if thing.kind in ('class', 'instance'):
            for owner in self._bases(thing):
                found = self._bound(owner.module, owner.node.body, name)
                if found is not None:
                    return found
                if thing.kind == 'instance' and _handled_name(
                    owner.node, '__setattr__' if stored else '__getattr__', name
                ):
                    return Thing(owner.module)
            return None
        return Thing(thing.module) if thing.kind in ('native', 'value') else None

    def _bases(self, thing: Thing) -> Iterator[Thing]:
        yield thing
        for base in thing.node.bases:
            found = self._expression(thing.module, base)
            if found is not None and found.kind == 'class':
                yield from self._bases(found)

    def _in_module(self, module: str, name: str) -> Optional[Thing]:
        tree = self._source(module)
        if tree is None:  # a native module: the names it gives to Python stand in its file
            native = [self._native_path(module), 'torch_npu/lib/libtorch_npu.so']
            known = any(name.encode() + b'\0' in self._read(path) for path in native)
            return Thing(module, kind='native') if known else None
        found = None
        if (module, name) not in self._open:  # a package may import its own submodule: from torch_npu import profiler
            self._open.add((module, name))
            found = self._bound(module, tree.body, name)
            self._open.discard((module, name))
        if found is None and self._is_module(f'{module}.{name}'):
            found = Thing(f'{module}.{name}', kind='module')
        if found is None and module == 'torch_npu':  # its __init__ takes over the names of all operators
            try:
                return self._operator(name)
            except ContractError:
                return None
        return found

    def _bound(self, module: str, body: List[ast.stmt], name: str) -> Optional[Thing]:
        """What the last statement that binds the name binds it to."""
        for node in reversed(list(_statements(body))):
            if isinstance(node, (*FUNCTION_NODES, ast.ClassDef)) and node.name == name:
                return Thing(module, node, 'class' if isinstance(node, ast.ClassDef) else 'function')
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                found = self._imported(module, node, name)
                if found is not None:
                    return found
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return self._expression(module, node.value) or Thing(module, node)
        return None

    def _imported(self, module: str, node: Union[ast.Import, ast.ImportFrom], name: str) -> Optional[Thing]:
        for alias in node.names:
            if isinstance(node, ast.Import):
                if name == (alias.asname or alias.name.split('.')[0]) and alias.name.split('.')[0] in PACKAGES:
                    return Thing(alias.name if alias.asname else alias.name.split('.')[0], kind='module')
                if name == (alias.asname or alias.name.split('.')[0]):
                    return Thing(module)  # of another package
                continue
            source = self._absolute(module, node)
            if alias.name == '*':
                if source.split('.')[0] not in PACKAGES or name.startswith('_'):
                    continue
                exported = self._exported(source)
                if exported is None or name in exported:
                    found = self._in_module(source, name)
                    if found is not None:
                        return found
            elif name == (alias.asname or alias.name):
                if source.split('.')[0] not in PACKAGES:
                    return Thing(module)
                return self._in_module(source, alias.name)
        return None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        package = module if self._path(module).endswith('__init__.py') else module.rpartition('.')[0]
        for _ in range(node.level - 1):
            package = package.rpartition('.')[0]
        return f'{package}.{node.module}' if node.module else package

    def _exported(self, module: str) -> Optional[List[str]]:
        tree = self._source(module)
        for node in _statements(tree.body) if tree else ():
            if isinstance(node, ast.Assign) and any(getattr(target, 'id', '') == '__all__' for target in node.targets):
                try:
                    return ast.literal_eval(node.value)
                except ValueError:
                    return None
        return None

    def _expression(self, module: str, node: Optional[ast.AST]) -> Optional[Thing]:
        """What ``name``, ``module.name``, ``Function.apply`` or ``Class()`` is, where that can be read."""
        if isinstance(node, ast.Name):
            return self._in_module(module, node.id)
        if isinstance(node, ast.Attribute):
            holder = self._expression(module, node.value)
            if holder is None:
                return None
            if holder.kind == 'class' and node.attr == 'apply':
                forward = self._member(holder, 'forward', False)
                if forward is not None and forward.kind == 'function':
                    return Thing(forward.module, forward.node, 'apply')
            return self._member(holder, node.attr, False)
        if isinstance(node, ast.Call):
            made = self._expression(module, node.func)
            if made is not None and made.kind == 'class':
                return Thing(made.module, made.node, 'instance')
        return None

    def _operator(self, name: str) -> Thing:
        binary = self._read('torch_npu/lib/libtorch_npu.so')
        schema = re.compile(re.escape(name).encode() + rb'(?:\.\w+)?(\([^\0]*?\)) -> ')
        # Schemas of other libraries stand there too, and longer names that end like this one; an operator of npu has
        # its full name somewhere.
        found = [
            match
            for match in schema.finditer(binary)
            if not re.match(rb'[\w.]', binary[match.start() - 1 : match.start()])
        ]
        registered = b'npu::' + name.encode() in binary
        overloads = tuple(schema_signature(match.group(1).decode()) for match in found if registered)
        if not overloads:
            raise ContractError('does not exist: no operator of that name is registered')
        return Thing('torch_npu', kind='operator', overloads=overloads)

    def _path(self, module: str) -> Optional[str]:
        base = module.replace('.', '/')
        return next((path for path in (f'{base}/__init__.py', f'{base}.py') if path in self.files), None)

    def _is_module(self, module: str) -> bool:
        return self._path(module) is not None or bool(self._native_path(module))

    def _native_path(self, module: str) -> str:
        base = module.replace('.', '/')
        return next((path for path in self.files if path.startswith(f'{base}.cpython-')), '')

    def _parse(self, module: str) -> Optional[ast.Module]:
        path = self._path(module)
        return ast.parse(self._read(path)) if path else None


def _statements(body: List[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run in the same scope, also those in branches."""
    for node in body:
        yield node
        if isinstance(node, (*FUNCTION_NODES, ast.ClassDef)):
            continue
        for field in ('body', 'orelse', 'finalbody'):
            yield from _statements(getattr(node, field, []))
        for handler in getattr(node, 'handlers', []):
            yield from _statements(handler.body)


def _handled_name(owner: ast.ClassDef, method: str, name: str) -> bool:
    """Whether a method such as ``__setattr__`` compares the name of the attribute with this one."""
    return any(
        isinstance(constant, ast.Constant) and constant.value == name
        for node in owner.body
        if isinstance(node, FUNCTION_NODES) and node.name == method
        for compare in ast.walk(node)
        if isinstance(compare, ast.Compare)
        for constant in ast.walk(compare)
    )


def requirements(file: Path) -> List[str]:
    """The requirements of a file that name one of the packages."""
    lines = [line.split('#')[0].strip() for line in file.read_text().splitlines()]
    return [line for line in lines if line.startswith(PACKAGES)]


def download(wanted: List[str], folder: Path) -> List[Path]:
    """Get wheels from the package index, once.

    Args:
        wanted: Requirements.
        folder: Where they are kept.
    """
    done = folder / 'requirements.txt'
    if not done.is_file() or done.read_text().split() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob('*.whl'):
            old.unlink()
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-input']
        subprocess.run([*command, '--no-deps', *WHEELS, f'--dest={folder}', *wanted], check=True)
        done.write_text('\n'.join(wanted))
    return sorted(folder.glob('*.whl'))

"""Which names of Ascend's packages some source uses, and with which arguments it calls them, by its syntax tree."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

# torch.npu is a module of torch_npu, torch.ops.npu holds its operators.
VENDORS = ('torch_npu', 'mx_driving', 'torch.npu', 'torch.ops.npu')


@dataclass(frozen=True)
class Call:
    """Arguments of a call, as far as the source spells them out.

    Args:
        positional: Number of positional arguments.
        keywords: Names of keyword arguments.
        more: Whether ``*args`` or ``**kwargs`` may add others.
    """

    positional: int
    keywords: Tuple[str, ...] = ()
    more: bool = False

    @classmethod
    def of(cls, node: ast.Call) -> Call:
        """Read a call's arguments."""
        starred = any(isinstance(arg, ast.Starred) for arg in node.args)
        keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
        return cls(len(node.args) - starred, keywords, starred or len(keywords) < len(node.keywords))


@dataclass(frozen=True)
class Use:
    """One place that names something of Ascend's packages.

    Args:
        name: Dotted, with import aliases resolved.
        where: File and line.
        call: Its arguments if the place is a call.
        stored: Whether the place assigns to it.
        owner: Class around the place, '' outside of classes.
    """

    name: str
    where: str
    call: Optional[Call] = None
    stored: bool = False
    owner: str = ''


def find_uses(path: Path, shown: str) -> List[Use]:
    """Find all uses in a file.

    Args:
        path: A Python file.
        shown: How to name it.
    """
    finder = _Finder(shown)
    tree = ast.parse(path.read_text(encoding='utf-8'))
    finder.learn_names(tree)
    finder.visit(tree)
    return finder.uses


class _Finder(ast.NodeVisitor):
    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.uses: List[Use] = []
        self.names: Dict[str, str] = {}  # what a name of the file stands for
        self.owner = ''

    def learn_names(self, tree: ast.AST) -> None:
        """Learn what names mean, wherever in the file they are bound: imports are often inside functions here."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._learn(alias.asname or alias.name.split('.')[0], alias.name if alias.asname else None)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    self._learn(alias.asname or alias.name, f'{node.module}.{alias.name}')
        # `attention = mx_driving.multi_scale_deformable_attn`, also several steps of it.
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and len(node.targets) == 1]
        for node in assigned:
            target, name = node.targets[0], self.dotted(node.value)
            if isinstance(target, ast.Name) and name and _is_vendor(name):
                self.names[target.id] = name

    def _learn(self, name: str, meaning: Optional[str]) -> None:
        meaning = meaning or name
        if meaning.split('.')[0] in ('torch', 'torch_npu', 'mx_driving'):
            self.names[name] = meaning

    def dotted(self, node: ast.AST) -> Optional[str]:
        """Full name of an expression such as ``npu.config`` or ``getattr(mx_driving, 'knn')``."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        attribute: Optional[str] = None
        holder: Optional[ast.AST] = None
        if isinstance(node, ast.Attribute):
            holder, attribute = node.value, node.attr
        elif isinstance(node, ast.Call) and _called(node, 'getattr') and len(node.args) >= 2:
            # With a default the source is ready for its absence.
            if len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
                holder, attribute = node.args[0], str(node.args[1].value)
        elif isinstance(node, ast.Call) and _called(node, 'import_module') and isinstance(node.args[0], ast.Constant):
            return str(node.args[0].value)
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'import_mx_driving':
            return 'mx_driving'  # the patched mmcv's one way to import it
        above = self.dotted(holder) if holder is not None else None
        return f'{above}.{attribute}' if above else None

    def _add(self, node: ast.AST, name: str, call: Optional[Call] = None, stored: bool = False) -> None:
        if _is_vendor(name):
            self.uses.append(Use(name, f'{self.shown}:{node.lineno}', call, stored, self.owner))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        above, self.owner = self.owner, node.name
        self.generic_visit(node)
        self.owner = above

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names if node.level == 0 else ():
            self._add(node, f'{node.module}.{alias.name}')

    def visit_Call(self, node: ast.Call) -> None:
        own = self.dotted(node)
        name = self.dotted(node.func)
        if own:
            self._add(node, own)
        elif name and _is_vendor(name):
            self._add(node, name, Call.of(node))
        else:
            self.visit(node.func)
        for child in (*node.args, *node.keywords):
            self.visit(child)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.dotted(node)
        if name and _is_vendor(name):
            self._add(node, name, stored=isinstance(node.ctx, ast.Store))
        else:
            self.generic_visit(node)


def _is_vendor(name: str) -> bool:
    return any(name == vendor or name.startswith(f'{vendor}.') for vendor in VENDORS)


def _called(node: ast.Call, name: str) -> bool:
    return getattr(node.func, 'id', getattr(node.func, 'attr', '')) == name and bool(node.args)

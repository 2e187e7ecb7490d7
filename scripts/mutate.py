"""Small changes of a module's source: other operators, conditions, numbers and results. Pure."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
LINE_CHARS = 160
LEFT_ALONE = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal)
"""Statements whose words are told and not computed with, or that name things."""
NAMING = ("annotation", "returns", "decorator_list", "bases", "type_params")
"""Fields of nodes that no change is made in."""


@dataclass(frozen=True)
class Mutant:
    key: str
    """``module function: line as it is -> line as it becomes``; told apart by a number where that is not unique."""
    tree: ast.Module


def mutants_of(source: str, module: str) -> Iterator[Mutant]:
    """Every change of ``source``, in the order of its lines."""
    tree = ast.parse(source)
    seen: Counter[str] = Counter()
    for scope, path in _places(tree, "", ()):
        for change in range(_changes(_at(tree, path))):
            changed = copy.deepcopy(tree)
            shown = _shown(tree, path)
            before = _line(_at(tree, shown))
            _change(changed, path, change)
            key = f"{module} {scope or 'module'}: {before} -> {_line(_at(changed, shown))}"
            seen[key] += 1
            yield Mutant(key + (f" ({seen[key]})" if seen[key] > 1 else ""), ast.fix_missing_locations(changed))


_Path = tuple[tuple[str, int], ...]
"""The way from the module to a node: fields and places in them; -1 for a field that holds one node."""


def _places(node: ast.AST, scope: str, path: _Path) -> Iterator[tuple[str, _Path]]:
    for field, value in ast.iter_fields(node):
        if field in NAMING:
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(-1, value)]:
            if (
                not isinstance(child, ast.AST)
                or isinstance(child, LEFT_ALONE)
                or _is_told(child)
                or _is_limit(node, child)
            ):
                continue
            here = (*path, (field, place))
            within = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                within = f"{scope}.{child.name}".lstrip(".")
            yield scope, here
            yield from _places(child, within, here)


def _is_told(node: ast.AST) -> bool:
    """Whether ``node`` is a docstring, a line for the log, or for type checkers."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    called = node.value.func if isinstance(node.value, ast.Call) else None
    return isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "log"


def _is_limit(parent: ast.AST, node: ast.AST) -> bool:
    """Whether ``node`` sets a number of the module: another one would do as well."""
    if not isinstance(parent, ast.Module) or not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    numbers = (ast.Constant, ast.Tuple, ast.BinOp, ast.operator, ast.expr_context)
    return all(isinstance(part, numbers) for part in ast.walk(node.value))


def _at(node: ast.AST, path: _Path) -> ast.AST:
    for field, place in path:
        value = getattr(node, field)
        node = value if place < 0 else value[place]
    return node


def _shown(tree: ast.AST, path: _Path) -> _Path:
    """Returns the way to what is shown of a change: its statement, or of a long one the largest short part."""
    start = max(n for n in range(1, len(path) + 1) if isinstance(_at(tree, path[:n]), ast.stmt))
    parts = (path[:n] for n in range(start, len(path)) if isinstance(_at(tree, path[:n]), ast.stmt | ast.expr))
    return next((part for part in parts if len(_line(_at(tree, part))) <= LINE_CHARS), path)


def _line(node: ast.AST) -> str:
    """The first line of a statement, of a condition whatever follows it."""
    return " ".join(ast.unparse(node).split("\n")[0].split())


def _changes(node: ast.AST) -> int:
    """How many changes there are of ``node`` itself."""
    match node:
        case ast.Compare():
            return len(node.ops)
        case ast.BinOp():
            return int(type(node.op) in COMPUTED and not _is_text(node.left) and not _is_text(node.right))
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not() | ast.USub()) | ast.If() | ast.While() | ast.IfExp():
            return 1
        case ast.Constant(value=bool() | int() | float()):
            return 1
        case ast.Call(func=ast.Name(id=name)):
            return int(name in CALLED)
        case ast.Return(value=ast.expr()):
            return int(not (isinstance(node.value, ast.Constant) and node.value.value is None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Break() | ast.Continue() | ast.Delete():
            return 1
    return 0


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _change(tree: ast.Module, path: _Path, change: int) -> None:
    """Change the node at ``path`` of ``tree`` in place."""
    node = _at(tree, path)
    match node:
        case ast.Compare():
            node.ops[change] = COMPARED[type(node.ops[change])]()
        case ast.BinOp():
            node.op = COMPUTED[type(node.op)]()
        case ast.BoolOp():
            node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        case ast.UnaryOp():
            _put(tree, path, node.operand)
        case ast.If() | ast.While() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Constant(value=bool() as value):
            node.value = not value
        case ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case ast.Call(func=ast.Name(id=name) as called):
            called.id = CALLED[name]
        case ast.Return():
            node.value = ast.Constant(None)
        case ast.AugAssign():
            node.op = COMPUTED.get(type(node.op), ast.Add)()
        case ast.Break():
            _put(tree, path, ast.Continue())
        case ast.Continue():
            _put(tree, path, ast.Break())
        case _:
            _put(tree, path, ast.Pass())


def _put(tree: ast.Module, path: _Path, node: ast.AST) -> None:
    parent, (field, place) = _at(tree, path[:-1]), path[-1]
    if place < 0:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[place] = node

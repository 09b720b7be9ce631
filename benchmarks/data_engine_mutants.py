"""Every small change to a module that its tests should notice, tried one at a time in this process."""

from __future__ import annotations

import ast
import copy
import signal
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

SWAPS: dict[type, tuple[type, ...]] = {
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
TIMEOUT_S = 20


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(what changed, mutated source): operators swapped, numbers and truths changed, conditions and calls dropped.

    Annotations are left out, which nothing evaluates, and class bodies, which hold fields only.
    """
    tree = _Bare().visit(ast.parse(source))
    for position, node in enumerate(ast.walk(tree)):
        for change in range(_num_changes(node)):
            mutated = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(mutated)) if i == position)
            before = ast.unparse(target)
            _apply(target, change)
            yield f"line {getattr(node, 'lineno', '?')}: {before}"[:90], ast.unparse(ast.fix_missing_locations(mutated))


class _Bare(ast.NodeTransformer):
    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module == "__future__" else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        assert node.value is not None
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def is_killed(module: ModuleType, mutated: str, tests: list[Callable[[], None]]) -> bool:
    """Run the tests on the module with the mutated code in it, and put the module back."""
    original = dict(vars(module))
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(TIMEOUT_S)
    try:
        exec(compile(mutated, module.__file__ or "", "exec"), vars(module))
        for name, value in original.items():  # classes stay the ones that tests hold
            if isinstance(value, type):
                vars(module)[name] = value
        for test in tests:
            test()
    except Exception:
        return True
    finally:
        signal.alarm(0)
        vars(module).update(original)
    return False


def _num_changes(node: ast.AST) -> int:
    if isinstance(node, ast.Compare):
        return len(SWAPS.get(type(node.ops[0]), ()))
    if isinstance(node, ast.BinOp | ast.BoolOp):
        return len(SWAPS.get(type(node.op), ()))
    if isinstance(node, ast.Constant):
        return int(isinstance(node.value, bool | int | float))
    if isinstance(node, ast.UnaryOp):
        return int(isinstance(node.op, ast.Not | ast.USub | ast.Invert))
    if isinstance(node, ast.If):
        return 2
    is_statement = isinstance(node, ast.Expr | ast.AugAssign) and not isinstance(
        getattr(node, "value", 0), ast.Constant
    )
    return int(is_statement)


def _apply(node: Any, change: int) -> None:
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])][change]()
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)][change]()
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):  # dropped by doing it twice
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.If):
        node.test = ast.Constant(bool(change))
    elif isinstance(node, ast.Expr):
        node.value = ast.Constant(None)
    else:
        node.value = ast.Constant(0)


def _too_long(*_: object) -> None:
    raise TimeoutError

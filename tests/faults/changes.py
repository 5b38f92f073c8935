"""Small changes to a source file, each of which some test should notice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

OTHER_OPERATOR: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
}
OTHER_NAME = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Change:
    """A file's whole text with one change in a function."""

    path: Path
    line: int
    function: str
    description: str
    text: str


def changes_of(path: Path) -> Iterator[Change]:
    """All changes of one file within its functions, from top to bottom; other lines keep their numbers."""
    source = path.read_bytes()
    starts = list(accumulate((len(line) for line in source.splitlines(keepends=True)), initial=0))
    for function, name in _functions(ast.parse(source)):
        for parent in _changeable(function):
            for node, new in _replacements(parent):
                assert node.end_lineno is not None
                assert node.end_col_offset is not None
                first = starts[node.lineno - 1] + node.col_offset
                last = starts[node.end_lineno - 1] + node.end_col_offset
                was = source[first:last].decode()
                padded = new + "\n" * was.count("\n")
                if isinstance(node, ast.expr) and not isinstance(node, ast.Slice):
                    padded = f"({padded})"
                text = (source[:first] + padded.encode() + source[last:]).decode()
                yield Change(path, node.lineno, name, f"{_short(was)} -> {_short(new)}", text)


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node, node.name
        elif isinstance(node, ast.ClassDef):
            yield from ((part, f"{node.name}.{part.name}") for part in node.body if isinstance(part, ast.FunctionDef))


def _changeable(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What the body consists of, without annotations and the insides of f-strings, whose places ast does not know."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.JoinedStr):
            continue
        yield node
        skipped = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        todo[:0] = [part for part in ast.iter_child_nodes(node) if part not in skipped]


def _replacements(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Nodes, this one or its condition, and the code that may stand there instead."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OTHER_OPERATOR:
            yield node, ast.unparse(ast.Compare(left, [OTHER_OPERATOR[type(op)]()], [right]))  # type: ignore[list-item]
        case ast.BoolOp(op=op, values=values):
            yield node, ast.unparse(ast.BoolOp(OTHER_OPERATOR[type(op)](), values))  # type: ignore[arg-type]
            for number in range(len(values)):
                rest = values[:number] + values[number + 1 :]
                yield node, ast.unparse(rest[0] if len(rest) == 1 else ast.BoolOp(op, rest))
        case ast.UnaryOp(operand=operand):
            yield node, ast.unparse(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OTHER_OPERATOR:
            yield node, ast.unparse(ast.BinOp(left, OTHER_OPERATOR[type(op)](), right))  # type: ignore[arg-type]
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, str(value + 1)
        case ast.Slice(lower=lower, upper=upper, step=step):
            if lower:
                yield node, ast.unparse(ast.Slice(None, upper, step))
            if upper:
                yield node, ast.unparse(ast.Slice(lower, None, step))
        case ast.Name(id=name) if name in OTHER_NAME:
            yield node, OTHER_NAME[name]
        case ast.Call(func=func, args=args, keywords=keywords):
            for number in range(len(keywords)):
                yield node, ast.unparse(ast.Call(func, args, keywords[:number] + keywords[number + 1 :]))
            if len(args) > 1 and not any(isinstance(part, ast.Starred) for part in args[:2]):
                yield node, ast.unparse(ast.Call(func, [args[1], args[0], *args[2:]], keywords))
        case ast.ListComp(elt=elt, generators=[one]) | ast.GeneratorExp(elt=elt, generators=[one]) if one.ifs:
            yield node, ast.unparse(type(node)(elt, [ast.comprehension(one.target, one.iter, [], one.is_async)]))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield node, "pass"
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in OTHER_OPERATOR:
            yield node, ast.unparse(ast.AugAssign(target, OTHER_OPERATOR[type(op)](), value))  # type: ignore[arg-type]
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield node, "return None"
        case ast.Continue():
            yield node, "break"
        case ast.Break():
            yield node, "continue"
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr):
                yield test, f"not ({ast.unparse(test)})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:67]}..."

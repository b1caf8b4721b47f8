"""Arithmetic of named scores: a small language, read with Python's grammar and never evaluated by Python."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from draft.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 500
"""Characters of a formula at most."""
DEEPEST = 100
"""Operators and functions within each other at most."""
FUNCTIONS: Mapping[str, tuple[int, int]] = {
    "min": (2, LONGEST),
    "max": (2, LONGEST),
    "abs": (1, 1),
    "exp": (1, 1),
    "log": (1, 1),
    "sqrt": (1, 1),
    "sigmoid": (1, 1),
    "relu": (1, 1),
    "clamp": (3, 3),
}
"""The functions, with the fewest and the most arguments of each."""

_OPERATORS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_LANGUAGE = f"it may have numbers, names, + - * / **, brackets, and {', '.join(FUNCTIONS)}"


def parse(text: str) -> ast.expr:
    """Read a formula and refuse whatever is not arithmetic.

    Args:
        text: The formula, e.g. ``"a - 0.3 * max(b, 0)"``.

    Returns:
        Its tree, which holds nothing but what `evaluate` knows.

    Raises:
        OptionError: It cannot be read, is too long or too deep, or holds something else than arithmetic.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise OptionError(f"the formula must have at most {LONGEST} characters (got {len(text)})")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise OptionError(f"the formula cannot be read: {reason} (got {text!r})", hint=_LANGUAGE) from None
    _check(tree, text, 1)
    return tree


def check_names(tree: ast.expr, known: Sequence[str]) -> None:
    """Check that a formula uses exactly the names there are.

    Args:
        tree: The formula.
        known: The names.

    Raises:
        OptionError: It uses another one, or one of these is not used or means something else in a formula.
    """
    used = {node.id for node in _walk(tree) if isinstance(node, ast.Name)}
    for name in known:
        if name in FUNCTIONS or iskeyword(name):
            raise OptionError(f"{name!r} means something else in a formula", hint="give this part another name")
    for name in sorted(used.difference(known)):
        hint = _did_you_mean(name, known, f"the names are {', '.join(known)}")
        raise OptionError(f"the formula uses a name that is not there (got {name!r})", hint=hint)
    for name in known:
        if name not in used:
            raise OptionError(f"the formula does not use {name!r}", hint="use it, or take it out of `of`")


def evaluate(tree: ast.expr, values: Mapping[str, Tensor]) -> Tensor:
    """Compute a formula, with gradients to all scores in it.

    Args:
        tree: The formula, as `parse` returns it.
        values: At least one score by name, each (B,), all of one dtype and device.

    Returns:
        The result, (B,).
    """
    example = next(iter(values.values()))

    def visit(node: ast.AST) -> Tensor:
        match node:
            case ast.Constant(value=int() | float() as number):
                return example.new_tensor(float(number))
            case ast.Name(id=name):
                return values[name]
            case ast.UnaryOp(operand=operand):
                return -visit(operand)
            case ast.BinOp(left=left, op=operator, right=right):
                return _OPERATORS[type(operator)](visit(left), visit(right))
            case ast.Call(func=ast.Name(id=function), args=arguments):
                return _call(function, [visit(argument) for argument in arguments])
        raise AssertionError(f"no part of the language: {ast.dump(node)}")

    return visit(tree)


def _call(function: str, arguments: Sequence[Tensor]) -> Tensor:
    from functools import reduce

    import torch

    if function == "clamp":
        value, low, high = arguments
        return torch.minimum(torch.maximum(value, low), high)
    if function in ("min", "max"):
        return reduce(torch.minimum if function == "min" else torch.maximum, arguments)
    return getattr(torch, function)(*arguments)


def _check(node: ast.AST, text: str, depth: int) -> None:
    def refused(why: str, hint: str = _LANGUAGE) -> OptionError:
        part = ast.get_source_segment(text, node) or text
        return OptionError(f"the formula {why} (got {part!r})", hint=hint)

    if depth > DEEPEST:
        raise refused(f"must be nested at most {DEEPEST} deep")
    match node:
        case ast.Constant(value=number):
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise refused("must have finite numbers only")
        case ast.Name(id=name):
            if name in FUNCTIONS:
                raise refused("must give a function its arguments", f"write {name}(...)")
        case ast.UnaryOp(op=ast.USub()):
            pass
        case ast.BinOp(op=operator):
            if isinstance(operator, ast.BitXor):
                raise refused("must be arithmetic", "write ** for a power")
            if type(operator) not in _OPERATORS:
                raise refused("must be arithmetic")
        case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]):
            if function not in FUNCTIONS:
                raise refused("uses an unknown function", _did_you_mean(function, list(FUNCTIONS), _LANGUAGE))
            fewest, most = FUNCTIONS[function]
            if not fewest <= len(arguments) <= most:
                count = f"{fewest} argument{'s' * (fewest > 1)}"
                raise refused(f"must give {function} {count if most == fewest else f'at least {count}'}")
        case _:
            raise refused("must be arithmetic")
    for child in _children(node):
        _check(child, text, depth + 1)


def _children(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.Call(args=arguments):
            return list(arguments)
    return []


def _walk(tree: ast.expr) -> Iterator[ast.expr]:
    yield tree
    for child in _children(tree):
        yield from _walk(child)


def _did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else otherwise

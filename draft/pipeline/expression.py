"""Texts with `${...}` in them, taken apart: names of values, calls of resolvers, and what stands around them.

OmegaConf's grammar reads them, its evaluation is not used: ours limits what a file may make, and marks what comes from
the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse as parse_tree
from omegaconf.grammar_visitor import GrammarVisitor

_MARK = "\0"  # stands for an interpolation in a text whose escapes are removed
DEEPEST = 20
"""Levels of `${`, `[` and `{` inside each other that a text may have."""

_REFERENCE = re.compile(r"(\\*)(\$\{out:[^{}]*\})")
_NESTING = re.compile(r"\\*\$\{|[\[{}\]]")


@dataclass(frozen=True)
class Lookup:
    """`${a.b}`.

    Args:
        name: Its name: texts, and what is looked up first.
    """

    name: tuple[Part, ...]


@dataclass(frozen=True)
class Call:
    """`${name:arguments}`.

    Args:
        name: The resolver's name: texts, and what is looked up first.
        arguments: What it is given.
    """

    name: tuple[Part, ...]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Text:
    """Pieces that are joined into one text.

    Args:
        parts: In order.
    """

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Items:
    """A list among arguments.

    Args:
        items: Its items.
    """

    items: tuple[Argument, ...]


@dataclass(frozen=True)
class Entries:
    """A mapping among arguments.

    Args:
        entries: Keys and values.
    """

    entries: tuple[tuple[Argument, Argument], ...]


@dataclass(frozen=True)
class Plain:
    """A value that is written out.

    Args:
        value: Text, a number, a boolean or null.
    """

    value: Any


Part: TypeAlias = "str | Lookup | Call"
Argument: TypeAlias = "Plain | Text | Lookup | Call | Items | Entries"


def parse(text: str) -> Text:
    """Take a text apart.

    Args:
        text: As it stands in a file.

    Returns:
        Its pieces; references to outputs, `${out:stage.output}`, stay texts.

    Raises:
        ValueError: Not readable.
    """
    references: list[str] = []

    def hold(match: re.Match[str]) -> str:
        if len(match[1]) % 2:
            return match[0]
        references.append(match[2])
        return f"{match[1]}${{out:{len(references) - 1}}}"

    held = _REFERENCE.sub(hold, text)
    return _read(held, references, lambda: parse_tree(held))


def parse_argument(text: str) -> Argument:
    """Read a text as one argument of a resolver: a number, a list, a mapping, ...

    Args:
        text: The text.

    Returns:
        What it is.

    Raises:
        ValueError: Not readable.
    """
    return _read(text, [], lambda: parse_tree(text, parser_rule="singleElement", lexer_mode="VALUE_MODE"))


def _read(text: str, references: Sequence[str], tree: Callable[[], Any]) -> Any:
    depth = 0
    for match in _NESTING.finditer(text):
        inward = match[0] in ("[", "{") or (match[0].endswith("${") and len(match[0]) % 2 == 0)
        depth = max(depth + (1 if inward else -1), 0)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
    if _MARK in text:
        raise ValueError("a NUL character")
    try:
        return _Reader(references).visit(tree())
    except GrammarParseError as error:
        raise ValueError(str(error).partition("\n")[0]) from error


class _Reader(GrammarVisitor):
    """Takes OmegaConf's parse tree apart; its base class would evaluate it."""

    def __init__(self, references: Sequence[str]) -> None:
        super().__init__(None, None, None)
        self._references = references

    def visitText(self, ctx: Any) -> Text:
        return self._joined(ctx.getChildren())

    def visitQuotedValue(self, ctx: Any) -> Text:
        return self.visitText(ctx.getChild(1)) if ctx.getChildCount() > 2 else Text(())

    def visitElement(self, ctx: Any) -> Argument:
        return self.visit(ctx.getChild(0))

    def visitListContainer(self, ctx: Any) -> Items:
        return Items(tuple(self._sequence(ctx.getChild(1))) if ctx.getChildCount() > 2 else ())

    def visitDictContainer(self, ctx: Any) -> Entries:
        return Entries(tuple(self.visitDictKeyValuePair(pair) for pair in list(ctx.getChildren())[1:-1:2]))

    def visitDictKeyValuePair(self, ctx: Any) -> tuple[Argument, Argument]:
        return self.visit(ctx.getChild(0)), self.visitElement(ctx.getChild(2))

    def visitInterpolationNode(self, ctx: Any) -> Lookup:
        return Lookup(self._name(list(ctx.getChildren())[1:-1]))

    def visitInterpolationResolver(self, ctx: Any) -> Call | str:
        children: list[Any] = list(ctx.getChildren())
        name, arguments = self._name(children[1].getChildren()), children[3:-1]
        if name == ("out",) and arguments and arguments[0].getText().isdecimal():
            return self._references[int(arguments[0].getText())]
        return Call(name, tuple(self._sequence(arguments[0])) if arguments else ())

    def _createPrimitive(self, ctx: Any) -> Argument:
        children = list(ctx.getChildren())
        if len(children) > 1:
            return self._joined(children)
        if isinstance(children[0], OmegaConfGrammarParser.InterpolationContext):
            part = self.visitInterpolation(children[0])
            return Text((part,)) if isinstance(part, str) else part
        return Plain(super()._createPrimitive(ctx))

    def _sequence(self, ctx: Any) -> list[Argument]:
        """Arguments; the grammar allows commas without one, which OmegaConf has deprecated."""
        children: list[Any] = list(ctx.getChildren())
        if len(children) % 2 == 0 or any(child.getText() == "," for child in children[::2]):
            raise ValueError("a comma without an argument")
        return [self.visitElement(child) for child in children[::2]]

    def _name(self, children: Sequence[Any]) -> tuple[Part, ...]:
        """A name as it is written, with what is looked up first in it."""
        parts: list[Part] = []
        for child in children:
            is_key = isinstance(child, OmegaConfGrammarParser.ConfigKeyContext)
            inner: Any = child.getChild(0) if is_key else child
            nested = isinstance(inner, OmegaConfGrammarParser.InterpolationContext)
            parts.append(self.visitInterpolation(inner) if nested else inner.getText())
        return tuple(parts)

    def _joined(self, children: Sequence[Any]) -> Text:
        """Texts without their escapes, and what stands between them."""
        parts: list[Part] = []

        def visit(child: Any) -> str:
            parts.append(self.visit(child.getChild(0)))
            return _MARK

        reader = _Unescape(visit)
        first, *others = reader.text(list(children)).split(_MARK)
        pieces: list[Part] = [first]
        for part, text in zip(parts, others, strict=True):
            pieces += [part, text]
        return Text(tuple(piece for piece in pieces if piece != ""))


class _Unescape(GrammarVisitor):
    """Joins tokens without their escapes, with a mark for each interpolation."""

    def __init__(self, mark: Callable[[Any], str]) -> None:
        super().__init__(None, None, None)
        self._mark = mark

    def visitInterpolation(self, ctx: Any) -> str:
        return self._mark(ctx)

    def text(self, children: list[Any]) -> str:
        return str(self._unescape(children))


def split_name(name: str) -> tuple[int, Sequence[str]]:
    """Split the name of a value.

    Args:
        name: ``"a.b[0]"``; with leading dots it is relative.

    Returns:
        The number of leading dots, and the keys.

    Raises:
        ValueError: Not readable.

    Example:
        >>> split_name("..a[0].b")
        (2, ['a', '0', 'b'])
    """
    rest = name.lstrip(".")
    keys = re.findall(r"[^.\[\]]+", rest)
    if rest and re.sub(r"\[([^.\[\]]+)\]", r".\1", rest).lstrip(".").split(".") != keys:
        raise ValueError(f"not the name of a value (got {name!r})")
    return len(name) - len(rest), keys

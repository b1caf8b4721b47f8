"""YAML 1.2's scalars on top of PyYAML's reader, with limits on what a file may hold."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

DEEPEST = 40
"""Levels of lists and mappings inside each other."""

DIGITS = 400
"""Most characters of a number; more is beyond every float."""

_ROOM = 400_000
"""Characters that anchors may make of a file, beyond what stands in it."""

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    "str": (yaml.ScalarNode,),
    "int": (yaml.ScalarNode,),
    "float": (yaml.ScalarNode,),
    "bool": (yaml.ScalarNode,),
    "null": (yaml.ScalarNode,),
    "seq": (yaml.SequenceNode,),
    "map": (yaml.MappingNode,),
}
"""The tags that a file may have, those of JSON, and the nodes that they may stand at."""


class Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema, and with limits on depth and size."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _KINDS
    }
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Make a node, unless it is too deep."""
        if self._depth > DEEPEST:
            raise ComposerError(
                None, None, f"more than {DEEPEST} levels inside each other", self.peek_event().start_mark
            )
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_scalar_node(self, anchor: Any) -> Any:
        """Make a scalar of whole characters."""
        node = super().compose_scalar_node(anchor)
        try:
            # JSON writes a character beyond 16 bits as a pair of halves.
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ComposerError(None, None, "half a character (U+D800 to U+DFFF)", node.start_mark) from None
        if "\0" in node.value:
            raise ComposerError(None, None, "the character NUL", node.start_mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make a value, where the tag fits."""
        kind = _KINDS.get(node.tag.removeprefix(_TAG))
        if kind is None or not isinstance(node, kind):
            shown = node.tag.replace(_TAG, "!!")
            raise ConstructorError(None, None, f"the tag {shown} is not read here", node.start_mark)
        return super().construct_object(node, deep)


def _scalar(loader: Loader, node: yaml.ScalarNode) -> Any:
    """A number, a boolean or null, also where it has its tag written out."""
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    problem = ""
    if kind in ("int", "float") and len(text) > DIGITS:
        problem = f"a number of {len(text)} characters, more than {DIGITS}"
    elif not _PATTERNS[kind].match(text) and not (kind == "float" and _PATTERNS["int"].match(text)):
        problem = f"not of the kind !!{kind}: {text!r}"
    elif kind == "null":
        return None
    elif kind == "bool":
        return text.lower() == "true"
    elif kind == "float" and not _PATTERNS["int"].match(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    else:
        # One with a leading zero is decimal in YAML 1.2.
        number = int(text, 16) if text.startswith("0x") else int(text)
        if abs(number) <= sys.float_info.max:
            return float(number) if kind == "float" else number
        problem = "a number beyond 1.8e308"
    raise ConstructorError(None, None, problem, node.start_mark)


_PATTERNS: dict[str, re.Pattern[str]] = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _PATTERNS[_tag] = re.compile(rf"(?:{_pattern})\Z")
    Loader.add_implicit_resolver(f"{_TAG}{_tag}", _PATTERNS[_tag], list(_first))
    if _tag != "merge":
        Loader.add_constructor(f"{_TAG}{_tag}", _scalar)


@dataclass
class Room:
    """What the values of a file may take, with each alias written out.

    Args:
        left: Characters.
        inside: The nodes that the current one is in.
    """

    left: int
    inside: list[yaml.Node] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Room:
        """The room for a text: a file without aliases never needs it."""
        return cls(2 * len(text) + _ROOM)

    def enter(self, node: yaml.Node) -> None:
        """Count a node, and refuse what is too much, too deep or in itself."""
        self.left -= 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        problem = "anchors make too much of the file" if self.left < 0 else ""
        if any(node is outer for outer in self.inside):
            problem = "an anchor contains itself"
        elif len(self.inside) > DEEPEST:
            problem = f"more than {DEEPEST} levels inside each other"
        if problem:
            raise ComposerError(None, None, problem, node.start_mark)
        self.inside.append(node)

    def leave(self) -> None:
        """Go back to the node around."""
        self.inside.pop()

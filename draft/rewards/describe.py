"""Rewards in words: one-line summaries without importing, and option tables and YAML once loaded."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from draft.rewards.discovery import Entry
from draft.rewards.reward import Reward
from draft.rewards.words import schema_bounds, schema_type_in_words


@dataclass(frozen=True)
class Option:
    """One parameter of a reward.

    Args:
        name: The key in a pipeline file.
        type: Its type in words: ``"integer"``, ``"text"``, ``"list of text"``, ...
        default: Its default as YAML; ``"required"`` if there is none.
        bounds: Its bounds in words, or nothing.
        description: What it does.
    """

    name: str
    type: str
    default: str
    bounds: str
    description: str


def summary(entry: Entry) -> str:
    """The first sentence of a reward's docstring, read from its source without importing the plugin.

    Args:
        entry: The reward's entry point.

    Returns:
        One line; empty if the source cannot be found or read that way.
    """
    source = _source(entry.module)
    if source is None:
        return ""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        # Broken source is told when the reward is used; a list must not stop at it.
        return ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _class_name(node) == entry.name:
            return _first_line(ast.get_docstring(node) or "")
    return ""


def headline(reward: type[Reward]) -> str:
    """The first sentence of a loaded reward's docstring."""
    return _first_line(inspect.getdoc(reward) or "")


def facts(reward: type[Reward]) -> list[tuple[str, str]]:
    """What a reward says of itself beside its docstring: source, typical scores, licence and memory of its weights.

    Args:
        reward: The reward's class.

    Returns:
        A name and a text for each that it says something of.
    """
    entries = (
        ("source", reward.cite),
        ("typical scores", reward.typical),
        ("licence of the weights", reward.licence),
        ("memory", reward.memory),
    )
    return [(name, text) for name, text in entries if text]


def options(reward: type[Reward]) -> list[Option]:
    """The parameters of a reward with types, defaults, bounds and descriptions.

    Args:
        reward: The reward's class.

    Returns:
        One `Option` for each field, in the order of the class.
    """
    schema = reward.model_json_schema()
    listed = []
    for name, field in reward.model_fields.items():
        entry = schema["properties"][name]
        default = "required" if field.is_required() else _yaml(field.get_default(call_default_factory=True))
        kind = schema_type_in_words(entry, schema)
        listed.append(Option(name, kind, default, schema_bounds(entry), field.description or ""))
    return listed


def yaml_example(reward: type[Reward], terms: Mapping[str, str] | None = None) -> str:
    """A term of a pipeline's `rewards:` with every option at its default, ready to paste.

    Args:
        reward: The reward's class.
        terms: Keys of the term besides those options, with their values in YAML.

    Returns:
        YAML.
    """
    lines = ["rewards:", f"  {reward.name}:", *(f"    {key}: {value}" for key, value in (terms or {}).items())]
    lines.append("    weight: 1.0")
    for option in options(reward):
        value = "???   # required" if option.default == "required" else option.default
        lines.append(f"    {option.name}: {value}")
    return "\n".join(lines)


def _source(module: str) -> Path | None:
    # Only the topmost package is looked up: finding a submodule's spec would import its parents.
    top, *rest = module.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    base = Path(spec.origin)
    if not rest:
        return base
    folder = base.parent.joinpath(*rest)
    return next((file for file in (folder.with_suffix(".py"), folder / "__init__.py") if file.is_file()), None)


def _class_name(node: ast.ClassDef) -> str:
    for line in node.body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        named = any(isinstance(target, ast.Name) and target.id == "name" for target in targets)
        value = getattr(line, "value", None)
        if named and isinstance(value, ast.Constant):
            return str(value.value)
    return ""


def _first_line(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


def _yaml(value: Any) -> str:
    # JSON is YAML; plain words need no quotes, and nulls are written as YAML's.
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)

"""A YAML file as plain data that remembers the line of every key.

The scalars are YAML 1.2's, as OmegaConf reads numbers: `1e-4` is a number (PyYAML makes it text), while `no`, `on` and
`12:30` stay text (YAML 1.1 makes them false, true and 750).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from draft.errors import ConfigError, DraftError
from draft.pipeline.reader import Loader, Room

Keys: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of the file to a value."""


@dataclass(frozen=True)
class Entered:
    """A value that came from the environment, alone or as a part.

    Args:
        value: The value.
        source: The text that makes it, with the environment variable by its name.
    """

    value: Any
    source: str


@dataclass
class Document:
    """The content of a pipeline file, with the place of every key.

    Args:
        name: The file as the user named it.
        data: Its content: mappings, lists and scalars.
        lines: Where a key or list item is, to its line, counted from 1.
        places: Where a value is, to where it comes from instead of the file: an override of the command line.
        environment: Where in the data something came from the environment, to what that is.
    """

    name: str
    data: dict[str, Any]
    lines: dict[Keys, int] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)
    environment: dict[Keys, Entered] = field(default_factory=dict)

    def place(self, path: Keys) -> str:
        """Where a value comes from: ``"file:line"`` or ``"command line, 'k=v'"``; the nearest known parent's place."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name

    def move(self, old: Keys, new: Keys) -> None:
        """Let what is at one place, and inside it, come from where another place did."""
        for table in (self.lines, self.places, self.environment):
            for path in [path for path in table if path[: len(old)] == old]:
                table[*new, *path[len(old) :]] = table.pop(path)  # type: ignore[assignment]

    def forget_environment(self, keys: Keys) -> None:
        """Forget that what was at a place, and inside it, came from the environment."""
        for path in [path for path in self.environment if path[: len(keys)] == keys]:
            del self.environment[path]

    def overridden(self, path: Keys) -> bool:
        """Whether the value at `path` comes from the command line."""
        return any(path[:length] in self.places for length in range(len(path) + 1))


def parse_document(text: str, name: str) -> tuple[Document, list[DraftError]]:
    """Parse a pipeline file.

    Args:
        text: The file's content.
        name: The file as the user named it, for messages.

    Returns:
        The document, and an error for every duplicate key.

    Raises:
        ConfigError: Not YAML, empty, or not a mapping.
    """
    document = Document(name, {})
    errors: list[DraftError] = []
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:  # before the construction, which rewrites nodes where keys are merged with <<
            _mark(node, (), document, errors, Room.of(text))
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = name if mark is None else f"{name}:{mark.line + 1}"
        syntax = isinstance(error, ScannerError | ParserError)
        quote = 'text that begins with { [ * & ! | > % @ or has ": " needs quotes' if syntax else ""
        raise ConfigError(f"not readable as YAML: {error.problem or error}", where=place, hint=quote) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"not readable as YAML: {what}", where=name) from None
    if node is None or data is None:
        raise ConfigError("the file is empty", where=name, hint="a pipeline has name, seed, vars and stages")
    if not isinstance(data, dict):
        raise ConfigError(f"a pipeline must be a mapping (got a {type(data).__name__})", where=f"{name}:1")
    document.data = _text_keys(data)
    return document, errors


def parse_value(text: str) -> Any:
    """The value of an override, read as YAML: ``"1e-4"`` is a number, ``"[a, b]"`` a list, ``""`` is null.

    Args:
        text: What follows ``=``.

    Returns:
        Plain data.

    Raises:
        ConfigError: Not YAML.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _mark(node, (), Document("", {}), [], Room.of(text))
        return _text_keys(loader.construct_document(node))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"not readable as YAML: {problem} (got {text!r})") from None


def is_prompt(keys: Keys) -> bool:
    """Whether a text at a place of a file is one of a stage's prompts; options of rewards are not."""
    inside = keys[2:]
    return (
        keys[:1] == ("stages",)
        and inside[-2:-1] == ("prompts",)
        and isinstance(inside[-1], int)
        and "rewards" not in inside
    )


def value_at(data: Any, path: Keys) -> Any:
    """The value at a path in plain data; None where there is nothing."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def put(data: Any, path: Keys, value: Any) -> None:
    """Set the value at a path of keys in plain data; mappings on the way that are not there are made."""
    *parents, last = path
    for part in parents:
        if isinstance(data, dict) and not isinstance(data.get(part), dict | list):
            data[part] = {}
        data = data[part]
    data[last] = value


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `parse_document` reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _text_keys(data: Any) -> Any:
    # A label such as 512 is a number to YAML; here every key is text.
    if isinstance(data, dict):
        return {key if isinstance(key, str) else json.dumps(key): _text_keys(value) for key, value in data.items()}
    return [_text_keys(item) for item in data] if isinstance(data, list) else data


class _Dumper(yaml.SafeDumper):
    """SafeDumper that never writes aliases and quotes whatever either YAML version would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    plain = not any(pattern.match(value) for _, pattern in _NUMBERS)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_NUMBERS = [pair for pairs in Loader.yaml_implicit_resolvers.values() for pair in pairs]
_Dumper.add_representer(str, _text)


def _mark(node: yaml.Node, path: Keys, document: Document, errors: list[DraftError], room: Room) -> None:
    room.enter(node)
    if isinstance(node, yaml.MappingNode):
        defined: set[Keys] = set()
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.start_mark)
            line = key_node.start_mark.line + 1
            key_path = (*path, key)
            if key_path in defined:
                first = f"the first is in line {document.lines[key_path]}"
                errors.append(ConfigError(f"duplicate key {key!r}", where=f"{document.name}:{line}", hint=first))
            defined.add(key_path)
            document.lines[key_path] = line
            _mark(value_node, key_path, document, errors, room)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            _mark(item, (*path, index), document, errors, room)
    room.leave()

"""The base models: which modules they have, of which shapes, and what the original code calls them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from draft.adapters.changes import Change, inputs_of, outputs_of


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A model that adapters are made for.

    Args:
        key: Its name in the data, for example `sd35_medium`.
        family: The family of `Adapter.family`.
        name: What people call it.
        modules: Weight shapes (out, in) or (out, in, k, k) of every linear layer and convolution, by module path.
        original: The path that the model's original code gives a module, within its part. Several modules share one
            where the original holds q, k and v in one matrix; text encoders have none.
    """

    key: str
    family: str
    name: str
    modules: Mapping[str, tuple[int, ...]]
    original: Mapping[str, str]

    def fits(self, module: str, change: Change) -> bool:
        """Whether the model has the module, and its weight's shape is the one that the change has.

        Args:
            module: The module's path.
            change: Its change.

        Returns:
            True if both agree; a linear layer and a 1x1 convolution count as the same.
        """
        shape = self.modules.get(module)
        if shape is None:
            return False
        columns, *kernel = inputs_of(change)
        return _flat(shape) == _flat((outputs_of(change), columns, *kernel))


@cache
def base_models() -> tuple[BaseModel, ...]:
    """All base models that Draft knows, from `data/models.json`, which says where they come from.

    Returns:
        Models in the order of the data.
    """
    models = _document()["models"]
    by_key = {
        model.key: model for family in sorted({e["family"] for e in models.values()}) for model in of_family(family)
    }
    return tuple(by_key[key] for key in models)


@cache
def of_family(family: str) -> tuple[BaseModel, ...]:
    """The base models of a family; the others, of which each takes a while, are not made.

    Args:
        family: A family's name.

    Returns:
        Models in the order of the data; none of a family that is not in it.
    """
    document = _document()
    encoders = {name: dict(_expanded(patterns)) for name, patterns in document["encoders"].items()}
    entries = {key: entry for key, entry in document["models"].items() if entry["family"] == family}
    return tuple(_base_model(key, entry, encoders) for key, entry in entries.items())


@cache
def _document() -> dict[str, Any]:
    return json.loads(data("models.json"))


def data(name: str) -> str:
    """The text of a file that is shipped with this package.

    Args:
        name: Its path within `draft/adapters/data`.

    Returns:
        The text.
    """
    return resources.files("draft.adapters").joinpath("data", *name.split("/")).read_text(encoding="utf-8")


def _base_model(key: str, entry: Mapping[str, Any], encoders: Mapping[str, Mapping[str, tuple[int, ...]]]) -> BaseModel:
    modules: dict[str, tuple[int, ...]] = {}
    original: dict[str, str] = {}
    for part, patterns in entry["modules"].items():
        rules = [(_compiled(ours), theirs) for ours, theirs in entry["original"].items()]
        for path, shape in _expanded(patterns):
            modules[f"{part}.{path}"] = shape
            for pattern, theirs in rules:
                match = pattern.fullmatch(path)
                if match:
                    original[f"{part}.{path}"] = theirs.format(**match.groupdict())
                    break
    for part, encoder in entry["encoders"].items():
        modules |= {f"{part}.{path}": shape for path, shape in encoders[encoder].items()}
    return BaseModel(key, entry["family"], entry["name"], modules, original)


def _expanded(patterns: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Write out the packed names: `{a,b}` stands for one component of the path, a or b."""
    for pattern, shape in patterns.items():
        options = [part.strip("{}").split(",") for part in re.split(r"\.(?![^{]*\})", pattern)]
        sizes = tuple(int(size) for size in shape.split("x"))
        for chosen in itertools.product(*options):
            yield ".".join(chosen), sizes


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *(size for size in shape[2:] if size != 1))


def _compiled(pattern: str) -> re.Pattern[str]:
    """A rule's left side: `{i}` is a number, `{rest}` anything, `{q,k,v}` one of the three."""
    escaped = re.escape(pattern)
    escaped = escaped.replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", r"(?P<rest>.+)")
    return re.compile(re.sub(r"\\\{([\w,]+)\\\}", lambda match: f"(?:{match[1].replace(',', '|')})", escaped))

"""A reward described to another environment: its class as plain values, and what its options become."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic_core import to_jsonable_python

from draft.errors import DraftError, PluginError
from draft.isolation.failures import encode_error
from draft.requirements import DISTRIBUTION
from draft.rewards.extensions import named_models
from draft.rewards.loading import find_entry, find_reward
from draft.rewards.packages import package_of
from draft.rewards.parts import part_options, walk_reward
from draft.rewards.reward import Reward
from draft.rewards.terms import build_reward, reward_source

CARD = ("licence", "typical", "memory")
"""Attributes of a reward's class that only its card shows."""


def describe(use: str, options: Mapping[str, Any], *, where: str, card: bool = False) -> dict[str, Any]:
    """What another environment must know of a reward to check a pipeline with it.

    Args:
        use: The reward's name, or ``"distribution:name"``.
        options: Its options as the pipeline has them.
        where: Their place, for errors.
        card: Whether what `draft rewards show` says of it is wanted, too.

    Returns:
        The class's attributes and fields, the versions of what it runs with, and either `options`, complete with
        defaults, the folders of registered models among them, the files of its source and its packages, or `errors`.

    Raises:
        PluginError: There is no such reward here, or no PyTorch.
    """
    reward, entry = find_reward(use), find_entry(use)
    try:
        versions = {DISTRIBUTION: version(DISTRIBUTION), "torch": version("torch"), entry.dist: entry.version}
    except PackageNotFoundError as error:
        raise PluginError(f"the package {error.name!r} is not installed") from None
    described = {
        "answer": "described",
        "class": reward.__name__,
        "doc": inspect.getdoc(reward) or "",
        "name": reward.name,
        "cite": reward.cite,
        "stand_in": None if reward.stand_in is None else to_jsonable_python(dict(reward.stand_in)),
        "fields": [_field(name, reward) for name in reward.model_fields],
        "parts": part_options(reward),
        "versions": versions,
    }
    if card:
        described["package"] = entry.source
        described["schema"] = reward.model_json_schema()
        described |= {name: getattr(reward, name) for name in CARD}
    try:
        built = build_reward(use, options, where=where)
    except DraftError as error:
        return described | {"errors": encode_error(error)}
    plain, models = built.model_dump(mode="json"), named_models()
    return described | {
        "options": plain,
        # Of a reward made of others these depend on the options.
        "differentiable": built.differentiable,
        "per_image": built.per_image,
        "uses_prompt": built.uses_prompt,
        "sources": [(keys, str(reward_source(type(part)))) for keys, part in walk_reward(built)],
        "packages": [(keys, _package(type(part))) for keys, part in walk_reward(built)],
        "models": {key: str(models[value].path) for key, value in _texts(plain, "") if value in models},
    }


def _package(reward: type[Reward]) -> dict[str, Any]:
    package = package_of(reward)
    files = {name: str(path) for name, path in package.files.items()}
    return {"name": package.name, "version": package.version, "files": files}


def _field(name: str, reward: type[Reward]) -> dict[str, Any]:
    field = reward.model_fields[name]
    entry = {"name": name, "description": field.description or ""}
    if not field.is_required():
        entry["default"] = to_jsonable_python(field.get_default(call_default_factory=True))
    return entry


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for part, item in inner:
        yield from _texts(item, f"{key}.{part}" if key else str(part))

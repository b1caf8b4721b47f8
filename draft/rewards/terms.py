"""Reward terms of a pipeline: from a mapping of options to a checked reward with its weight, and back."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from draft.errors import ConfigError, ConfigErrors, DraftError, did_you_mean
from draft.rewards.calls import Called, calling
from draft.rewards.loading import find_reward, recorded_name
from draft.rewards.reward import Reward, Term
from draft.rewards.words import MISSING, UNKNOWN, expected, message, shown

_REFUSED = {
    "every": ("is not available yet", "leave it out"),
    "isolated": ("is for the rewards of a pipeline", "write it in a pipeline file"),
}


class Maker(Protocol):
    """What makes a reward of its name and its own parameters, as `build_reward` does."""

    def __call__(self, name: str, options: Mapping[str, Any], /, *, where: str) -> Reward:
        """Make it; `where` is the place of its options, for errors."""
        ...


def build_term(label: str, options: Mapping[str, Any], *, where: str = "", make: Maker | None = None) -> Term:
    """Make one term of a weighted sum from a pipeline's mapping.

    Args:
        label: The term's label, which is also the reward's name where `use` is not given.
        options: `use`, `weight`, `device` and the reward's own parameters.
        where: The place in the file, e.g. ``"stages.train.rewards.jpeg"``; errors add the field's name.
        make: What makes the reward; None: `build_reward`.

    Returns:
        The term with its validated reward.

    Raises:
        ConfigErrors: Options are wrong; all of them, each with its place.
    """
    place = where or f"rewards.{label}"
    reward_options = dict(options)
    errors: list[DraftError] = []
    name, weight, device = (
        reward_options.pop("use", label),
        reward_options.pop("weight", 1.0),
        reward_options.pop("device", ""),
    )
    for key, (why, hint) in _REFUSED.items():
        if reward_options.pop(key, None) is not None:
            errors.append(ConfigError(f"{key!r} {why}", where=f"{place}.{key}", hint=hint))
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        errors.append(ConfigError(f"must be a finite number (got {weight!r})", where=f"{place}.weight"))
    if not isinstance(device, str):
        errors.append(ConfigError(f"must be a device such as 'cuda:1' (got {device!r})", where=f"{place}.device"))
    reward = None
    if not isinstance(name, str):
        errors.append(ConfigError(f"must be the name of a reward (got {name!r})", where=f"{place}.use"))
    else:
        try:
            reward = (make or build_reward)(name, reward_options, where=place)
        except ConfigErrors as error:
            errors += error.errors
        except DraftError as error:
            error.where = error.where or (f"{place}.use" if "use" in options else place)
            errors.append(error)
    if errors or reward is None:
        raise errors[0] if len(errors) == 1 else ConfigErrors(errors)
    return Term(label=label, reward=reward, weight=float(weight), device=device)


def build_reward(name: str, options: Mapping[str, Any], *, where: str = "") -> Reward:
    """Make a reward from its name and its own parameters.

    Args:
        name: The reward's name, or ``"distribution:name"``.
        options: The reward's own parameters.
        where: Where they were written, for errors.

    Returns:
        The reward, validated.

    Raises:
        ConfigErrors: Parameters are unknown or out of bounds; all of them, each with its place.
    """
    reward = find_reward(name)
    # In JSON mode strictness still lets a list become a tuple, and "50" is refused as an integer.
    given = json.loads(json.dumps(dict(options), default=str))
    try:
        return _validated(reward, given)
    except ValidationError as error:
        findings = error.errors()
    if sum(_as_text(given, finding) for finding in findings):
        try:
            return _validated(reward, given)
        except ValidationError as error:
            findings = error.errors()
    errors = [_explain(finding, reward, where) for finding in findings]
    raise errors[0] if len(errors) == 1 else ConfigErrors(errors)


def _validated(reward: type[Reward], given: Mapping[str, Any]) -> Reward:
    text = json.dumps(given)
    with calling(
        Called(f"reward {reward.name!r}", lambda: [reward.__module__]), "checking its options", passing=ValidationError
    ):
        return reward.model_validate_json(text, strict=True)


def _as_text(given: Any, finding: Mapping[str, Any]) -> bool:
    """Make a number text where an option is text: whoever writes ``target: 281`` means ``"281"``.

    Args:
        given: The options; changed in place.
        finding: One of pydantic's.

    Returns:
        Whether something was changed.
    """
    number = finding["input"]
    if finding["type"] != "string_type" or isinstance(number, bool) or not isinstance(number, int | float):
        return False
    container = key = None
    for part in finding["loc"]:
        if _has(given, part):  # else it names one of the types that the option may have
            container, key, given = given, part, given[part]
    if container is None or given != number:
        return False
    container[key] = str(number)
    return True


def _has(container: Any, key: int | str) -> bool:
    if isinstance(container, list):
        return isinstance(key, int) and key < len(container)
    return isinstance(container, dict) and key in container


def reward_config(term: Term) -> dict[str, Any]:
    """A term as plain JSON values: what a fingerprint must see (never its label or its device)."""
    return {"use": recorded_name(type(term.reward)), "weight": term.weight, **term.reward.model_dump(mode="json")}


def reward_source(reward: type[Reward]) -> Path:
    """The file of the module that defines a reward.

    Args:
        reward: The reward's class.

    Returns:
        The path of its source.
    """
    return Path(inspect.getfile(reward)).resolve()


def _explain(detail: Any, reward: type[Reward], where: str) -> DraftError:
    field = ".".join(str(part) for part in detail["loc"])
    place = ".".join(part for part in (where, field) if part)
    got = detail["input"]
    if isinstance(cause := detail.get("ctx", {}).get("error"), DraftError):
        cause.where = place
        return cause
    if detail["type"] in UNKNOWN:
        known = list(reward.model_fields)
        listed = f"it has {', '.join(known)}" if known else "it has no options"
        return ConfigError(
            f"reward {reward.name!r} has no option {field!r}",
            where=place,
            hint=did_you_mean(field, known, otherwise=listed),
        )
    if detail["type"] in MISSING:
        return ConfigError(
            f"reward {reward.name!r} needs the option {field!r}",
            where=place,
            hint=reward.model_fields[field].description or "" if field in reward.model_fields else "",
        )
    what = f"must be {words}" if (words := expected(detail)) else message(detail)
    return ConfigError(f"{what} (got {shown(got)})", where=place)

"""Rewards made of other rewards: the option that holds them, and the way to each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import PlainSerializer, PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from draft.errors import ConfigErrors, DraftError, OptionError
from draft.rewards.calls import Called
from draft.rewards.loading import name_of
from draft.rewards.reward import RESERVED, Reward
from draft.rewards.terms import build_reward

_PARTS = object()


def part_options(reward: type[Reward]) -> list[str]:
    """The options of a reward that hold other rewards."""
    return [name for name, field in reward.model_fields.items() if any(mark is _PARTS for mark in field.metadata)]


def walk_reward(reward: Reward) -> Iterator[tuple[tuple[str, ...], Reward]]:
    """A reward and all that it is made of.

    Args:
        reward: Any reward.

    Yields:
        The keys that lead to each, and the reward: first itself with none, then its parts, each before its own.
    """
    yield (), reward
    for option in part_options(type(reward)):
        for label, part in getattr(reward, option).items():
            for keys, nested in walk_reward(part):
                yield (option, label, *keys), nested


def called(label: str, reward: Reward) -> Called:
    """A reward as what is called, for `draft.rewards.calls`: its own modules and those of its parts.

    Args:
        label: The term's label, or the reward's name where there is no term.
        reward: The reward.

    Returns:
        Who is named where the call goes wrong.
    """
    return Called(f"reward {label!r}", lambda: [type(each).__module__ for _, each in walk_reward(reward)])


def without_gradient(reward: Reward) -> list[tuple[tuple[str, ...], Reward]]:
    """Why a reward is not differentiable: the innermost parts that are not, else itself.

    Args:
        reward: Any reward.

    Returns:
        The keys that lead to each, and the reward; nothing where `reward` is differentiable.
    """
    if reward.differentiable:
        return []
    inner = [
        ((option, label, *keys), nested)
        for option in part_options(type(reward))
        for label, part in getattr(reward, option).items()
        for keys, nested in without_gradient(part)
    ]
    return inner or [((), reward)]


def _build(value: Any) -> dict[str, Reward]:
    if not isinstance(value, Mapping) or not value:
        raise OptionError(f"must be a mapping of names to rewards (got {value!r})", hint="e.g. {a: {use: jpeg}}")
    parts: dict[str, Reward] = {}
    wrong: list[DraftError] = []
    for label, options in value.items():
        try:
            parts[label] = _part(label, options)
        except ConfigErrors as errors:
            wrong += errors.errors
        except DraftError as error:
            error.where = error.where or (
                f"{label}.use" if isinstance(options, Mapping) and "use" in options else label
            )
            wrong.append(error)
    if wrong:
        # pydantic collects them with what else is wrong, and puts the way to this option before each one's place.
        details = [
            InitErrorDetails(
                type=PydanticCustomError("reward", "{what}", {"what": error.what, "error": error}),
                loc=tuple(error.where.split(".")),
                input=None,
            )
            for error in wrong
        ]
        raise ValidationError.from_exception_data("rewards", details)
    return parts


def _part(label: Any, options: Any) -> Reward:
    if isinstance(options, Reward):
        return options
    if not isinstance(label, str) or not label.isidentifier():
        raise OptionError(f"a part's name must be a letter or _, then letters, digits and _ (got {label!r})")
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"must be a mapping of a reward's options (got {options!r})", where=label)
    reward_options = dict(options or {})
    name = reward_options.pop("use", label)
    if not isinstance(name, str):
        raise OptionError(f"must be the name of a reward (got {name!r})", where=f"{label}.use")
    if reserved := [key for key in RESERVED if key in reward_options]:
        raise OptionError(
            f"{reserved[0]!r} belongs to a whole term, not to a part of one",
            where=f"{label}.{reserved[0]}",
            hint="drop it; the reward that contains it decides how it counts",
        )
    return build_reward(name, reward_options, where=label)


def _dump(parts: Mapping[str, Reward]) -> dict[str, Any]:
    return {label: {"use": name_of(type(part)), **part.model_dump(mode="json")} for label, part in parts.items()}


Parts: TypeAlias = Annotated[
    dict[str, Reward],
    PlainValidator(_build, json_schema_input_type=dict[str, dict[str, Any] | None]),
    PlainSerializer(_dump),
    _PARTS,
]
"""The type of an option that holds rewards by name, each written as in a pipeline: `use` and the reward's own options.

Fingerprints, rehearsals and the check for gradients look into such an option. `differentiable` and `per_image` are up
to the class: a property of that name answers for its parts.
"""

"""Rewards at full size or, on request, on the small embedded models that stand in for their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from draft.errors import ConfigError, ResourceError
from draft.rewards.loading import find_reward
from draft.rewards.parts import part_options, walk_reward
from draft.rewards.reward import MODEL_OPTIONS, Reward
from draft.rewards.terms import build_reward


def choose_reward(name: str, options: Mapping[str, Any], *, stand_in: bool) -> Reward:
    """Make a reward from its name and options, with its stand-in for the rest if asked for.

    Args:
        name: The reward's name, or ``"distribution:name"``.
        options: The reward's own parameters; they win over the stand-in's.
        stand_in: Whether what is not given comes from its `stand_in`, and from those of the rewards it is made of.

    Returns:
        The reward, validated.

    Raises:
        DraftError: Unknown or wrong options, or a reward that names weights and declares no stand-in.
    """
    return build_reward(name, _small(name, options) if stand_in else options, where=name)


@contextmanager
def offering_stand_in(reward: Reward) -> Iterator[None]:
    """Add `--stand-in` to the hint of a reward whose weights this machine lacks, where that would help.

    Args:
        reward: The reward that is loaded inside the block.

    Raises:
        ResourceError: The one raised inside, with a longer hint.
    """
    try:
        yield
    except ResourceError as error:
        full_size = [
            option
            for _, part in walk_reward(reward)
            for option, value in (part.stand_in or {}).items()
            if getattr(part, option) != value
        ]
        if full_size:
            offer = "--stand-in uses the small embedded models instead"
            error.hint = f"{error.hint}; or {offer}" if error.hint else offer
        raise


def _small(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    kind = find_reward(name)
    named = [option for option in kind.model_fields if _names_weights(option) and option not in options]
    if kind.stand_in is None and named:
        raise ConfigError(
            f"reward {kind.name!r} has no stand-in",
            where=name,
            hint=f"give its class a `stand_in`, or set {named[0]}",
        )
    chosen = {**(kind.stand_in or {}), **options}
    for option in part_options(kind):
        parts = chosen.get(option)
        if isinstance(parts, Mapping):
            chosen[option] = {label: _small_part(label, part) for label, part in parts.items()}
    return chosen


def _small_part(label: str, part: Any) -> Any:
    options = {} if part is None else part
    if not isinstance(options, Mapping) or not isinstance(options.get("use", label), str):
        return part  # the option's validator reports what is wrong with it
    use = options.get("use", label)
    return {"use": use, **_small(use, {key: value for key, value in options.items() if key != "use"})}


def _names_weights(option: str) -> bool:
    return any(option == word or option.endswith(f"_{word}") for word in MODEL_OPTIONS)

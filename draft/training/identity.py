"""What decides a training's result, as flat settings: which checkpoint it may go on from, and what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from draft.marks import Extends, Holds, Inert, leaves
from draft.prompts import prompts_digest
from draft.rewards.loading import recorded_name
from draft.rewards.reward import Term
from draft.training.base_adapters import FRESH, AdapterFiles
from draft.training.settings import TrainSettings
from draft.types import Prompts


@dataclass(frozen=True)
class Identity:
    """Everything that decides a training's result.

    Args:
        decisive: Dotted key to its value, numbers as JSON text and all others as digests, since checkpoints and headers
            hold them; another value is another training.
        extends: Those of which another value may go on from the same checkpoint, `max_steps`.
        rounding: Those that decide how the same mathematics is computed, so that rounding may differ.
    """

    decisive: Mapping[str, str]
    extends: Mapping[str, str]
    rounding: Mapping[str, str]

    def state(self) -> dict[str, dict[str, str]]:
        """The same as plain mappings, for a checkpoint."""
        return {part: dict(values) for part, values in asdict(self).items()}

    @classmethod
    def restored(cls, state: Any) -> Identity | None:
        """Read `state()` back.

        Args:
            state: What a checkpoint holds.

        Returns:
            The identity; None where an earlier version wrote another form.
        """
        try:
            return cls(**state)
        except TypeError:
            return None


def identity(
    settings: TrainSettings,
    *,
    model: str,
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    adapters: AdapterFiles = FRESH,
    branch: str = "",
) -> Identity:
    """Collect everything that decides a training's result, so that no checkpoint of another one is continued.

    Settings that are marked as inert do not count, and what is marked as held counts by its content.

    Args:
        settings: The training's settings.
        model: The model's name or path.
        prompts: Its prompts with their columns.
        terms: Its rewards.
        seed: Its seed.
        adapters: The adapter files it is built on.
        branch: The digest of the checkpoint of another training that this one began from; empty: none.

    Returns:
        The identity.
    """
    decisive: dict[str, Any] = {}
    extends: dict[str, Any] = {}
    rounding: dict[str, Any] = {}
    for key, value, marks in leaves(settings):
        inert = [mark for mark in marks if isinstance(mark, Inert)]
        if any(isinstance(mark, Holds) for mark in marks) or (inert and not all(mark.rounding for mark in inert)):
            continue
        extending = any(isinstance(mark, Extends) for mark in marks)
        (rounding if inert else extends if extending else decisive)[key] = value
    decisive |= {"model": model, "prompts": prompts_digest(prompts), "seed": seed, "branch": branch}
    for term in terms:
        reward = json.loads(term.reward.model_dump_json())
        use = recorded_name(type(term.reward))
        decisive[f"rewards.{term.label}"] = {"use": use, "weight": term.weight, **reward}
    decisive |= {f"adapters.{index}": entry for index, entry in enumerate(adapters.identity())}
    return Identity(
        {key: _withheld(value) for key, value in decisive.items()},
        *({key: json.dumps(value) for key, value in part.items()} for part in (extends, rounding)),
    )


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The keys whose values differ, each with the old and the new one, `null` where there is none."""
    keys = dict.fromkeys([*before, *after])
    pairs = {key: (before.get(key, "null"), after.get(key, "null")) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def change_words(changes: Mapping[str, tuple[str, str]]) -> str:
    """Changes in words: `learning_rate 0.001 -> 0.0005, prompts changed`."""
    shown = []
    for key, (before, after) in changes.items():
        short = len(before) <= 60 and len(after) <= 60
        shown.append(f"{key} {before} -> {after}" if short else f"{key} changed")
    return ", ".join(shown)


def _withheld(value: Any) -> str:
    """A number as it is; of everything with text in it a digest: a text may be a secret or a path of this machine."""
    text = json.dumps(value, sort_keys=True)
    if value is None or isinstance(value, bool | int | float):
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

"""What a `compare` stage is made of beyond other stages: its methods, and what they are measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from draft.comparison.settings import MethodConfig
from draft.errors import ConfigError, DraftError
from draft.pipeline.checks import Base, check_prompts, check_rewards, check_training
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys
from draft.pipeline.explain import validate
from draft.pipeline.schema import ComparedMethod, CompareStage
from draft.rewards.reward import Term
from draft.training.settings import LearningSettings
from draft.types import Prompts

_EVERYONES = ("learning_rate", "lr_schedule", "max_steps", "preview", "report_to", "checkpoint", "device")
"""Settings of a training that a comparison sets itself, or that cannot be other for one method."""


@dataclass(frozen=True)
class Compared:
    """A comparison without errors.

    Args:
        contenders: The methods by label, each with all settings of its trainings.
        prompts: The held-out prompts, read.
        terms: What is measured besides the rewards that are trained for.
    """

    contenders: Mapping[str, MethodConfig]
    prompts: Prompts
    terms: tuple[Term, ...]


def check_comparison(
    config: CompareStage | None,
    data: dict[str, Any],
    keys: Keys,
    terms: list[Term],
    document: Document,
    base: Base,
    errors: list[DraftError],
) -> Compared:
    """Check the methods and the measures of a stage; makes the paths under `measure` in `data` absolute.

    Args:
        config: The stage's typed settings, None where they are wrong.
        data: Its plain data, a copy.
        keys: Where it is.
        terms: The rewards that are trained for.
        document: The file, for the places of errors.
        base: The folder that a relative path at some keys starts from.
        errors: Gets what is wrong.

    Returns:
        What could be made of it; whole if there are no errors.
    """
    measured: list[Term] = []
    prompts: Prompts | None = None
    if isinstance(data.get("measure"), Mapping):
        inner, here = dict(data["measure"]), (*keys, "measure")
        data["measure"] = inner
        prompts = check_prompts(inner, here, document, base, errors)
        measured = check_rewards(inner, here, prompts, document, base, errors)
    _check_labels(terms, measured, keys, document, errors)
    contenders: dict[str, MethodConfig] = {}
    if config is not None:
        found = {label: _contender(config, label, keys, document, errors) for label in config.methods}
        contenders = {label: contender for label, contender in found.items() if contender is not None}
    for label, contender in contenders.items():
        check_training(contender, (*keys, "methods", label), terms, document, errors)
    return Compared(contenders, prompts or Prompts(()), tuple(measured))


def _contender(
    config: CompareStage, label: str, keys: Keys, document: Document, errors: list[DraftError]
) -> MethodConfig | None:
    """A method's settings: its own, and for the rest the stage's."""
    here, own = (*keys, "methods", label), config.methods[label]
    for key in own:
        if key in _EVERYONES:
            name = ".".join(map(str, (*here, key)))
            hint = "a method's learning rates are its `learning_rates`" if key == "learning_rate" else ""
            errors.append(
                ConfigError(f"{name} cannot be set for one method", where=document.place((*here, key)), hint=hint)
            )
    shared = {name: value for name, value in asdict(config).items() if name in _SHARED}
    merged = shared | {key: _merged(shared.get(key), value) for key, value in own.items() if key not in _EVERYONES}
    contender, found = validate(ComparedMethod, merged, here, document)
    errors += found
    return contender


_SHARED = {field.name for field in fields(LearningSettings)} | {"learning_rates", "checkpoint"}


def _merged(shared: Any, own: Any) -> Any:
    """A mapping's keys are replaced one by one, but what has a `kind` as a whole."""
    if isinstance(shared, Mapping) and isinstance(own, Mapping) and "kind" not in shared:
        return {**shared, **own}
    return own


def _check_labels(
    terms: list[Term], measured: list[Term], keys: Keys, document: Document, errors: list[DraftError]
) -> None:
    trained = {term.label for term in terms}
    for term in measured:
        if term.label in trained:
            name = ".".join(map(str, (*keys, "measure", "rewards", term.label)))
            place = document.place((*keys, "measure", "rewards", term.label))
            hint = "what is trained for is measured anyway; for another reward choose another label and say `use`"
            errors.append(ConfigError(f"{name} has the label of a reward that is trained for", where=place, hint=hint))
    for path, label in ((("rewards",), trained), (("measure", "rewards"), {term.label for term in measured})):
        if "reward" in label:
            where = (*keys, *path, "reward")
            what = f"{'.'.join(map(str, where))} has the label of the weighted sum"
            errors.append(ConfigError(what, where=document.place(where), hint="choose another label and say `use`"))

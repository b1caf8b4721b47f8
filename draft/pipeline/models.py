"""What a stage's model cannot do with its settings, as far as its files show before it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from draft import hub
from draft.diffusion.families import family_of
from draft.diffusion.families.problems import family_problems, size_problems
from draft.errors import DraftError
from draft.pipeline.kinds.kind import Candidate, CheckedStage
from draft.requirements import unmet
from draft.rewards.extensions import named_model
from draft.rewards.reward import MODEL_OPTIONS


def with_family(config: Any, model: str) -> Any:
    """Settings completed with the defaults of the model's family, so that the record of a stage has them.

    Args:
        config: A stage's settings.
        model: Where its model is; of a hub id nothing is known before it is loaded.

    Returns:
        The settings.
    """
    lora = getattr(config, "lora", None)
    if lora is None or lora.targets is not None or not model or (family := family_of(model)) is None:
        return config
    return replace(config, lora=replace(lora, targets=family.targets))


def missing_weights(stages: Iterable[CheckedStage]) -> list[str]:
    """The models of the hub that a pipeline names and that are not on this machine yet, one line each."""
    users: dict[str, list[str]] = {}
    for stage in stages:
        if stage.model and hub.is_elsewhere(stage.model):
            users.setdefault(stage.model, []).append(f"stages.{stage.name}.model")
        for keys, terms in stage.inputs.terms.items():
            for term in terms:
                place = ".".join(map(str, ("stages", stage.name, *keys, term.label)))
                for option, name in _weights(term.reward.model_dump(mode="json")):
                    users.setdefault(name, []).append(f"{place}.{option}")
    return [
        f"{name}: not on this machine yet, a run fetches it from the hub ({', '.join(places)})"
        for name, places in users.items()
    ]


def _weights(options: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """The options that name a model of the hub which is not here."""
    for key, value in options.items() if isinstance(options, Mapping) else ():
        named = any(key == word or key.endswith(f"_{word}") for word in MODEL_OPTIONS if word != "revision")
        if named and isinstance(value, str) and named_model(value) is None and hub.is_elsewhere(value):
            yield ".".join((*keys, key)), value
        yield from _weights(value, (*keys, str(key)))


def model_problems(candidate: Candidate, config: Any, keys: Sequence[str] = ()) -> Iterator[DraftError]:
    """Find a model that cannot be trained, and settings that its family or its autoencoder does not go with.

    Args:
        candidate: The stage; of a hub id nothing is known before the model is loaded.
        config: The settings that the model is sampled with: the stage's, or others in it.
        keys: Where the stage has them; nothing: they are its own.

    Yields:
        The errors.
    """
    model, sampler = candidate.inputs.model, getattr(config, "sampler", None)
    if not model or sampler is None:
        return
    try:
        family = family_of(model)
    except DraftError as error:
        if not keys:
            yield candidate.error(error.what, "model", hint=error.hint)
        return
    if family is None:
        return
    if missed := unmet([family.needs] if family.needs else []):
        needed = ", ".join(f"{requirement} (got {installed or 'none'})" for requirement, installed in missed.items())
        yield candidate.error(f"the family {family.name!r} of this model needs {needed}", "model")
    for problem in family_problems(family, sampler, cfg_gradient=getattr(config, "cfg_gradient", "both")):
        yield candidate.problem(problem, *keys)
    for problem in size_problems(model, getattr(config, "resolution", None), multiple=family.multiple):
        yield candidate.problem(problem, *keys)

"""What a stage's model cannot do with its settings, as far as its files show before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from draft.diffusion.families import family_of
from draft.diffusion.families.problems import family_problems, size_problems
from draft.errors import DraftError
from draft.pipeline.kinds.kind import Candidate
from draft.requirements import unmet


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

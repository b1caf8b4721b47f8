"""What can be wrong with how a stage samples: schedules of adapters, and methods that raise rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from draft.diffusion.control.schedules import AdapterSchedule, Annealed, Combined, LastSteps
from draft.diffusion.control.values import Guided, NoiseOpt, PromptSearch
from draft.errors import ConfigError, DraftError, Problem
from draft.pipeline.document import Document
from draft.pipeline.document import Path as Keys
from draft.pipeline.schema import EvaluateStage, GenerateStage, Stage
from draft.rewards.parts import without_gradient
from draft.rewards.reward import Term


def check_sampling(
    config: Stage | None,
    data: Mapping[str, Any],
    keys: Keys,
    terms: list[Term],
    document: Document,
    errors: list[DraftError],
) -> None:
    """Check how a stage samples, with what, and for which rewards.

    Args:
        config: The stage's typed settings, None where they are wrong.
        data: Its plain data.
        keys: Where it is.
        terms: Its rewards.
        document: The file, for the places of errors.
        errors: Gets what is wrong.
    """
    found = list(_in_mix(data)) if data.get("kind") == "mix" else []
    if isinstance(config, EvaluateStage | GenerateStage):
        steps = config.sampler.num_inference_steps
        for label, adapter in config.adapters.items():
            found += _in_schedule(adapter.schedule, ("adapters", label, "schedule"), steps)
    if isinstance(config, GenerateStage):
        found += _in_method(config, terms)
    prefix = ".".join(map(str, keys))
    for problem in found:
        place = document.place((*keys, *problem.keys))
        errors.append(ConfigError(f"{prefix}.{problem.what}", where=place, hint=problem.hint))


def _in_mix(data: Mapping[str, Any]) -> Iterator[Problem]:
    adapters = data.get("adapters")
    for label, adapter in adapters.items() if isinstance(adapters, Mapping) else ():
        if isinstance(adapter, Mapping) and "schedule" in adapter:
            what = f"adapters.{label}.schedule has no place in a mix, whose result is one adapter for all steps"
            hint = "give it to the adapter in the evaluate or generate stage that draws with it"
            yield Problem(("adapters", label, "schedule"), what, hint)


def _in_schedule(schedule: AdapterSchedule, keys: tuple[str, ...], steps: int) -> Iterator[Problem]:
    name = ".".join(keys)
    limit = f"must be at most sampler.num_inference_steps, {steps}"
    match schedule:
        case LastSteps(steps=last) if last > steps:
            yield Problem((*keys, "steps"), f"{name}.steps {limit} (got {last})")
        case Combined(base_steps=base) if base > steps:
            yield Problem((*keys, "base_steps"), f"{name}.base_steps {limit} (got {base})")
        case Annealed(power=power, threshold=threshold) if (power is None) == (threshold is None):
            got = "neither" if power is None else "both"
            yield Problem(keys, f"{name} must have either power or threshold (got {got})", "power: 2")


def _in_method(config: GenerateStage, terms: list[Term]) -> Iterator[Problem]:
    method = config.method
    if method is None:
        if config.rewards:
            hint = "add a method, or measure images in an evaluate stage"
            yield Problem(("rewards",), "rewards have no effect without a method that raises them", hint)
        return
    if not any(term.weight for term in terms) and len(terms) == len(config.rewards):
        what = f"method {method.kind} needs at least one reward with a weight other than 0"
        yield Problem(
            ("rewards",) if config.rewards else ("method",), what, "name what it should raise under `rewards:`"
        )
    for term in terms:
        here = ("rewards", term.label)
        if term.label == "reward":
            what = "rewards.reward has the label of the weighted sum"
            yield Problem(here, what, "choose another label and say `use`")
        if not term.reward.per_image:
            what = f"rewards.{term.label} gives scores that depend on the batch, but each image is made for itself"
            yield Problem(here, what, "measure it in an evaluate stage instead")
        for inner, reward in without_gradient(term.reward) if method.reward_gradient and term.weight else ():
            path = ".".join((*here, *inner))
            what = f"{path}: reward {reward.name!r} has no gradient, so {method.kind} cannot raise it"
            yield Problem((*here, *inner), what, "prompt_search takes any reward; weight: 0 measures it only")
    steps = config.sampler.num_inference_steps
    match method:
        case Guided(start=start, stop=stop) if start >= stop:
            yield Problem(("method", "start"), f"method.start must be less than method.stop, {stop:g} (got {start:g})")
        case NoiseOpt(recorded=recorded) if recorded is not None and recorded > steps:
            what = f"method.recorded must be at most sampler.num_inference_steps, {steps} (got {recorded})"
            yield Problem(("method", "recorded"), what)
        case PromptSearch(modifiers=modifiers, budget=budget) if budget <= len(modifiers):
            least = len(modifiers) + 1
            what = f"method.budget must be at least {least}, the prompt and each modifier once (got {budget})"
            yield Problem(("method", "budget"), what)

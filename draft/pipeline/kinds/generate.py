"""`kind: generate`: images from prompts and fixed seeds, with more reward if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from draft.diffusion.control.values import Guided, NoiseOpt, PromptSearch, SamplingMethod
from draft.errors import DraftError, Problem
from draft.evaluation.settings import GenerateSettings
from draft.isolation.reward import ending_processes
from draft.pipeline.inputs import Label, Model, PromptSource, Rewards, ScheduledAdapter, Seed
from draft.pipeline.kinds.evaluate import schedule_problems
from draft.pipeline.kinds.kind import Candidate, Job, Kind
from draft.rewards.parts import without_gradient


@dataclass(frozen=True, kw_only=True)
class GenerateStage(GenerateSettings):
    """Make images from prompts and fixed seeds, with the base model or each adapter; optionally raise a reward.

    Args:
        kind: `generate`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`.
        adapters: Label to `{from, weight, schedule}`; empty: the base model alone.
        method: How a reward is raised while sampling, without training; null: images as the models make them.
        rewards: Label to options, as in `train`; what the method raises.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["generate"]
    model: Model
    prompts: PromptSource
    adapters: dict[Label, ScheduledAdapter] = field(default_factory=dict)
    method: Annotated[SamplingMethod, Field(discriminator="kind")] | None = None
    rewards: Rewards = field(default_factory=dict)
    seed: Seed = None


def run(job: Job) -> Mapping[str, float]:
    """Make images, by a method that raises rewards where there is one."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.generation.generate import generate

    stage = job.stage
    with explain_out_of_memory(), ending_processes(stage.terms):
        return generate(
            stage.config,
            model=stage.model,
            adapters=job.adapters(),
            prompts=stage.prompts,
            seed=stage.seed,
            folder=job.folder,
            progress=job.progress,
            schedules=job.schedules(),
            method=stage.config.method,
            terms=stage.terms,
        )


def problems(candidate: Candidate) -> Iterator[DraftError]:
    """Schedules that do not fit the sampler, and methods and rewards that do not fit each other."""
    yield from schedule_problems(candidate)
    for problem in _method_problems(candidate):
        yield candidate.problem(problem)


def _method_problems(candidate: Candidate) -> Iterator[Problem]:
    config: GenerateStage = candidate.config
    method, terms = config.method, candidate.terms
    if method is None:
        if config.rewards:
            hint = "add a method, or measure images in an evaluate stage"
            yield Problem(("rewards",), "rewards have no effect without a method that raises them", hint)
        return
    if not any(term.weight for term in terms) and len(terms) == len(config.rewards):
        what = f"method {method.kind} needs at least one reward with a weight other than 0"
        keys = ("rewards",) if config.rewards else ("method",)
        yield Problem(keys, what, "name what it should raise under `rewards:`")
    for term in terms:
        term_keys = ("rewards", term.label)
        if term.label == "reward":
            what = "rewards.reward has the label of the weighted sum"
            yield Problem(term_keys, what, "choose another label and add `use`")
        if not term.reward.per_image:
            what = f"rewards.{term.label} gives scores that depend on the batch, but each image is made for itself"
            yield Problem(term_keys, what, "measure it in an evaluate stage instead")
        for inner, reward in without_gradient(term.reward) if method.reward_gradient and term.weight else ():
            path = ".".join((*term_keys, *inner))
            what = f"{path}: reward {reward.name!r} has no gradient, so {method.kind} cannot raise it"
            yield Problem((*term_keys, *inner), what, "prompt_search takes any reward; weight: 0 measures it only")
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


GENERATE = Kind(settings=GenerateStage, outputs={"images": "images"}, run=f"{__name__}:run", problems=problems)

"""`kind: evaluate`: adapters against the base model on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import MinLen

from draft.diffusion.control.schedules import AdapterSchedule, Annealed, Combined, LastSteps
from draft.errors import DraftError, Problem
from draft.evaluation.settings import EvaluateSettings
from draft.isolation.reward import ending_processes
from draft.pipeline.inputs import Label, Metrics, Model, PromptSource, Rewards, ScheduledAdapter, Seed
from draft.pipeline.kinds.kind import Candidate, Job, Kind


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(EvaluateSettings):
    """Compare adapters with the base model on the same prompts and seeds, and write a page.

    Args:
        kind: `evaluate`.
        model: A registered model (`draft models`), a folder, a hub id, or a single-file checkpoint.
        prompts: A list, or `{file: ...}`; held-out ones.
        adapters: Label to `{from, weight, schedule}`; the base model is always compared.
        rewards: Label to options: `use` (default: the label), `device`, `isolated` and the reward's own.
        curves: Label to a training's `metrics.jsonl`, usually `${out:stage.metrics}`: the page draws them.
        seed: The stage's own seed; None: the file's.
    """

    kind: Literal["evaluate"]
    model: Model
    prompts: PromptSource
    rewards: Annotated[Rewards, MinLen(1)]
    adapters: dict[Label, ScheduledAdapter] = field(default_factory=dict)
    curves: dict[Label, Metrics] = field(default_factory=dict)
    seed: Seed = None


def run(job: Job) -> Mapping[str, float]:
    """Compare adapters with the base model and write the page."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.evaluation.evaluate import evaluate

    stage = job.stage
    with explain_out_of_memory(), ending_processes(stage.terms):
        return evaluate(
            stage.config,
            model=stage.model,
            adapters=job.adapters(),
            prompts=stage.prompts,
            terms=stage.terms,
            seed=stage.seed,
            folder=job.folder,
            progress=job.progress,
            schedules=job.schedules(),
            curves={label: job.files["curves", label] for label in stage.config.curves},
            **job.page(),
        )


def schedule_problems(candidate: Candidate) -> Iterator[DraftError]:
    """Schedules of adapters that do not fit the sampler."""
    steps = candidate.config.sampler.num_inference_steps
    for label, adapter in candidate.config.adapters.items():
        for problem in _misfits(adapter.schedule, ("adapters", label, "schedule"), steps):
            yield candidate.problem(problem)


def _misfits(schedule: AdapterSchedule, keys: tuple[str, ...], steps: int) -> Iterator[Problem]:
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


EVALUATE = Kind(
    settings=EvaluateStage,
    outputs={"report": "report.html", "results": "report.json", "adapters": "adapters"},
    run=f"{__name__}:run",
    extras={"scores": "scores.csv", "images": "images"},
    version=2,
    problems=schedule_problems,
)

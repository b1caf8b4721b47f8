"""What runs a stage: from its checked settings to the function that does the work, imported only then."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from draft.diffusion.control.schedules import AdapterSchedule
from draft.errors import StageError
from draft.isolation.reward import ending_processes
from draft.pipeline.check import CheckedStage, adapter_weights
from draft.pipeline.provenance import without_secrets
from draft.pipeline.schema import (
    CompareStage,
    EvaluateStage,
    GenerateStage,
    MixStage,
    ProbeStage,
    StripStage,
    TrainStage,
)
from draft.progress import Progress


@dataclass(frozen=True)
class Job:
    """A stage about to run.

    Args:
        stage: The stage.
        folder: Where it writes; becomes the stage's folder when it is done.
        files: Label to existing file, references resolved: ``{"adapters.a": ..., "curves.a": ...}``.
        progress: Who hears about it.
        title: The pipeline's name.
        config_text: The stage's resolved settings as YAML, for the page.
        metadata: What an adapter file says about its making: no time, no path, no host.
    """

    stage: CheckedStage
    folder: Path
    files: Mapping[str, Path]
    progress: Progress
    title: str = ""
    config_text: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def adapters(self) -> dict[str, tuple[Path, float]]:
        """Label to file and weight."""
        return {
            label: (self.files[f"adapters.{label}"], weight)
            for label, weight in adapter_weights(self.stage.config).items()
        }

    def schedules(self) -> dict[str, AdapterSchedule]:
        """Label to the steps in which that adapter takes part."""
        return {label: adapter.schedule for label, adapter in getattr(self.stage.config, "adapters", {}).items()}

    def curves(self) -> dict[str, Path]:
        """Label to a training's figures."""
        return {key.partition(".")[2]: file for key, file in self.files.items() if key.startswith("curves.")}


T = TypeVar("T")
Executor: TypeAlias = Callable[[Job], Mapping[str, float]]
"""Runs a job and returns its closing figures."""


def run_train(job: Job) -> Mapping[str, float]:
    """Train an adapter."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.training.base_adapters import Foundation
    from draft.training.train import train

    stage = _expect(job, TrainStage)
    beneath = [(job.files[f"base_adapters.{index}"], each.weight) for index, each in enumerate(stage.base_adapters)]
    with explain_out_of_memory(), ending_processes(job.stage.terms):
        return train(
            stage,
            model=job.stage.model,
            prompts=job.stage.prompts,
            terms=job.stage.terms,
            seed=job.stage.seed,
            folder=job.folder,
            progress=job.progress,
            metadata=job.metadata,
            foundation=Foundation(job.files.get("init_adapter"), tuple(beneath)),
        )


def run_mix(job: Job) -> Mapping[str, float]:
    """Add adapters, exactly, and compare what was written with the exact sum."""
    from draft.adapters.mixture import mix_files

    stage = _expect(job, MixStage)
    target = job.folder / job.stage.outputs["adapter"]
    reader = None
    if stage.verify == "full":
        from draft.diffusion.families.lora_reader import read_as_diffusers as reader
    inputs = list(job.adapters().values())
    report = mix_files(inputs, target, settings=stage, seed=job.stage.seed, metadata=job.metadata, reader=reader)
    found = {"error": report.error, "predicted_error": report.predicted, "error_in_diffusers": report.peer_error}
    return {"modules": float(report.modules)} | {key: value for key, value in found.items() if value is not None}


def run_evaluate(job: Job) -> Mapping[str, float]:
    """Compare adapters with the base model and write the page."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.evaluation.evaluate import evaluate

    with explain_out_of_memory(), ending_processes(job.stage.terms):
        return evaluate(
            _expect(job, EvaluateStage),
            model=job.stage.model,
            adapters=job.adapters(),
            prompts=job.stage.prompts,
            terms=job.stage.terms,
            seed=job.stage.seed,
            folder=job.folder,
            progress=job.progress,
            schedules=job.schedules(),
            curves=job.curves(),
            title=job.title,
            model_name=model_name(job.stage),
            config_text=job.config_text,
        )


def run_generate(job: Job) -> Mapping[str, float]:
    """Make images, by a method that raises rewards where there is one."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.evaluation.generate import generate
    from draft.generation.generate import generate_by_reward

    stage = _expect(job, GenerateStage)
    made = generate if stage.method is None else partial(generate_by_reward, method=stage.method, terms=job.stage.terms)
    with explain_out_of_memory(), ending_processes(job.stage.terms):
        return made(
            stage,
            model=job.stage.model,
            adapters=job.adapters(),
            prompts=job.stage.prompts,
            seed=job.stage.seed,
            folder=job.folder,
            progress=job.progress,
            schedules=job.schedules(),
        )


def run_compare(job: Job) -> Mapping[str, float]:
    """Compare methods under one budget and write tables, curves and the page."""
    from draft.comparison.compare import compare
    from draft.comparison.training import TrainingInputs

    stage, compared = _expect(job, CompareStage), job.stage.compared
    if compared is None:
        raise StageError(f"stage {job.stage.name!r} has no methods")
    with ending_processes(job.stage.every_term):
        return compare(
            stage,
            compared.contenders,
            inputs=TrainingInputs(model=job.stage.model, prompts=job.stage.prompts, terms=job.stage.terms),
            measure=stage.measure,
            held_out=compared.prompts,
            measures=compared.terms,
            seed=job.stage.seed,
            folder=job.folder,
            progress=job.progress,
            title=job.title,
            model_name=model_name(job.stage),
            config_text=job.config_text,
        )


def run_probe(job: Job) -> Mapping[str, float]:
    """Measure the gradient through all sampling steps, and write tables and the page."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.probe.probe import probe

    stage = _expect(job, ProbeStage)
    with explain_out_of_memory(), ending_processes(job.stage.terms):
        return probe(
            stage,
            model=job.stage.model,
            prompts=job.stage.prompts,
            terms=job.stage.terms,
            seed=job.stage.seed,
            folder=job.folder,
            progress=job.progress,
            adapter=(job.files["adapter"], stage.adapter.weight) if stage.adapter else None,
            title=job.title,
            model_name=model_name(job.stage),
            config_text=job.config_text,
        )


def run_strip(job: Job) -> Mapping[str, float]:
    """Draw adapters over their scales."""
    from draft.diffusion.memory import explain_out_of_memory
    from draft.strips.strip import draw_strip

    stage = _expect(job, StripStage)
    with explain_out_of_memory(), ending_processes(job.stage.terms):
        return draw_strip(
            stage,
            model=job.stage.model,
            adapters={label: job.files[f"adapters.{label}"] for label in stage.adapters},
            prompts=job.stage.prompts,
            terms=job.stage.terms,
            folder=job.folder,
            progress=job.progress,
            title=job.title,
            model_name=model_name(job.stage),
            config_text=job.config_text,
        )


EXECUTORS: Mapping[str, Executor] = MappingProxyType(
    {
        "train": run_train,
        "mix": run_mix,
        "evaluate": run_evaluate,
        "generate": run_generate,
        "compare": run_compare,
        "probe": run_probe,
        "strip": run_strip,
    }
)
"""Stage kind to what runs it."""


def adapter_metadata(stage: CheckedStage, identity: Mapping[str, Any], fingerprint: str) -> dict[str, str]:
    """What an adapter file says about its making; the same making gives the same text.

    Args:
        stage: The stage.
        identity: Everything its result depends on.
        fingerprint: The sha256 of `identity`.

    Returns:
        Strings for the file's header.
    """
    name = model_name(stage)
    config = {key: value for key, value in identity.items() if key not in ("model", "reward_models", "upstream")}
    shown = without_secrets(config, stage.environment)
    found = {"draft.fingerprint": fingerprint, "draft.config": json.dumps(shown, sort_keys=True)}
    return {**found, "draft.model": name} if name else found


def model_name(stage: CheckedStage) -> str:
    """What a stage's model is called: as the file says, but a folder on this machine by its last name alone."""
    model = stage.data.get("model", "")
    return Path(model).name if model and Path(model).exists() else model


def _expect(job: Job, kind: type[T]) -> T:
    if not isinstance(job.stage.config, kind):
        raise StageError(f"stage {job.stage.name!r} is of kind {job.stage.config.kind!r}, not {kind.__name__}")
    return job.stage.config

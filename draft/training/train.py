"""The training loop: a rule's updates, their log, checkpoints and previews."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from draft.adapters.files.formats import Adapter, Factors, write_adapter
from draft.diffusion.families import TextToImage
from draft.diffusion.generate import sample_images
from draft.diffusion.lora import lora_factors
from draft.errors import StageError
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.guards import check_terms
from draft.training.accelerator import make_accelerator
from draft.training.base_adapters import FRESH, Foundation
from draft.training.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from draft.training.metrics import append_metrics, truncate_metrics
from draft.training.preview import save_grid
from draft.training.rules.rule import Rule, make_rule
from draft.training.run import Run, prepare
from draft.training.schedule import learning_rate_factor
from draft.training.settings import TrainSettings
from draft.training.state import identity
from draft.training.suitability import check_method
from draft.training.update import means
from draft.types import Prompts

_CLOSING = 10
_BUDGETS = ("evaluations", "seconds")


@dataclass(frozen=True)
class Progressed:
    """A training after an update, for whoever looks on.

    Args:
        step: Updates made.
        row: The update's line of metrics.
        totals: `updates`, `evaluations` and `seconds` of all updates so far, those before a resume too.
        model: The model with the adapter as it is now.
        save: Writes that adapter to a file.
    """

    step: int
    row: Mapping[str, float]
    totals: Mapping[str, float]
    model: TextToImage
    save: Callable[[Path], None]


def train(
    settings: TrainSettings,
    *,
    model: str,
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    folder: Path,
    progress: Progress,
    metadata: Mapping[str, str] = {},
    foundation: Foundation = FRESH,
    after: Callable[[Progressed], bool] | None = None,
) -> dict[str, float]:
    """Train a LoRA so that sampled images score higher under a weighted sum of rewards.

    Maximises E[sum_k w_k r_k(decode(sample(theta, c, noise)), c)] by the method's gradient, with AdamW. Goes on from
    the newest intact checkpoint under `folder`, to the same adapter, byte for byte, as an uninterrupted run.

    Args:
        settings: Everything about the training.
        model: Folder, checkpoint file or hub id.
        prompts: The training prompts, with columns for rewards that use them.
        terms: The rewards with their weights.
        seed: Seed of the LoRA, the prompts' order and all noise.
        folder: Gets adapter.safetensors, metrics.jsonl, previews/, and checkpoints/ while it runs.
        progress: Told what happens.
        metadata: Text written into the adapter file; must not depend on time or place.
        foundation: The adapter that the LoRA begins at, and frozen ones beneath it. The written adapter is the LoRA
            alone: what it began at with what it learned, and nothing of what lies beneath.
        after: Called after each update; its time does not count. The training ends there if it returns True.

    Returns:
        Closing figures: loss, reward and each label's raw score, means of the last 10 updates.

    Raises:
        DraftError: The settings do not go with the method, the model cannot be loaded, a reward cannot train, or the
            training diverged.
    """
    check_method(settings)
    folder.mkdir(parents=True, exist_ok=True)
    check_terms(terms, gradient=settings.method.traits.reward_gradient)
    if not len(prompts):
        raise StageError("there are no training prompts")
    accelerator = make_accelerator(settings.device, report_to=settings.report_to, folder=folder)
    run = prepare(settings, model, prompts, terms, seed, progress, foundation)
    rule = make_rule(settings.method, run)
    name = identity(settings, model=model, prompts=prompts, terms=terms, seed=seed, foundation=foundation)
    checkpoints, metrics = folder / "checkpoints", folder / "metrics.jsonl"
    done = _resume(run, rule, load_checkpoint(checkpoints, identity=name), progress)
    rows = truncate_metrics(metrics, done)
    totals = {"updates": float(done)} | {key: sum(row[key] for row in rows) for key in _BUDGETS}
    if settings.report_to:
        accelerator.init_trackers("draft", config={"model": model, "seed": seed, "method": settings.method.kind})
    if done == 0:
        _save_preview(run, folder, 0)
    progress.start("training", settings.max_steps, done=done)
    for step in range(done, settings.max_steps):
        row = _update(run, rule, step)
        append_metrics(metrics, row)
        rows = [*rows[1 - _CLOSING :], row]
        totals = {"updates": step + 1.0} | {key: totals[key] + row[key] for key in _BUDGETS}
        _log(accelerator, row, settings)
        progress.advance(1, {"reward": row["reward"], "grad_norm": row["grad_norm"]})
        made = step + 1
        if settings.preview.every and made % settings.preview.every == 0:
            _save_preview(run, folder, made)
        if after is not None and after(
            Progressed(made, row, totals, run.model, lambda path: _save_adapter(run, path, metadata))
        ):
            break
        if settings.checkpoint.every and made % settings.checkpoint.every == 0 and made < settings.max_steps:
            save_checkpoint(checkpoints, made, _state(run, rule, name), keep=settings.checkpoint.keep)
    progress.stop()
    _save_adapter(run, folder / "adapter.safetensors", metadata)
    remove_checkpoints(checkpoints)
    if settings.report_to:
        accelerator.end_training()
    closing = ["loss", "reward", *(term.label for term in terms)]
    return {key: sum(row[key] for row in rows) / len(rows) for key in closing}


def _update(run: Run, rule: Rule, step: int) -> dict[str, float]:
    """One update; returns its line of metrics."""
    began = time.perf_counter()
    settings = run.settings
    rate = settings.learning_rate * learning_rate_factor(
        step, schedule=settings.lr_schedule, warmup_steps=settings.warmup_steps, max_steps=settings.max_steps
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    made = rule.update(run, step)
    scores, _, others = means(run, made.figures)
    weights = {loaded.term.label: loaded.term.weight for loaded in run.loaded}
    return {
        "step": step + 1,
        "loss": others.pop("loss"),
        "reward": sum(weight * scores[label] for label, weight in weights.items()),
        **scores,
        "grad_norm": made.grad_norm,
        "lr": rate,
        **others,
        "evaluations": sum(figures.evaluations for figures in made.figures),
        "optimizer_steps": made.optimizer_steps,
        **made.extra,
        "seconds": time.perf_counter() - began,
    }


def _state(run: Run, rule: Rule, name: str) -> dict[str, Any]:
    weights = [parameter.detach().cpu() for parameter in run.parameters]
    optimizer, random = run.optimizer.state_dict(), run.random.state()
    return {"identity": name, "weights": weights, "optimizer": optimizer, "random": random, "rule": rule.state()}


def _resume(run: Run, rule: Rule, state: dict[str, Any] | None, progress: Progress) -> int:
    """Put a checkpoint's state back; returns the updates made."""
    if state is None:
        return 0
    with torch.no_grad():
        for parameter, weight in zip(run.parameters, state["weights"], strict=True):
            parameter.copy_(weight)
    run.optimizer.load_state_dict(state["optimizer"])
    run.random.restore(state["random"])
    rule.restore(state["rule"])
    progress.say(f"going on after update {state['step']}")
    return int(state["step"])


def _save_adapter(run: Run, path: Path, metadata: Mapping[str, str]) -> None:
    family, factors = run.model.family, lora_factors(run.model.network)
    modules = {f"{family.part}.{name}": Factors(down=a, up=b, scale=1.0) for name, (a, b) in factors.items()}
    write_adapter(Adapter(modules=modules, family=family.name, metadata={}), path, metadata=metadata)


def _save_preview(run: Run, folder: Path, step: int) -> None:
    if run.preview is None:
        return
    conditioning, noise = run.preview
    batch, sampler, size = run.settings.batch_size, replace(run.settings.sampler, eta=0.0), run.size
    images = [
        sample_images(run.model, conditioning[k : k + batch], run.unconditional, noise[k : k + batch], sampler, size)
        for k in range(0, len(noise), batch)
    ]
    save_grid(torch.cat(images), folder / "previews" / f"step-{step:06d}.png")


def _log(accelerator: Accelerator, row: Mapping[str, float], settings: TrainSettings) -> None:
    if settings.report_to:
        accelerator.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))

"""The training loop: rollouts under a plan, the split backward pass, AdamW on the LoRA."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from draft.adapters.formats import Adapter, Factors, write_adapter
from draft.diffusion.device import choose_device
from draft.diffusion.fits import check_fits
from draft.diffusion.generate import sample_images, seeded_noise
from draft.diffusion.lora import add_lora, lora_factors, lora_parameters
from draft.diffusion.methods.plans import Plan, make_plan
from draft.diffusion.models import TextToImage, load_text_to_image
from draft.diffusion.sampling import Grid, guide, make_grid
from draft.diffusion.surrogate import sample_with_plan
from draft.errors import StageError
from draft.progress import Progress
from draft.registry.reward import Term
from draft.training.accelerator import make_accelerator
from draft.training.backward import Figures, Loaded, split_backward
from draft.training.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from draft.training.metrics import append_metrics, truncate_metrics
from draft.training.preview import save_grid
from draft.training.schedule import learning_rate_factor
from draft.training.settings import TrainSettings
from draft.training.state import Randomness, identity
from draft.training.watch import check_finite, check_gradient_norm, check_sensitivity, check_start, check_terms
from draft.types import Prompts

_CLOSING = 10


@dataclass
class Run:
    """A training in progress: what stays fixed, and the few things that change."""

    settings: TrainSettings
    model: TextToImage
    prompts: Prompts
    loaded: list[Loaded]
    grid: Grid
    plan: Plan
    embeddings: Tensor
    unconditional: Tensor
    parameters: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    random: Randomness
    checkpointing: bool


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

    Returns:
        Closing figures: loss, reward and each label's raw score, means of the last 10 updates.

    Raises:
        DraftError: The model cannot be loaded, a reward cannot train, or the training diverged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_terms(terms)
    if not len(prompts):
        raise StageError("there are no training prompts")
    accelerator = make_accelerator(settings.device, report_to=settings.report_to, folder=folder)
    run, preview = _prepare(settings, model, prompts, terms, seed, progress)
    name = identity(settings, model=model, prompts=prompts, terms=terms, seed=seed)
    checkpoints, metrics = folder / "checkpoints", folder / "metrics.jsonl"
    done = _resume(run, load_checkpoint(checkpoints, identity=name), progress)
    rows = truncate_metrics(metrics, done)[-_CLOSING:]
    if settings.report_to:
        accelerator.init_trackers("draft", config={"model": model, "seed": seed, "method": settings.method.kind})
    if preview and done == 0:
        _save_preview(run, preview, folder / "previews" / f"step-{0:06d}.png")
    progress.start("training", settings.max_steps, done=done)
    for step in range(done, settings.max_steps):
        row = _update(run, step, first=step == done)
        append_metrics(metrics, row)
        rows = [*rows, row][-_CLOSING:]
        _log(accelerator, row, settings)
        progress.advance(1, {"reward": row["reward"], "grad_norm": row["grad_norm"]})
        made = step + 1
        if preview and made % settings.preview.every == 0:
            _save_preview(run, preview, folder / "previews" / f"step-{made:06d}.png")
        if settings.checkpoint.every and made % settings.checkpoint.every == 0 and made < settings.max_steps:
            save_checkpoint(checkpoints, made, _state(run, name), keep=settings.checkpoint.keep)
    progress.stop()
    modules = {
        f"unet.{path}": Factors(down=a, up=b, scale=1.0) for path, (a, b) in lora_factors(run.model.unet).items()
    }
    write_adapter(
        Adapter(modules=modules, family=run.model.family, metadata={}),
        folder / "adapter.safetensors",
        metadata=metadata,
    )
    remove_checkpoints(checkpoints)
    if settings.report_to:
        accelerator.end_training()
    closing = ["loss", "reward", *(term.label for term in terms)]
    return {key: sum(row[key] for row in rows) / len(rows) for key in closing}


def _prepare(
    settings: TrainSettings, model: str, prompts: Prompts, terms: Sequence[Term], seed: int, progress: Progress
) -> tuple[Run, tuple[Tensor, Tensor] | None]:
    """Load everything and embed all prompts; returns the run and the preview's (embeddings, noise)."""
    device = choose_device(settings.device)
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    check_fits(model, settings.device)
    loaded_model = load_text_to_image(model, device=device, dtype=dtype)
    grid = make_grid(loaded_model.schedule, settings.sampler)
    plan = make_plan(settings.method, grid.steps)
    shape = loaded_model.latent_shape(settings.resolution)
    progress.say(
        f"{settings.method.kind}: {plan.recorded_steps} of {plan.steps} sampling steps carry gradient, "
        f"sensitivity of the last one {check_sensitivity(grid):.3f}"
    )
    loaded = []
    for term in terms:
        place = choose_device(term.device) if term.device else device
        loaded.append(Loaded(term, term.reward.load(place), place))
    embeddings = loaded_model.encode(prompts).cpu()  # on the CPU: a long prompt file would fill the accelerator
    unconditional = loaded_model.encode([settings.sampler.negative_prompt])
    preview = None
    if settings.preview.every:
        shown = settings.preview.prompts or tuple(prompts)[: settings.preview.count]
        seeds = [settings.preview.seed + k for k in range(len(shown))]
        preview = (loaded_model.encode(shown), seeded_noise(seeds, shape))
    loaded_model.drop_text_encoder()
    add_lora(loaded_model.unet, settings.lora, seed=seed)
    parameters = lora_parameters(loaded_model.unet)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    auto = plan.recorded_steps > 2
    checkpointing = auto if settings.gradient_checkpointing == "auto" else bool(settings.gradient_checkpointing)
    run = Run(
        settings, loaded_model, prompts, loaded, grid, plan, embeddings, unconditional, parameters, optimizer,
        Randomness(seed, len(prompts)), checkpointing,
    )  # fmt: skip
    return run, preview


def _update(run: Run, step: int, *, first: bool) -> dict[str, float]:
    """One update of the weights; returns its line of metrics."""
    began = time.perf_counter()
    settings, labels = run.settings, [loaded.term.label for loaded in run.loaded]
    rate = settings.learning_rate * learning_rate_factor(
        step, schedule=settings.lr_schedule, warmup_steps=settings.warmup_steps, max_steps=settings.max_steps
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    accumulate = settings.gradient_accumulation_steps
    figures = [_rollout(run, scale=1 / accumulate) for _ in range(accumulate)]
    limit = settings.max_grad_norm or float("inf")
    norm = nn.utils.clip_grad_norm_(run.parameters, limit)
    # Everything the log and the checks need crosses from the device once.
    values = (torch.stack([figure.flat() for figure in figures]).mean(0)).tolist()
    scores, gradients = dict(zip(labels, values, strict=False)), dict(zip(labels, values[len(labels) :], strict=False))
    check_finite(scores, step)
    weighted = {loaded.term.label for loaded in run.loaded if loaded.term.weight}
    if first and step == 0:
        check_start({label: size for label, size in gradients.items() if label in weighted})
    grad_norm = float(norm)
    check_gradient_norm(grad_norm, [label for label, size in gradients.items() if size - size != 0], step)
    run.optimizer.step()
    reward = sum(loaded.term.weight * scores[loaded.term.label] for loaded in run.loaded)
    return {
        "step": step + 1,
        "loss": -reward,
        "reward": reward,
        **scores,
        "grad_norm": grad_norm,
        "lr": rate,
        "saturated": values[-1],
        "seconds": time.perf_counter() - began,
    }


def _rollout(run: Run, *, scale: float) -> Figures:
    """Sample one batch under the plan and add its gradient to the parameters'."""
    batch, shape = run.settings.batch_size, run.model.latent_shape(run.settings.resolution)
    device = run.model.device
    indices = run.random.indices(batch)
    noise = run.random.noise(batch, *shape).to(device)
    copy_noise = run.random.copy_noise(run.plan.copies * batch, *shape).to(device) if run.plan.copies else None
    embeddings = run.embeddings[indices].to(device)
    output = guide(run.model.denoise, run.grid, embeddings, run.unconditional, run.settings.sampler.guidance_scale)
    latents = sample_with_plan(
        output, run.grid, run.plan, noise, copy_noise=copy_noise, checkpointing=run.checkpointing
    )
    return split_backward(
        latents,
        partial(run.model.decode, straight_through=run.settings.saturation == "straight_through"),
        run.loaded,
        run.prompts.take(indices),
        micro_batch_size=run.settings.micro_batch_size,
        scale=scale,
    )


def _state(run: Run, name: str) -> dict[str, Any]:
    weights = [parameter.detach().cpu() for parameter in run.parameters]
    return {"identity": name, "weights": weights, "optimizer": run.optimizer.state_dict(), "random": run.random.state()}


def _resume(run: Run, state: dict[str, Any] | None, progress: Progress) -> int:
    """Put a checkpoint's state back; returns the updates made."""
    if state is None:
        return 0
    with torch.no_grad():
        for parameter, weight in zip(run.parameters, state["weights"], strict=True):
            parameter.copy_(weight)
    run.optimizer.load_state_dict(state["optimizer"])
    run.random.restore(state["random"])
    progress.say(f"going on after update {state['step']}")
    return int(state["step"])


def _save_preview(run: Run, preview: tuple[Tensor, Tensor], path: Path) -> None:
    embeddings, noise = preview
    batch = run.settings.batch_size
    images = [
        sample_images(
            run.model, embeddings[k : k + batch], run.unconditional, noise[k : k + batch], run.settings.sampler
        )
        for k in range(0, len(noise), batch)
    ]
    save_grid(torch.cat(images), path)


def _log(accelerator: Accelerator, row: Mapping[str, float], settings: TrainSettings) -> None:
    if settings.report_to:
        accelerator.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))

"""Measure the gradient of complete rollouts before training through them, and report on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from draft.adapters.files.formats import denoiser_factors, read_adapter
from draft.diffusion.lora import adapter_parameters, add_lora, load_lora, lora_parameters, use_lora
from draft.diffusion.probe import agreement, cosines, decompose_gradient
from draft.diffusion.schedule import make_grid, step_sensitivities
from draft.diffusion.settings import SamplerSettings
from draft.diffusion.surrogate import roll_out
from draft.errors import DraftError, StageError
from draft.probe.health import GridFigures, Health, recommended, truncations, verdict
from draft.probe.page import write_page
from draft.probe.results import ProbeResult, json_text, markdown
from draft.probe.settings import OtherGrid, ProbeSettings
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.figures import check_figures, mean_figures
from draft.scoring.guards import check_terms
from draft.training.broken import saving_images
from draft.training.rollouts import Rollouts, load_rollouts
from draft.types import Prompts

_PROBED = "probed"


def probe(
    settings: ProbeSettings,
    *,
    model: str,
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    folder: Path,
    progress: Progress,
    adapter: tuple[Path, float] | None = None,
    title: str = "",
    model_name: str = "",
    config_text: str = "",
) -> dict[str, float]:
    """Decompose the gradient of E[sum_k w_k r_k] step by step, and write the numbers, the table and the page.

    The batches are the first ones of a training with the same settings and seed: with a fresh LoRA with B = 0, the
    first batch's norm at K is that of the first gradient of DRaFT-K.

    Args:
        settings: Everything about the probe.
        model: Folder, checkpoint file or hub id.
        prompts: The prompts, with columns for rewards that use them.
        terms: The rewards with their weights.
        seed: Seed of the fresh LoRA, the prompts' order and all noise.
        folder: Gets `probe.html`, `probe.json` and `probe.md`.
        progress: The reporter.
        adapter: A trained adapter's file and weight, probed instead of the fresh one.
        title: The page's heading.
        model_name: What the page calls the model; empty: as `model`.
        config_text: The pipeline's configuration, for the page.

    Returns:
        The largest recommended K, the norm at K = 1 and K = T, the growth, and the last step's sensitivity.

    Raises:
        DraftError: The model, the adapter or a grid cannot be used, or a reward's gradient is zero or not finite.
    """
    check_terms(terms)
    if not len(prompts):
        raise StageError("there are no prompts to probe with")
    draws = settings.batches * settings.batch_size
    rollouts = load_rollouts(settings, model, prompts, terms, seed, draws=draws, label="probe", progress=progress)
    rollouts.model.drop_encoders()
    grids = [_grid(rollouts, settings.sampler), *_other_grids(rollouts, settings)]
    parameters = _load(rollouts, adapter) if adapter else _begin(rollouts, settings, seed)
    with saving_images(folder):
        health, scores = _measure(rollouts, parameters, grids[0], settings, progress)
    probed = ProbeResult(
        title=title,
        model=model_name or model,
        subject=_subject(settings, adapter),
        settings=settings,
        health=health,
        grids=grids,
        scores=scores,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe.json").write_text(json_text(probed, config_text=config_text), encoding="utf-8")
    (folder / "probe.md").write_text(markdown(probed), encoding="utf-8")
    write_page(probed, folder / "probe.html", config_text=config_text)
    progress.say(verdict(health))
    first, last = health.truncations[0], health.truncations[-1]
    figures = {
        "recommended_k": float(recommended(health)),
        "norm_1": first.norm,
        "norm_all": last.norm,
        "growth": last.growth,
        "sensitivity": grids[0].sensitivities[-1],
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _begin(rollouts: Rollouts, settings: ProbeSettings, seed: int) -> list[Tensor]:
    """The A and B of a fresh LoRA, that of a training with the same seed; noise in B if there is to be any."""
    network = rollouts.model.network
    add_lora(network, settings.lora, seed=seed)
    parameters = lora_parameters(network)
    with torch.no_grad():
        for b in parameters[1::2] if settings.lora_b else ():
            b.copy_(settings.lora_b * torch.randn(b.shape, generator=rollouts.random.method))
    return list(parameters)


def _load(rollouts: Rollouts, adapter: tuple[Path, float]) -> list[Tensor]:
    """The A and B of a trained adapter."""
    path, weight = adapter
    network = rollouts.model.network
    load_lora(network, denoiser_factors(read_adapter(path)), name=_PROBED)
    use_lora(network, _PROBED, weight)
    parameters = adapter_parameters(network, _PROBED)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return list(parameters)


def _measure(
    rollouts: Rollouts, parameters: Sequence[Tensor], grid: GridFigures, settings: ProbeSettings, progress: Progress
) -> tuple[Health, dict[str, float]]:
    """Decompose the gradient of one batch after another; the figures, and mean scores by label."""
    chains, directions, figures = [], [], []
    mean = torch.zeros(())
    progress.start("probing", settings.batches * rollouts.grid.steps)
    for _ in range(settings.batches):
        batch = rollouts.next_batch()
        rollout = roll_out(rollouts.output(batch), rollouts.grid, batch.noise, batch.fresh)
        scored = rollouts.scorer.reward_gradient(rollout.states[-1], batch.prompts)
        assert scored.gradient is not None
        check_figures(rollouts.rewards, mean_figures(rollouts.rewards, [scored.figures]), 0, [scored.figures])
        figures.append(scored.figures)
        chain = decompose_gradient(
            rollouts.output(batch, gradient=settings.cfg_gradient, recorded=True),
            rollouts.grid,
            rollout,
            scored.gradient / len(batch.prompts),
            parameters,
            fresh=batch.fresh,
            advance=progress.advance,
        )
        chains.append((chain.truncated.norm(dim=1), chain.terms, chain.adjoints))
        directions.append(cosines(chain.truncated))
        mean = mean + chain.truncated / settings.batches
    progress.stop()
    norms, terms, adjoints = (torch.stack(figure).double() for figure in zip(*chains, strict=True))
    health = Health(
        grid=grid,
        truncations=truncations(
            norms.tolist(), torch.stack(directions).tolist(), agreement(mean, norms).tolist(), grid.sensitivities
        ),
        terms=terms.mean(0).tolist(),
        adjoints=adjoints.mean(0).tolist(),
        norms=norms.tolist(),
    )
    return health, dict(mean_figures(rollouts.rewards, figures).scores)


def _grid(rollouts: Rollouts, sampler: SamplerSettings) -> GridFigures:
    grid = make_grid(rollouts.model.schedule(rollouts.size, sampler.num_inference_steps), sampler)
    noise = f", eta {sampler.eta:g}" if sampler.eta else ""
    label = f"{sampler.num_inference_steps} steps, {sampler.spacing}, final {sampler.final}{noise}"
    return GridFigures(label, grid.times, step_sensitivities(grid))


def _other_grids(rollouts: Rollouts, settings: ProbeSettings) -> list[GridFigures]:
    grids = []
    for index, other in enumerate(settings.grids):
        try:
            grids.append(_grid(rollouts, with_changes(settings.sampler, other)))
        except DraftError as error:
            error.where = f"grids.{index}"
            raise
    return grids


def with_changes(sampler: SamplerSettings, other: OtherGrid) -> SamplerSettings:
    """The sampler with the values that another grid gives."""
    return replace(sampler, **{name: value for name, value in asdict(other).items() if value is not None})


def _subject(settings: ProbeSettings, adapter: tuple[Path, float] | None) -> str:
    if adapter is not None:
        return f"a trained adapter, weight {adapter[1]:g}"
    noise = settings.lora_b
    state = f"B of standard deviation {noise:g}" if noise else "B = 0, so that the gradient is that of B alone"
    return f"a fresh LoRA of rank {settings.lora.rank}, {state}"

"""A training in progress: its rollouts, what learns, and its optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.generate import seeded_noise
from draft.diffusion.guidance import Net
from draft.diffusion.lora import lora_parameters
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.objective import LinearLoss, PenaltySettings, RobustSettings
from draft.training.base_adapters import FRESH, AdapterFiles, apply_adapters, read_factors
from draft.training.rollouts import Rollouts, load_rollouts
from draft.training.settings import TrainSettings
from draft.types import Prompts


@dataclass(frozen=True, kw_only=True)
class Run(Rollouts):
    """A training in progress.

    Args:
        settings: Everything about it.
        parameters: What learns.
        optimizer: AdamW on it.
        preview: (conditioning, noise) of the grid of progress pictures; None: there is none.
        recomputes_blocks: Whether the network recomputes its blocks in backward.
    """

    settings: TrainSettings
    parameters: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    preview: tuple[Conditioning, Tensor] | None = None
    recomputes_blocks: bool = False

    def for_reward_alone(self) -> Run:
        """The training as if it maximised the mean reward of its images as they are."""
        settings = replace(self.settings, loss=LinearLoss(), penalty=PenaltySettings())
        return replace(self, settings=settings, scorer=replace(self.scorer, robust=RobustSettings()))


def prepare(
    settings: TrainSettings,
    model: str,
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    progress: Progress,
    adapters: AdapterFiles = FRESH,
) -> Run:
    """Load everything, embed what will be drawn, drop the text encoders, and put the LoRA that learns on the model.

    Args:
        settings: The training's settings.
        model: Folder, checkpoint file or hub id.
        prompts: The training prompts.
        terms: The rewards.
        seed: The training's seed.
        progress: The reporter.
        adapters: The adapter that the LoRA begins at, and the base adapters under it.

    Returns:
        The run before its first update.

    Raises:
        DraftError: The model or an adapter cannot be loaded, or the sampler or an adapter does not fit it.
    """
    rollouts = load_rollouts(
        settings,
        model,
        prompts,
        terms,
        seed,
        draws=settings.max_steps * settings.gradient_accumulation_steps * settings.batch_size,
        label=settings.method.kind,
        text_encoder=settings.text_encoder,
        progress=progress,
    )
    loaded_model = rollouts.model
    lora = replace(settings.lora, targets=settings.lora.targets or loaded_model.family.targets)
    factors = read_factors(adapters, lora, progress)
    preview = None
    if settings.preview.every:
        shown = settings.preview.prompts or tuple(prompts[: settings.preview.count])
        seeds = [settings.preview.seed + k for k in range(len(shown))]
        noise = seeded_noise(seeds, loaded_model.latent_shape(rollouts.size))
        preview = (loaded_model.encode(shown, rollouts.size), noise)
    if not rollouts.keeps_encoders:
        loaded_model.drop_encoders()  # before the denoiser is read, so that there is room for the larger of them alone
    apply_adapters(factors, loaded_model, lora, seed=seed)
    recomputes_blocks = settings.gradient_checkpointing is True and loaded_model.checkpoint_blocks(True)
    parameters = lora_parameters(loaded_model.network)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=loaded_model.device.type == "cuda",
    )
    denoise = loaded_model.denoise
    return Run(
        settings=settings,
        model=loaded_model,
        prompts=prompts,
        scorer=replace(rollouts.scorer, robust=settings.robust),
        grid=rollouts.grid,
        conditioning=rollouts.conditioning,
        unconditional=rollouts.unconditional,
        random=rollouts.random,
        keeps_encoders=rollouts.keeps_encoders,
        no_grad_denoiser=cast("Net", torch.compile(denoise)) if settings.compile else denoise,
        parameters=parameters,
        optimizer=optimizer,
        preview=preview,
        recomputes_blocks=recomputes_blocks,
    )

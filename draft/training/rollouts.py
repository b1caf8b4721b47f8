"""What a training and a probe sample: a model, its rewards, and the batches of prompts and noise of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.device import choose_device
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.families.problems import require_family_settings
from draft.diffusion.guidance import GuidanceGradient, Net, guide, has_two_branches, without_guidance
from draft.diffusion.lora import lora_off
from draft.diffusion.memory import require_memory
from draft.diffusion.prompt_store import PromptStore, TextEncoder, open_store
from draft.diffusion.sampling import Output
from draft.diffusion.schedule import Grid, make_grid
from draft.diffusion.settings import SamplerSettings
from draft.methods.run import Batch
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.backward import Scorer
from draft.scoring.guards import check_sensitivity
from draft.scoring.rewards import LoadedReward, load_rewards
from draft.training.state import Randomness
from draft.types import Prompts, Size, size_of


class RolloutSettings(Protocol):
    """The settings that rollouts depend on; `draft.training.settings` explains them."""

    @property
    def sampler(self) -> SamplerSettings: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def cfg_gradient(self) -> GuidanceGradient: ...
    @property
    def saturation(self) -> Literal["clip", "straight_through"]: ...
    @property
    def mixed_precision(self) -> Literal["no", "bf16"]: ...
    @property
    def resolution(self) -> int | tuple[int, int] | None: ...
    @property
    def device(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """A model with its rewards, and batches of prompts with their noise.

    Args:
        settings: How batches are sampled and scored.
        model: The model.
        prompts: All prompts.
        scorer: Decoder and rewards.
        grid: The sampling grid.
        conditioning: That of the prompts, by their numbers, on the CPU.
        unconditional: The negative prompt's, of length 1.
        random: All randomness.
        no_grad_denoiser: The denoiser for calls without gradient.
        keeps_encoders: Whether prompts are embedded when they are drawn, so that the text encoders must stay.
    """

    settings: RolloutSettings
    model: TextToImage
    prompts: Prompts
    scorer: Scorer
    grid: Grid
    conditioning: PromptStore | Conditioning
    unconditional: Conditioning
    random: Randomness
    no_grad_denoiser: Net
    keeps_encoders: bool = False

    @property
    def rewards(self) -> Sequence[LoadedReward]:
        """The loaded rewards."""
        return self.scorer.rewards

    @property
    def size(self) -> Size:
        """The size of the images."""
        return size_of(self.settings.resolution, self.model.default_size)

    @property
    def has_two_branches(self) -> bool:
        """Whether guidance also calls the network with the negative prompt."""
        return has_two_branches(self.model.family.guidance, self.settings.sampler.guidance_scale)

    def next_batch(self) -> Batch:
        """Draw the next prompts and their noise."""
        shape = (self.settings.batch_size, *self.model.latent_shape(self.size))
        device = self.model.device
        indices = self.random.indices(shape[0])
        noise = self.random.noise(*shape).to(device)
        fresh = [z.to(device) for z in self.random.fresh(self.grid.steps, *shape)] if self.grid.stochastic else None
        return Batch(self.prompts.take(indices), indices, self.conditioning[indices].to(device), noise, fresh)

    def output(
        self,
        batch: Batch,
        *,
        adapted: bool = True,
        guided: bool = True,
        gradient: GuidanceGradient = "both",
        recorded: bool = False,
        grid: Grid | None = None,
    ) -> Output:
        """The network's output as a function of (latents, step); see `draft.methods.run.TrainingRun.output`."""
        family = self.model.family
        scale = self.settings.sampler.guidance_scale if guided else without_guidance(family.guidance)
        net = self.model.denoise if recorded else self.no_grad_denoiser
        plain = guide(
            net,
            grid or self.grid,
            batch.conditioning,
            self.unconditional,
            scale,
            rule=family.guidance,
            patch=family.patch,
            gradient=gradient,
        )
        if adapted:
            return plain

        def base(x: Tensor, i: int) -> Tensor:
            with lora_off(self.model.network):
                return plain(x, i)

        return base

    def draw_noise(self, like: Tensor, copies: int = 1) -> Tensor:
        """Standard normal noise from the method's own generator, (copies * B, C, ...) for latents (B, C, ...)."""
        shape = (copies * like.shape[0], *like.shape[1:])
        return torch.randn(shape, generator=self.random.method).to(like)


def load_rollouts(
    settings: RolloutSettings,
    model: str,
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    *,
    draws: int,
    label: str,
    text_encoder: TextEncoder = "auto",
    progress: Progress,
) -> Rollouts:
    """Load a model and rewards, and embed what will be drawn; the text encoders are still there.

    Args:
        settings: How batches are sampled and scored.
        model: Folder, checkpoint file or hub id.
        prompts: The prompts.
        terms: The rewards.
        seed: Seed of the prompts' order and all noise.
        draws: Prompts that will be drawn in all.
        label: What the rollouts are for, in a line of the log.
        text_encoder: When prompts are embedded.
        progress: Reports how much of the network's output the last step adds, and what is embedded.

    Returns:
        The rollouts before the first batch.

    Raises:
        DraftError: The model cannot be loaded, or the sampler does not fit it.
    """
    device = choose_device(settings.device)
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    require_memory(model, settings.device, dtype)
    loaded_model = load_text_to_image(model, device=device, dtype=dtype)
    require_family_settings(loaded_model.family, settings.sampler, cfg_gradient=settings.cfg_gradient)
    size = size_of(settings.resolution, loaded_model.default_size)
    grid = make_grid(loaded_model.schedule(size, settings.sampler.num_inference_steps), settings.sampler)
    reach = check_sensitivity(grid)
    progress.say(f"{label}: {grid.steps} sampling steps; the last one adds {reach:.3f} of the network's output")
    rewards = load_rewards(terms, device)
    random = Randomness(seed, len(prompts))
    conditioning, keeps_encoders = open_store(
        loaded_model,
        prompts,
        size,
        kind=text_encoder,
        upcoming=random.upcoming,
        draws=draws,
        reopen=lambda: load_text_to_image(model, device=device, dtype=dtype),
        progress=progress,
    )
    decode = partial(loaded_model.decode, straight_through=settings.saturation == "straight_through")
    return Rollouts(
        settings=settings,
        model=loaded_model,
        prompts=prompts,
        scorer=Scorer(decode, rewards, settings.micro_batch_size),
        grid=grid,
        conditioning=conditioning,
        unconditional=loaded_model.unconditional(settings.sampler.negative_prompt, size),
        random=random,
        no_grad_denoiser=loaded_model.denoise,
        keeps_encoders=keeps_encoders,
    )

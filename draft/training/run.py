"""A training in progress: what stays fixed, the few things that change, and what every method needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.device import choose_device
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.families.problems import require_family_settings
from draft.diffusion.generate import seeded_noise
from draft.diffusion.guidance import GuidanceGradient, Net, guide, has_two_branches, without_guidance
from draft.diffusion.lora import lora_off, lora_parameters
from draft.diffusion.memory import require_memory
from draft.diffusion.prompt_store import PromptStore, open_store
from draft.diffusion.sampling import Output
from draft.diffusion.schedule import Grid, make_grid
from draft.methods.run import Batch
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.backward import Scorer
from draft.scoring.guards import check_sensitivity
from draft.scoring.objective import LinearLoss, PenaltySettings, RobustSettings
from draft.scoring.rewards import LoadedReward, load_rewards
from draft.training.base_adapters import FRESH, Foundation, lay_foundation, read_foundation
from draft.training.settings import TrainSettings
from draft.training.state import Randomness
from draft.types import Prompts, Size, size_of


@dataclass
class Run:
    """A training in progress.

    Args:
        settings: Everything about it.
        model: The model with the adapter that learns.
        prompts: All training prompts.
        scorer: Decoder and rewards.
        grid: The sampling grid.
        conditioning: That of the prompts, by their numbers, on the CPU.
        unconditional: The negative prompt's, of length 1.
        parameters: What learns.
        optimizer: AdamW on it.
        random: All randomness.
        no_grad_denoiser: The denoiser for calls without gradient, compiled if the settings say so.
        preview: (conditioning, noise) of the grid of progress pictures; None: there is none.
        recomputes_blocks: Whether the network recomputes its blocks in backward.
    """

    settings: TrainSettings
    model: TextToImage
    prompts: Prompts
    scorer: Scorer
    grid: Grid
    conditioning: PromptStore | Conditioning
    unconditional: Conditioning
    parameters: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    random: Randomness
    no_grad_denoiser: Net
    preview: tuple[Conditioning, Tensor] | None = None
    recomputes_blocks: bool = False

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
        """The network's output as a function of (latents, step).

        Args:
            batch: Whose prompts it follows.
            adapted: Whether the adapter that learns is on; off is the base model, with the adapters beneath.
            guided: Whether with guidance.
            gradient: What guidance does in calls that carry gradient.
            recorded: Whether calls may carry gradient; others may be compiled.
            grid: Whose steps they are; None: the sampling grid's.

        Returns:
            The output.
        """
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
    foundation: Foundation = FRESH,
) -> Run:
    """Load everything, embed what will be drawn, drop the text encoders, and put the LoRA that learns on the model.

    Args:
        settings: The training's settings.
        model: Folder, checkpoint file or hub id.
        prompts: The training prompts.
        terms: The rewards.
        seed: The training's seed.
        progress: Told how far the network's last step reaches.
        foundation: The adapter that the LoRA begins at, and those beneath it.

    Returns:
        The run before its first update.

    Raises:
        DraftError: The model or an adapter cannot be loaded, or the sampler or an adapter does not fit it.
    """
    device = choose_device(settings.device)
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    require_memory(model, settings.device, dtype)
    loaded_model = load_text_to_image(model, device=device, dtype=dtype)
    lora = replace(settings.lora, targets=settings.lora.targets or loaded_model.family.targets)
    footing = read_foundation(foundation, lora, progress)
    require_family_settings(loaded_model.family, settings.sampler, cfg_gradient=settings.cfg_gradient)
    size = size_of(settings.resolution, loaded_model.default_size)
    grid = make_grid(loaded_model.schedule(size, settings.sampler.num_inference_steps), settings.sampler)
    shape = loaded_model.latent_shape(size)
    progress.say(
        f"{settings.method.kind}: {grid.steps} sampling steps, sensitivity of the last {check_sensitivity(grid):.3f}"
    )
    rewards = load_rewards(terms, device)
    random = Randomness(seed, len(prompts))
    conditioning, encoders_stay = open_store(
        loaded_model,
        prompts,
        size,
        kind=settings.text_encoder,
        upcoming=random.upcoming,
        draws=settings.max_steps * settings.gradient_accumulation_steps * settings.batch_size,
        reopen=lambda: load_text_to_image(model, device=device, dtype=dtype),
        progress=progress,
    )
    unconditional = loaded_model.unconditional(settings.sampler.negative_prompt, size)
    preview = None
    if settings.preview.every:
        shown = settings.preview.prompts or tuple(prompts[: settings.preview.count])
        seeds = [settings.preview.seed + k for k in range(len(shown))]
        preview = (loaded_model.encode(shown, size), seeded_noise(seeds, shape))
    if not encoders_stay:
        loaded_model.drop_encoders()  # before the denoiser is read, so that there is room for the larger of them alone
    lay_foundation(footing, loaded_model, lora, seed=seed)
    recomputes_blocks = settings.gradient_checkpointing is True and loaded_model.checkpoint_blocks(True)
    parameters = lora_parameters(loaded_model.network)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    decode = partial(loaded_model.decode, straight_through=settings.saturation == "straight_through")
    scorer = Scorer(decode, rewards, settings.micro_batch_size, settings.robust)
    no_grad_denoiser = loaded_model.denoise
    if settings.compile:
        no_grad_denoiser = cast("Net", torch.compile(no_grad_denoiser))
    return Run(
        settings, loaded_model, prompts, scorer, grid, conditioning, unconditional, parameters, optimizer, random,
        no_grad_denoiser, preview, recomputes_blocks,
    )  # fmt: skip

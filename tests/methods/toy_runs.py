"""Runs on a tiny model in double precision whose every update can be made again by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.lora import add_lora, lora_parameters
from draft.diffusion.schedule import make_grid
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.diffusion.surrogate import Rollout, roll_out
from draft.methods.run import Batch
from draft.methods.values import Method
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.scoring.backward import Scorer
from draft.scoring.rewards import LoadedReward
from draft.training.run import Run
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.state import Randomness
from draft.training.train import train
from draft.types import Prompts

CPU = torch.device("cpu")
PROMPTS = Prompts(["a cat", "a horse", "two grey birds"], {"value": ["10", "200", "3000"]})
SETTINGS = TrainSettings(
    sampler=SamplerSettings(num_inference_steps=3, guidance_scale=2.0),
    lora=LoraSettings(rank=2),
    learning_rate=1e-2,
    max_steps=3,
    batch_size=2,
    gradient_accumulation_steps=3,
    checkpoint=CheckpointSettings(every=1),
    device="cpu",
)


class Bright(Reward):
    """An image's mean squared brightness, and what its prompt is worth."""

    name = "bright"
    valued: bool = False

    def load(self, device: torch.device) -> Any:
        def score(images: Tensor, prompts: Any) -> Tensor:
            worth = [float(value) if self.valued else 0.0 for value in prompts.column("value")]
            return images.square().mean(dim=(1, 2, 3)) + images.new_tensor(worth)

        return score


class Blind(Bright):
    """The same without gradient."""

    name = "blind"
    differentiable = False

    def load(self, device: torch.device) -> Any:
        score = super().load(device)
        return lambda images, prompts: score(images, prompts).detach()


def with_noise(settings: TrainSettings) -> TrainSettings:
    """The settings with the fresh noise that their method wants."""
    eta = 1.0 if settings.method.traits.eta == "positive" else 0.0
    return replace(settings, sampler=replace(settings.sampler, eta=eta))


def load(folder: Path) -> tuple[TextToImage, Conditioning, Conditioning]:
    """The model with an adapter, and its conditioning of the prompts and of nothing."""
    model = load_text_to_image(str(folder), device=CPU, dtype=torch.float64)
    add_lora(model.network, SETTINGS.lora, seed=0)
    return model, model.encode(PROMPTS, model.default_size), model.encode([""], model.default_size)


def begin(
    loaded: tuple[TextToImage, Conditioning, Conditioning],
    method: Method,
    *,
    valued: bool = False,
    seed: int = 5,
    **changes: Any,
) -> Run:
    """A run that begins where all others begin, its B not zero, on a model that is no other run's."""
    settings = with_noise(replace(SETTINGS, method=method, max_grad_norm=0.0, **changes))
    model, conditioning, unconditional = loaded
    reward, random, generator = Bright(valued=valued), Randomness(seed, len(PROMPTS)), torch.Generator().manual_seed(1)
    parameters = lora_parameters(model.network)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            parameter.grad = None
    scorer = Scorer(
        model.decode,
        [LoadedReward(Term("bright", reward), reward.load(CPU), CPU)],
        settings.micro_batch_size,
        settings.robust,
    )
    noise, fresh = random.noise, random.fresh
    random.noise = lambda *shape: noise(*shape).double()  # type: ignore[method-assign]
    random.fresh = lambda steps, *shape: [z.double() for z in fresh(steps, *shape)]  # type: ignore[method-assign]
    return Run(
        settings=settings,
        model=model,
        prompts=PROMPTS,
        scorer=scorer,
        grid=make_grid(model.schedule(model.default_size, settings.sampler.num_inference_steps), settings.sampler),
        conditioning=conditioning,
        unconditional=unconditional,
        parameters=parameters,
        # AdamW's first step is a sign where its eps is small, whatever the gradient's last bits are.
        optimizer=torch.optim.AdamW(parameters, lr=settings.learning_rate, eps=1e-3),
        random=random,
        no_grad_denoiser=model.denoise,
    )


def brightness(run: Run, latents: Tensor) -> Tensor:
    return run.model.decode(latents).square().mean(dim=(1, 2, 3))


def all_at_once(run: Run) -> tuple[Batch, Rollout, Tensor]:
    """A round as one batch of all its images, with its paths and their brightness."""
    drawn = [run.next_batch() for _ in range(run.settings.gradient_accumulation_steps)]
    indices = [index for each in drawn for index in each.indices]
    fresh = [torch.cat(each) for each in zip(*(each.fresh for each in drawn), strict=True)]
    noise, prompts = torch.cat([each.noise for each in drawn]), run.prompts.take(indices)
    whole = Batch(prompts, indices, run.conditioning[indices], noise, fresh)
    rollout = roll_out(run.output(whole), run.grid, whole.noise, whole.fresh)
    with torch.no_grad():
        return whole, rollout, brightness(run, rollout.states[-1])


def mean_of_step(run: Run, x: Tensor, e: Tensor, i: int) -> Tensor:
    grid = run.grid
    clean = (x - grid.sigma[i] * e) / grid.alpha[i]
    return grid.next_alpha[i] * clean + (grid.next_sigma[i] ** 2 - grid.std[i] ** 2) ** 0.5 * e


def assert_same(made: Run, again: Run) -> None:
    """The same gradient, which is not 0, and the same weights."""
    for one, other in zip(made.parameters, again.parameters, strict=True):
        assert one.grad is not None and other.grad is not None
        size = float(other.grad.abs().max())
        assert size > 0
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5 * size)
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def trained(settings: TrainSettings, model: Path, folder: Path, progress: Any = None, **weight: float) -> list[Any]:
    reward = Bright() if settings.method.traits.reward_gradient else Blind(valued=True)
    train(
        with_noise(settings), model=str(model), prompts=PROMPTS, terms=[Term("bright", reward, **weight)], seed=0,
        folder=folder, progress=progress or Silent(),
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

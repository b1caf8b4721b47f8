"""A trial: what a reward does to a picture's pixels and to a model's latent, before any training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from draft.authoring.ascent import Budget, Frame, climb
from draft.authoring.stand_in import offering_stand_in
from draft.diffusion.device import choose_device
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.generate import make_output, seeded_noise
from draft.diffusion.memory import require_memory
from draft.diffusion.sampling import sample
from draft.diffusion.schedule import make_grid
from draft.diffusion.settings import SamplerSettings
from draft.errors import ConfigError, DraftWarning, did_you_mean
from draft.progress import Progress
from draft.rewards.calls import load_reward, protected
from draft.rewards.discovery import EXTENSIONS, turned_off
from draft.rewards.extensions import model_path, named_model, named_models, remark_on
from draft.rewards.parts import called, without_gradient
from draft.rewards.reward import Reward
from draft.types import Images

Way = Literal["pixels", "latents"]

RATES: Mapping[Way, float] = {"pixels": 0.02, "latents": 0.05}
"""Root mean square of the first step: five of 256 levels, and a twentieth of a latent's standard deviation."""

SAMPLER = SamplerSettings(num_inference_steps=20, guidance_scale=3.0)
"""How the picture to start from is drawn."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """How a reward is tried.

    Args:
        ways: What is changed; each way gets the budget, or its share of the seconds.
        start: `model`: a picture that the model draws for the prompt; `noise`: none.
        budget: How long to climb on each way.
        less: Go down instead of up.
        seed: The first picture's seed; picture i has `seed + i`.
        model: A name of `draft models`, a folder, a checkpoint or a hub id.
        device: `auto`, `cpu`, `cuda`, ...
    """

    ways: tuple[Way, ...] = ("pixels", "latents")
    start: Literal["model", "noise"] = "model"
    budget: Budget = field(default_factory=Budget)
    less: bool = False
    seed: int = 0
    model: str = "emoji"
    device: str = "auto"


def try_reward(
    reward: Reward, prompts: Sequence[str], settings: TrialSettings, progress: Progress
) -> dict[str, list[Frame]]:
    """Climb a reward from the same start on each way.

    Args:
        reward: The reward with its parameters.
        prompts: B prompts, one picture each.
        settings: What to change, from where, how long.
        progress: The reporter.

    Returns:
        The frames of each way.

    Raises:
        DraftError: The reward has no gradient, or the reward or the model cannot be loaded.
    """
    check_triable(reward)
    device = choose_device(settings.device)
    model = _load(settings, device)
    named = named_model(settings.model)
    if named is not None and (remark := remark_on(named, prompts)):
        warnings.warn(remark, DraftWarning, stacklevel=2)
    with offering_stand_in(reward):
        who = called(reward.name, reward)
        score = protected(load_reward(reward, device, who), who, device)
    noise = seeded_noise([settings.seed + i for i in range(len(prompts))], model.latent_shape(model.default_size)).to(
        device
    )
    latents = noise if settings.start == "noise" else _draw(model, prompts, noise)
    with torch.no_grad():
        pixels = model.decode(latents)
    frames: dict[str, list[Frame]] = {}
    for way in settings.ways:
        progress.start(way, 100)
        frames[way] = climb(
            score,
            prompts,
            pixels if way == "pixels" else latents,
            _as_it_is if way == "pixels" else model.decode,
            rate=RATES[way],
            budget=_share(settings),
            bounds=(0.0, 1.0) if way == "pixels" else None,
            less=settings.less,
            progress=progress,
        )
        progress.stop()
    return frames


def pictured(reward: Reward, prompts: Sequence[str]) -> list[str]:
    """The prompts of a trial's pictures: one picture each, four where a reward compares pictures and there is one.

    Args:
        reward: The reward.
        prompts: What the user asked for.

    Returns:
        B prompts.
    """
    return list(prompts) * (4 if len(prompts) == 1 and not reward.per_image else 1)


def check_triable(reward: Reward) -> None:
    """Refuse a reward that cannot be climbed.

    Args:
        reward: The reward.

    Raises:
        ConfigError: It has no gradient.
    """
    for keys, part in without_gradient(reward):
        raise ConfigError(
            f"reward {part.name!r} has no gradient, so there is nothing to climb",
            where=".".join((reward.name, *keys)),
            hint=f"`draft rewards score {reward.name} IMAGES...` measures it on pictures",
        )


def _load(settings: TrialSettings, device: torch.device) -> TextToImage:
    path = model_path(settings.model)
    if path == settings.model and not Path(path).expanduser().exists() and "/" not in path:
        names = list(named_models())
        otherwise = f"give a folder, a hub id such as owner/name, or one of {', '.join(names)}"
        raise ConfigError(
            f"no such model (got {path!r})",
            where="command line, --model",
            hint=did_you_mean(path, names, otherwise=turned_off(EXTENSIONS) or otherwise),
        )
    path = str(Path(path).expanduser())
    require_memory(path, settings.device, torch.float32)
    return load_text_to_image(path, device=device, dtype=torch.float32)


def _draw(model: TextToImage, prompts: Sequence[str], noise: Tensor) -> Tensor:
    """The latents of one picture per prompt."""
    size = model.default_size
    grid = make_grid(model.schedule(size, SAMPLER.num_inference_steps), SAMPLER)
    with torch.no_grad():
        conditioning, unconditional = model.encode(prompts, size), model.unconditional(SAMPLER.negative_prompt, size)
        model.drop_encoders()
        output = make_output(model, grid, conditioning, unconditional, SAMPLER)
        return sample(output, grid, noise)


def _as_it_is(images: Images) -> Images:
    return images


def _share(settings: TrialSettings) -> Budget:
    return Budget(settings.budget.steps, settings.budget.seconds / len(settings.ways))

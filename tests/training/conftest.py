"""A small training that can be stopped after some updates and started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.methods.values import DraftLV
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.branch import remove_superseded
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.train import train
from draft.types import Prompts

PROMPTS = Prompts(["a cat", "a dog", "two birds"])
SETTINGS = TrainSettings(
    method=DraftLV(copies=1),
    sampler=SamplerSettings(num_inference_steps=2, guidance_scale=1.0),
    lora=LoraSettings(rank=2),
    learning_rate=1e-2,
    max_steps=6,
    batch_size=2,
    micro_batch_size=0,
    checkpoint=CheckpointSettings(every=2, keep=9),
    device="cpu",
)


class Brightness(Reward):
    """How bright an image is, or nothing a training could use."""

    name = "brightness"
    breaks_after: int = 1000

    def load(self, device: torch.device) -> Any:
        calls = iter(range(1, 1000))

        def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
            broken = next(calls) > self.breaks_after
            return images.mean(dim=(1, 2, 3)) * (float("nan") if broken else 1.0)

        return score


class Listener(Silent):
    """A reporter that remembers what it heard, and interrupts after some updates."""

    def __init__(self, after: int = 1000) -> None:
        self.left = after
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)

    def advance(self, count: int, figures: Any = None) -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


Run = Callable[..., list[str]]


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Run:
    def run(
        settings: TrainSettings,
        folder: str,
        *,
        stop: int | None = None,
        terms: list[Term] | None = None,
        **options: Any,
    ) -> list[str]:
        progress = Listener(1000 if stop is None else stop)

        def go() -> None:
            train(
                settings,
                model=str(tiny_model),
                prompts=options.pop("prompts", PROMPTS),
                terms=terms or [Term("bright", Brightness())],
                seed=0,
                folder=tmp_path / folder,
                progress=progress,
                **options,
            )

        if stop is None:
            go()
            remove_superseded(tmp_path / folder / "checkpoints", keep_final=settings.checkpoint.keep_final)
        else:
            with pytest.raises(KeyboardInterrupt):
                go()
        return progress.heard

    return run


@pytest.fixture
def settings() -> TrainSettings:
    """The settings of that training."""
    return SETTINGS


@pytest.fixture
def brightness() -> type[Brightness]:
    """The reward of that training."""
    return Brightness


@pytest.fixture
def listener() -> type[Listener]:
    """What hears of a training and interrupts it."""
    return Listener

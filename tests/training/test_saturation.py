"""A training tells the share of clipped pixels, and `saturation` decides whether they learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draft.diffusion.families.sd import StableDiffusion
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.methods.values import DraftK
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.settings import TrainSettings
from draft.training.train import train
from draft.types import Prompts

SETTINGS = TrainSettings(
    method=DraftK(k=1),
    sampler=SamplerSettings(num_inference_steps=2, guidance_scale=1.0),
    lora=LoraSettings(rank=2),
    max_steps=1,
    batch_size=2,
    device="cpu",
)


class Brightness(Reward):
    """The mean of all pixels, whose gradient is the same at every pixel."""

    name = "brightness"

    def load(self, device: torch.device):
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


def first_update(
    settings: TrainSettings, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> dict[str, float]:
    def shifted(self: StableDiffusion, latents: torch.Tensor, **options: bool) -> torch.Tensor:
        with torch.no_grad():
            self.components["vae"].decoder.conv_out.bias.fill_(shift)
        return decode(self, latents, **options)

    decode = StableDiffusion.decode
    monkeypatch.setattr(StableDiffusion, "decode", shifted)
    term = Term("brightness", Brightness())
    train(
        settings, model=str(model), prompts=Prompts(["a cat", "a dog"]), terms=[term], seed=0, folder=folder,
        progress=Silent(),
    )  # fmt: skip
    monkeypatch.setattr(StableDiffusion, "decode", decode)
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


def test_only_straight_through_learns_from_pixels_that_are_clipped(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = replace(SETTINGS, saturation="straight_through")
    # The decoder's output is y = 2x - 1: a bias of 100 puts every pixel far above 1, one of 0 leaves nearly all inside.
    for name, shift, share in (("white", 100.0, 1.0), ("inside", 0.0, 0.0)):
        clipped, passed = (
            first_update(settings, tiny_model, tmp_path / f"{name}{index}", monkeypatch, shift)
            for index, settings in enumerate((SETTINGS, straight))
        )
        assert clipped["saturated"] == passed["saturated"] == pytest.approx(share, abs=0.05)
        assert clipped["brightness"] == passed["brightness"], "the images are the same"
        assert passed["grad_norm"] > 0
        assert clipped["grad_norm"] == (0 if share else pytest.approx(passed["grad_norm"], rel=0.1))

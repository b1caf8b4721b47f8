"""A small training in a process of its own, to be killed: run_tiny.py MODEL FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.methods.values import DraftLV
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.train import train
from draft.types import Prompts


class Brightness(Reward):
    """How bright an image is."""

    name = "brightness"

    def load(self, device: Any) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


def main(model: Path, folder: Path) -> None:
    settings = TrainSettings(
        method=DraftLV(copies=1),
        sampler=SamplerSettings(num_inference_steps=3, guidance_scale=2.0),
        lora=LoraSettings(rank=2),
        learning_rate=1e-2,
        max_steps=30,
        batch_size=2,
        checkpoint=CheckpointSettings(every=4),
        device="cpu",
    )
    prompts = Prompts(["a cat", "a dog", "two birds"])
    train(
        settings,
        model=str(model),
        prompts=prompts,
        terms=[Term("bright", Brightness())],
        seed=4,
        folder=folder,
        progress=Silent(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

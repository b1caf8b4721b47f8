"""A tiny model, toy rewards, and a comparison of two methods on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.comparison.attempt import Ground
from draft.comparison.compare import compare
from draft.comparison.settings import (
    BudgetSettings,
    ComparisonSettings,
    Contender,
    CurveSettings,
    MeasureSettings,
    SearchSettings,
)
from draft.diffusion.methods.values import DraftK, DraftLV, Method
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.progress import Silent
from draft.registry.reward import Reward, Term
from draft.training.settings import CheckpointSettings
from draft.types import Prompts

PROMPTS = Prompts(["a cat", "a dog", "two birds", "a fox"])
HELD_OUT = Prompts(["a cow", "a hen"])
SETTINGS = ComparisonSettings(
    sampler=SamplerSettings(num_inference_steps=3, guidance_scale=1.0),
    lora=LoraSettings(rank=2),
    batch_size=2,
    micro_batch_size=0,
    weight_decay=0.0,
    learning_rates=(1e-3, 1e-1),
    seeds=(0, 1),
    budget=BudgetSettings(updates=4, evaluations=12, seconds=0.05),
    search=SearchSettings(share=1.0),
    curve=CurveSettings(every=2, prompts=2),
    checkpoint=CheckpointSettings(every=1),
    device="cpu",
)


class Toy(Reward):
    """A reward made of any function of the images."""

    name = "toy"
    kind: str = "bright"

    def load(self, device: torch.device) -> Any:
        return {
            "bright": lambda images, prompts: images.mean(dim=(1, 2, 3)),
            "contrast": lambda images, prompts: images.flatten(1).std(dim=1),
        }[self.kind]


class Whole(Toy):
    """The spread of brightness over all images at once, without gradient."""

    name = "whole"
    differentiable = False
    per_image = False

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3)).std().expand(len(images)).detach()


def contender(method: Method, settings: ComparisonSettings = SETTINGS, **own: Any) -> Contender:
    shared = {name: getattr(settings, name) for name in ("sampler", "lora", "batch_size", "micro_batch_size", "device")}
    options = {"weight_decay": 0.0, "checkpoint": settings.checkpoint, "learning_rates": settings.learning_rates}
    return Contender(method=method, **{**shared, **options, **own})


METHODS = {"lv": contender(DraftLV(copies=1)), "k": contender(DraftK(k=2), learning_rates=(1e-2,))}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(__file__).parent.parent / "diffusion" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


class Compared:
    """Runs comparisons in one folder."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.terms: list[Term] = [Term("bright", Toy(), 2.0)]

    def __call__(
        self,
        methods: Mapping[str, Contender] = METHODS,
        settings: ComparisonSettings = SETTINGS,
        **options: Any,
    ) -> dict[str, float]:
        self.folder.mkdir(exist_ok=True)
        given = {
            "ground": Ground(model=str(self.model), prompts=PROMPTS, terms=self.terms),
            "measure": MeasureSettings(images_per_prompt=2, batch_size=3),
            "held_out": HELD_OUT,
            "measures": [Term("contrast", Toy(kind="contrast")), Term("whole", Whole())],
            "seed": 5,
            "progress": Silent(),
            "title": "demo & co",
        }
        return compare(settings, methods, folder=self.folder, **{**given, **options})


@pytest.fixture
def compared(tiny_model: Path, tmp_path: Path) -> Compared:
    return Compared(tiny_model, tmp_path / "compare")

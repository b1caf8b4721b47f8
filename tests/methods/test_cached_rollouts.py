"""Trainings whose gradients come from a cached rollout: they learn, they reuse it, they go on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft.adapters.files.formats import denoiser_factors, read_adapter
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.lora import load_lora
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftError
from draft.methods.rules import make_rule
from draft.methods.values import DirectAlign, FlowBPBridge, FlowBPLagrange, FlowBPSparse, LeapAlign
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.scoring.objective import PenaltySettings, RobustSettings
from draft.training.run import Run, prepare
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.train import train
from draft.types import Prompts

METHODS: list[Any] = [
    DirectAlign(),
    DirectAlign(branches="both", recovery="delta"),
    LeapAlign(),
    LeapAlign(leap_cap=0, pairs="dirichlet"),
    FlowBPSparse(k=2),
    FlowBPBridge(k=3, frozen="velocity"),
    FlowBPLagrange(mode="all", frozen="velocity"),
]
PROMPTS = Prompts(["a cat", "a dog", "two birds"])
SETTINGS = TrainSettings(
    sampler=SamplerSettings(num_inference_steps=4, guidance_scale=2.0),
    lora=LoraSettings(rank=2),
    learning_rate=0.1,
    weight_decay=0.0,
    max_steps=12,
    batch_size=2,
    checkpoint=CheckpointSettings(every=1),
    device="cpu",
)
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)


class Bright(Reward):
    """How bright an image is; how dark where the prompt asks for a `Dark` one."""

    name = "bright"
    reads: bool = False

    def load(self, device: torch.device) -> Any:
        def score(images: Tensor, prompts: Any) -> Tensor:
            sign = [-1.0 if self.reads and text.startswith("Dark. ") else 1.0 for text in prompts]
            return images.mean(dim=(1, 2, 3)) * images.new_tensor(sign)

        return score


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Callable[..., list[dict[str, float]]]:
    def run(method: Any, *, folder: str = "out", reads: bool = False, progress: Any = None, **changes: Any) -> Any:
        train(
            replace(SETTINGS, method=method, **changes),
            model=str(tiny_model),
            prompts=PROMPTS,
            terms=[Term("bright", Bright(reads=reads))],
            seed=0,
            folder=tmp_path / folder,
            progress=progress or Silent(),
        )
        return [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.fixture
def brightness(tiny_model: Path, tmp_path: Path) -> Callable[..., float]:
    """Of the same images by the base model, or by an adapter."""

    def brightness(folder: str = "") -> float:
        model = load_text_to_image(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)
        if folder:
            factors = denoiser_factors(read_adapter(tmp_path / folder / "adapter.safetensors"))
            load_lora(model.network, factors, name="trained")
        return float(torch.cat(list(generate_images(model, ["a cat"] * 8, range(8), SETTINGS.sampler))).mean())

    return brightness


# Bridge and Lagrange follow long paths, which need not climb on a network that was never trained.
@pytest.mark.parametrize("method", METHODS[:5], ids=lambda method: method.kind)
def test_the_reward_rises(run: Any, brightness: Any, method: Any) -> None:
    run(method)
    assert brightness("out") > brightness() + 0.003


def test_srpo_moves_from_the_negative_word_to_the_positive_one(run: Any, brightness: Any) -> None:
    for positive, negative in (("Light", "Dark"), ("Dark", "Light")):
        method = DirectAlign(positive=(positive,), negative=(negative,), branches="both")
        # Slower than the others: at 0.1 a twelfth update depends on the last bits of the first.
        rows = run(method, folder=positive, reads=True, learning_rate=0.03)
        assert rows[0]["evaluations"] == 2 * 2 * 2  # two branches, two texts, two images
    assert brightness("Light") > brightness() + 0.003 > brightness("Dark") + 0.006


@methods
def test_gradients_of_one_rollout_are_averaged(prepared: Any, method: Any) -> None:
    three = _gradients(prepared(method, rollout_reuse=3))
    singles = prepared(method, rollout_reuse=1)
    draws = singles.random.state()
    found = []
    for _ in range(3):
        found.append(_gradients(singles))
        method_state = singles.random.state()["method"]
        singles.random.restore(draws | {"method": method_state})  # the same prompts and noise, the next draws
    mean = [torch.stack(each).mean(0) for each in zip(*found, strict=True)]
    for got, expected in zip(three, mean, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert len({float(torch.stack([g.norm() for g in each]).norm()) for each in found}) > 1


@pytest.fixture
def prepared(tiny_model: Path) -> Callable[..., Run]:
    def prepared(method: Any, **changes: Any) -> Run:
        settings = replace(SETTINGS, method=method, learning_rate=1e-30, max_grad_norm=0.0, **changes)
        settings = replace(settings, sampler=replace(settings.sampler, num_inference_steps=7))
        found = prepare(settings, str(tiny_model), PROMPTS, [Term("bright", Bright())], 0, Silent())
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in found.parameters[1::2]:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return found

    return prepared


def _gradients(run: Run) -> list[Tensor]:
    make_rule(run.settings.method, run).update(run, 0)
    return [parameter.grad.clone() for parameter in run.parameters if parameter.grad is not None]


class Stop(Silent):
    """Interrupts a training after some updates."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int = 1, values: Any = None) -> None:
        self.left -= count
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", [METHODS[1], METHODS[3], METHODS[5]], ids=lambda method: method.kind)
def test_an_interrupted_training_ends_with_the_same_bytes(run: Any, tmp_path: Path, method: Any) -> None:
    run(method, folder="whole", rollout_reuse=2, max_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(method, folder="cut", rollout_reuse=2, max_steps=3, progress=Stop(2))
    run(method, folder="cut", rollout_reuse=2, max_steps=3)
    whole, cut = (tmp_path / name / "adapter.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@methods
def test_penalty_robustness_and_the_gradient_of_guidance_act_on_it(prepared: Any, method: Any) -> None:
    plain = _gradients(prepared(method))
    changes: list[dict[str, Any]] = [
        {"penalty": PenaltySettings(epsilon=10.0)},
        {"robust": RobustSettings(weight_radius=1.0)},
        {"cfg_gradient": "detached"},
    ]
    for change in changes:
        other = _gradients(prepared(method, **change))
        assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(plain, other, strict=True)), change


def test_a_leap_cap_that_leaves_no_steps_is_refused_before_any_update(run: Any, tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"method.leap_cap must leave at least 2 of 4 steps \(got 0.001, which leaves"):
        run(LeapAlign(leap_cap=0.001))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()

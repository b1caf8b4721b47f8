"""Evaluation and generation on a tiny model, from adapter files to the page."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from draft.diffusion.settings import SamplerSettings
from draft.errors import ConfigError, StageError
from draft.evaluation.evaluate import evaluate
from draft.evaluation.settings import EvaluateSettings
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.types import Prompts

SAMPLER = SamplerSettings(num_inference_steps=2, guidance_scale=2.0)
SETTINGS = EvaluateSettings(sampler=SAMPLER, images_per_prompt=2, batch_size=3, bootstrap_samples=100, shown=2)
PROMPTS = Prompts(["cat", "dog", "bee"], {"target": ["1", "2", "3"]})


class Bright(Reward):
    """How bright an image is, 0 (black) to 1 (white)."""

    name = "bright"

    def load(self, device: torch.device) -> Callable[[torch.Tensor, Sequence[str]], torch.Tensor]:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


class Spread(Reward):
    """How far an image is from the mean of all; needs the whole set."""

    name = "spread"
    per_image = False
    differentiable = False

    def load(self, device: torch.device) -> Callable[[torch.Tensor, Sequence[str]], torch.Tensor]:
        return lambda images, prompts: (images - images.mean(0)).abs().mean(dim=(1, 2, 3)) + 0 * len(images)


class Target(Reward):
    """The prompt file's target as a number, NaN for the second."""

    name = "target"

    def load(self, device: torch.device) -> Callable[[torch.Tensor, Sequence[str]], torch.Tensor]:
        def score(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            assert isinstance(prompts, Prompts)
            values = [float(value) for value in prompts.column("target")]
            return torch.tensor([float("nan") if value == 2 else value for value in values])

        return score


class Wrong(Reward):
    """Returns one number too few."""

    name = "wrong"

    def load(self, device: torch.device) -> Callable[[torch.Tensor, Sequence[str]], torch.Tensor]:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))[1:]


TERMS = [Term("bright", Bright()), Term("spread", Spread()), Term("target", Target())]


@pytest.fixture(scope="module")
def done(
    tiny_model: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("evaluation")
    figures = evaluate(
        SETTINGS,
        model=str(tiny_model),
        adapters={"full": (tiny_adapter, 1.0), "off": (tiny_adapter, 0.0), "a.b/c <half>": (tiny_adapter, 0.5)},
        prompts=PROMPTS,
        terms=TERMS,
        seed=3,
        folder=folder,
        progress=Silent(),
        title="Tiny",
    )
    return folder, figures


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_every_arm_draws_every_prompt_and_seed(done: tuple[Path, dict[str, float]]) -> None:
    images = done[0] / "images"
    assert sorted(p.name for p in images.iterdir()) == sorted(["base", "full", "off", "a.b_c__half_"])
    for arm in images.iterdir():
        assert sorted(p.name for p in arm.iterdir()) == [f"{i:04d}.png" for i in range(6)]
        assert all(Image.open(p).size == (16, 16) for p in arm.iterdir())


def test_weight_zero_is_the_base_model_and_weight_one_is_not(done: tuple[Path, dict[str, float]]) -> None:
    images = done[0] / "images"
    for i in range(6):
        assert (images / "off" / f"{i:04d}.png").read_bytes() == (images / "base" / f"{i:04d}.png").read_bytes()
    assert np.abs(pixels(images / "full" / "0000.png") - pixels(images / "base" / "0000.png")).max() > 3
    assert done[1]["off.bright.gain"] == 0.0 and done[1]["full.bright.gain"] != 0.0


def test_the_report_holds_the_means_gains_and_scores_of_the_saved_images(done: tuple[Path, dict[str, float]]) -> None:
    folder, figures = done
    report = json.loads((folder / "report.json").read_text())
    for arm in ("base", "full", "off"):
        means = [pixels(folder / "images" / arm / f"{i:04d}.png").mean() / 255 for i in range(6)]
        cell = report["arms"][arm]["bright"]
        assert cell["scores"] == pytest.approx(means, abs=2e-3)
        assert cell["mean"]["mean"] == pytest.approx(np.mean(cell["scores"])) == pytest.approx(figures[f"{arm}.bright"])
    gain = report["arms"]["full"]["bright"]["gain"]
    assert gain["mean"] == pytest.approx(figures["full.bright"] - figures["base.bright"], abs=1e-6)
    assert gain["low"] <= gain["mean"] <= gain["high"]
    assert report["images"] == [
        {"prompt": p, "seed": 3 + i} for i, p in enumerate(["cat"] * 2 + ["dog"] * 2 + ["bee"] * 2)
    ]
    assert report["arms"]["base"]["bright"]["gain"] is None
    assert {"python", "draft", "torch", "diffusers", "peft"} <= set(report["versions"])


def test_a_reward_that_sees_the_whole_set_gets_it_whole(done: tuple[Path, dict[str, float]]) -> None:
    folder, _ = done
    images = torch.stack(
        [torch.from_numpy(pixels(folder / "images" / "base" / f"{i:04d}.png")) / 255 for i in range(6)]
    )
    wanted = (images - images.mean(0)).abs().mean(dim=(1, 2, 3))
    report = json.loads((folder / "report.json").read_text())
    assert report["arms"]["base"]["spread"]["scores"] == pytest.approx(wanted.tolist(), abs=3e-3)


def test_columns_reach_the_rewards_and_missing_scores_are_null_not_zero(done: tuple[Path, dict[str, float]]) -> None:
    folder, figures = done
    report = json.loads((folder / "report.json").read_text())
    assert report["arms"]["full"]["target"]["scores"] == [1, 1, None, None, 3, 3]
    assert figures["full.target"] == 2.0 and figures["full.target.gain"] == 0.0
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(rows) == 4 * 6
    assert rows[2]["target"] == "nan" and rows[2]["prompt"] == "dog" and rows[2]["seed"] == "5"
    assert "2 of 6 scores missing" in (folder / "report.html").read_text()


def test_a_repeated_evaluation_gives_the_same_numbers_and_images(
    done: tuple[Path, dict[str, float]], tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    again = evaluate(
        SETTINGS,
        model=str(tiny_model),
        adapters={"full": (tiny_adapter, 1.0)},
        prompts=PROMPTS,
        terms=TERMS,
        seed=3,
        folder=tmp_path,
        progress=Silent(),
    )
    assert again == {key: value for key, value in done[1].items() if key.startswith(("base.", "full."))}
    first, second = (f / "images" / "full" / "0005.png" for f in (done[0], tmp_path))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"terms": []}, ConfigError, "nothing to measure"),
        ({"prompts": Prompts([])}, ConfigError, "no prompts to draw"),
        ({"terms": [Term("w", Wrong())]}, StageError, r"one score per image, shape \(3,\) \(got \(2,\)\)"),
        ({"adapters": {"base": (Path("x"), 1.0)}}, ConfigError, "'base' is the label of the model without adapters"),
        ({"adapters": {"a": (Path("no.safetensors"), 1.0)}}, StageError, "no such adapter file"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    tiny_model: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"model": str(tiny_model), "adapters": {}, "prompts": PROMPTS, "terms": TERMS, "seed": 0}
    with pytest.raises(error, match=message):
        evaluate(SETTINGS, **(arguments | change), folder=tmp_path, progress=Silent())  # type: ignore[arg-type]
    assert not (tmp_path / "report.html").exists()

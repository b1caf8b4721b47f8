"""A comparison on a tiny model: equal budgets, proper samples, a search that survives failures, and going on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.adapters.files.formats import denoiser_factors, read_adapter
from draft.comparison import training as trainings
from draft.comparison.compare import compare
from draft.comparison.settings import (
    BudgetSettings,
    ComparisonSettings,
    CurveSettings,
    MeasureSettings,
    MethodConfig,
    SearchSettings,
)
from draft.comparison.training import TrainingInputs
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.lora import load_lora
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DraftWarning, ResourceError, StageError
from draft.methods.values import DraftK, DraftLV, Method
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.training.settings import CheckpointSettings
from draft.types import Prompts

PROMPTS = Prompts(["a cat", "a dog", "two birds", "a fox"])
HELD_OUT = Prompts(["a cow", "a hen"])
SAMPLER = SamplerSettings(num_inference_steps=3, guidance_scale=1.0)
SETTINGS = ComparisonSettings(
    sampler=SAMPLER,
    seeds=(0, 1),
    # So few seconds that the first update spends them, and a cap that no training comes to.
    budget=BudgetSettings(updates=4, evaluations=12, seconds=1e-3, cap=1e6),
    search=SearchSettings(share=1.0),
    curve=CurveSettings(every=2, prompts=2),
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
            "constant": lambda images, prompts: images.mean(dim=(1, 2, 3)) * 0,
        }[self.kind]


class Whole(Toy):
    """How brightness differs over all images at once, without gradient."""

    name = "whole"
    differentiable = False
    per_image = False

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3)).std().expand(len(images))


def config(method: Method, **own: Any) -> MethodConfig:
    common: dict[str, Any] = {
        "sampler": SAMPLER,
        "lora": LoraSettings(rank=2),
        "batch_size": 2,
        "micro_batch_size": 0,
        "weight_decay": 0.0,
        "checkpoint": CheckpointSettings(every=1),
        "device": "cpu",
        "learning_rates": (1e-2,),
    }
    return MethodConfig(method=method, **{**common, **own})


LV, K = config(DraftLV(copies=1)), config(DraftK(k=2))


@pytest.fixture
def compared(tiny_model: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(
        methods: Mapping[str, MethodConfig],
        settings: ComparisonSettings = SETTINGS,
        folder: str = "out",
        reward: str = "bright",
        progress: Silent | None = None,
    ) -> dict[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        compare(
            settings,
            methods,
            inputs=TrainingInputs(model=str(tiny_model), prompts=PROMPTS, terms=[Term("toy", Toy(kind=reward), 2.0)]),
            measure=MeasureSettings(images_per_prompt=2, batch_size=3),
            held_out=HELD_OUT,
            measures=[Term("contrast", Toy(kind="contrast")), Term("whole", Whole())],
            seed=5,
            folder=tmp_path / folder,
            progress=progress or Silent(),
            title="cats & dogs",
            config_text="seeds: [0, 1]",
        )
        return json.loads((tmp_path / folder / "compare.json").read_text())

    return run


def test_every_training_is_measured_at_the_first_update_that_spends_a_budget(compared, tmp_path: Path) -> None:
    found = compared({"lv": LV, "k": K})
    for label, images in (("lv", 4), ("k", 2)):  # scored in each update: a batch of 2, and with LV a copy of each
        for training in found["methods"][label]["trainings"]:
            spent = {axis: point["spending"] for axis, point in training["spent"].items()}
            assert spent["updates"]["updates"] == 4
            assert spent["evaluations"]["evaluations"] == 12
            assert spent["seconds"]["updates"] == 1
            assert training["spending"]["updates"] == max(4, 12 / images), "it ends when the last budget is spent"
            assert [point["spending"]["updates"] for point in training["curve"]] == [2, 4, 6][: 2 if images == 4 else 3]
            assert training["memory"] is None or training["memory"] > 0
        assert found["methods"][label]["evaluations_per_update"]["mean"] == images
    for name in ("compare.html", "compare.md", "compare.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "cats &amp; dogs" in page and "seeds: [0, 1]" in page
    assert "http:" not in page and "https:" not in page and 'src="data:image/png' in page


def test_the_figures_are_those_of_proper_samples_from_the_written_adapter(compared, tiny_model, tmp_path) -> None:
    # The training's own samples are noisy and of other prompts; what is measured must be neither.
    noisy = config(DraftK(k=1), sampler=replace(SAMPLER, eta=1.0), learning_rates=(0.1,))
    found = compared({"noisy": noisy}, replace(SETTINGS, seeds=(3,)))
    (training,) = found["methods"]["noisy"]["trainings"]
    model = load_text_to_image(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)

    def images() -> torch.Tensor:
        prompts = ["a cow", "a cow", "a hen", "a hen"]
        return torch.cat(list(generate_images(model, prompts, range(5, 9), SAMPLER)))

    def figures(images: torch.Tensor) -> dict[str, float]:
        bright = images.mean(dim=(1, 2, 3))
        contrast = float(images.flatten(1).std(dim=1).mean())
        return {
            "reward": 2 * float(bright.mean()), "toy": float(bright.mean()), "contrast": contrast,
            "whole": float(bright.std()),
        }  # fmt: skip

    assert found["base"] == pytest.approx(figures(images()), abs=1e-6)
    adapter = tmp_path / "out" / "trainings" / "noisy" / "3" / "updates.safetensors"
    load_lora(model.network, denoiser_factors(read_adapter(adapter)), name="trained")
    assert training["spent"]["updates"]["figures"] == pytest.approx(figures(images()), abs=1e-6)
    assert training["spent"]["updates"]["figures"] != pytest.approx(found["base"], abs=1e-5)


def test_the_search_takes_the_learning_rate_whose_samples_score_best(compared) -> None:
    brief = replace(SETTINGS, seeds=(0,))
    found = compared({"lv": replace(LV, learning_rates=(1e-5, 0.3)), "given": LV}, brief)["methods"]
    tried = {made["rate"]: made["spent"]["seconds"]["figures"]["reward"] for made in found["lv"]["search"]}
    assert set(tried) == {1e-5, 0.3}
    assert found["lv"]["learning_rate"] == max(tried, key=lambda rate: tried[rate])
    assert [made["seed"] for made in found["lv"]["search"]] == [100, 100]
    assert [made["seed"] for made in found["lv"]["trainings"]] == [0]
    assert (found["given"]["learning_rate"], found["given"]["search"]) == (1e-2, [])


def test_a_training_that_diverges_is_told_and_the_others_go_on(compared, tmp_path: Path) -> None:
    brief = replace(SETTINGS, seeds=(0,), budget=replace(SETTINGS.budget, updates=2, evaluations=2, seconds=1e-3))
    # The first update with such a rate leaves weights that no sample survives.
    methods = {
        "lv": replace(LV, learning_rates=(1e-2, 1e30)),
        "lost": replace(K, learning_rates=(1e29, 1e30)),
        "breaks": replace(K, learning_rates=(1e30,)),
    }
    found = compared(methods, brief)["methods"]
    assert found["lv"]["learning_rate"] == 1e-2
    assert "learning rate 1e+30 failed in the search" in found["lv"]["remarks"]
    assert found["lost"]["learning_rate"] is None
    assert found["lost"]["trainings"] == []
    assert found["lost"]["remarks"][0].startswith("failed with every learning rate: ")
    assert "finite" in found["lost"]["remarks"][0]
    assert found["breaks"]["remarks"][0].startswith("1 of 1 trainings failed: ")
    assert found["breaks"]["at"]["updates"]["reward"]["mean"] is None
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2] == "| lv", "what failed comes last"


def test_a_mistake_in_the_file_ends_the_stage_and_names_the_method(compared) -> None:
    with pytest.raises(StageError, match="its gradient with respect to the images is zero") as caught:
        compared({"lv": LV}, reward="constant")
    assert caught.value.where == "method 'lv'"


class Stop(Silent):
    """A reporter that interrupts after so many updates."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        self.left -= values is not None
        if self.left < 0:
            raise KeyboardInterrupt


def _without_clock(training: dict[str, Any]) -> dict[str, Any]:
    points = [training["spent"]["updates"], training["spent"]["evaluations"], *training["curve"]]
    for point in points:
        point["spending"].pop("seconds")
    return {"rate": training["rate"], "seed": training["seed"], "points": points}


def test_an_interrupted_comparison_ends_as_if_it_had_not_been(compared, tmp_path: Path) -> None:
    brief = replace(SETTINGS, seeds=(0,))
    whole = compared({"lv": LV, "k": K}, brief, folder="whole")
    with pytest.raises(KeyboardInterrupt):  # after 4 updates of LV, in the middle of K
        compared({"lv": LV, "k": K}, brief, folder="cut", progress=Stop(after=7))
    first = tmp_path / "cut" / "trainings" / "lv" / "0" / "done.json"
    assert not (tmp_path / "cut" / "trainings" / "k" / "0" / "done.json").exists()
    written = first.stat().st_mtime_ns
    cut = compared({"lv": LV, "k": K}, brief, folder="cut")
    assert first.stat().st_mtime_ns == written, "what was finished is not done again"
    for label in ("lv", "k"):
        trainings = [found["methods"][label]["trainings"] for found in (whole, cut)]
        assert [_without_clock(one) for one in trainings[1]] == [_without_clock(one) for one in trainings[0]]
    assert not list((tmp_path / "cut").rglob("notes.json"))


def test_a_training_whose_notes_are_damaged_begins_again_and_says_so(compared, tmp_path: Path) -> None:
    brief = replace(SETTINGS, seeds=(0,), checkpoint=CheckpointSettings(every=1))
    whole = compared({"k": K}, brief, folder="whole")
    with pytest.raises(KeyboardInterrupt):
        compared({"k": K}, brief, folder="cut", progress=Stop(after=3))
    (notes,) = (tmp_path / "cut").rglob("notes.json")
    assert list(notes.parent.rglob("*.ckpt"))
    notes.write_text(notes.read_text()[:-40])
    with pytest.warns(DraftWarning, match="notes.json is damaged; its training begins again"):
        cut = compared({"k": K}, brief, folder="cut")
    trainings = [found["methods"]["k"]["trainings"] for found in (whole, cut)]
    assert [_without_clock(one) for one in trainings[1]] == [_without_clock(one) for one in trainings[0]]


def test_a_slow_method_ends_at_the_cap_and_its_row_says_so(compared) -> None:
    # Nothing costs fewer than 1e-6 seconds, so one update is all there is.
    slow = replace(SETTINGS, seeds=(0,), budget=BudgetSettings(updates=3, evaluations=3, seconds=1e-6, cap=2.0))
    found = compared({"k": K}, slow)["methods"]["k"]
    assert found["trainings"][0]["spending"]["updates"] == 1
    assert list(found["trainings"][0]["spent"]) == ["seconds"]
    assert "3 updates not spent within 2e-06 s" in found["remarks"]
    assert not math.isnan(found["at"]["seconds"]["reward"]["mean"])


def test_a_training_keeps_its_checkpoints_until_its_record_is_written(
    compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = replace(SETTINGS, seeds=(0,))
    folder = tmp_path / "out" / "trainings" / "lv" / "0"
    write = trainings.write_training_record

    def stopped(record: Any, file: Path) -> None:
        if file.name == "done.json":
            raise KeyboardInterrupt
        write(record, file)

    with monkeypatch.context() as patch:
        patch.setattr(trainings, "write_training_record", stopped)
        with pytest.raises(KeyboardInterrupt):
            compared({"lv": LV}, brief)
    assert list((folder / "checkpoints").iterdir()), "an interval is lost at most, not the training"
    compared({"lv": LV}, brief)
    assert not (folder / "checkpoints").exists() and not (folder / "notes.json").exists()


def test_a_full_disk_is_no_failure_of_a_method(compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("draft.adapters.files.formats.publish", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        compared({"lv": LV}, replace(SETTINGS, seeds=(0,)))
    assert not list((tmp_path / "out").rglob("done.json"))

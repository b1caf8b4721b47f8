"""The whole loop on a tiny model: it learns, it logs, it goes on exactly, and it refuses what cannot work."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from draft.adapters.files.formats import denoiser_factors, read_adapter
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.lora import load_lora, use_lora
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import DivergedError, DraftError, DraftWarning
from draft.methods.values import Draft, DraftK, DraftLV
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.scoring.objective import RobustSettings
from draft.training.branch import remove_superseded
from draft.training.settings import CheckpointSettings, PreviewSettings, TrainSettings
from draft.training.train import train
from draft.types import Prompts

PROMPTS = Prompts(["a cat", "a dog", "two birds"], {"target": ["cat", "dog", "birds"]})
SETTINGS = TrainSettings(
    method=DraftLV(copies=1),
    sampler=SamplerSettings(num_inference_steps=3, guidance_scale=2.0),
    lora=LoraSettings(rank=2),
    learning_rate=1e-2,
    max_steps=6,
    batch_size=2,
    checkpoint=CheckpointSettings(every=2),
    device="cpu",
)


class Toy(Reward):
    """A reward made of any function of the images."""

    name = "toy"
    kind: str = "bright"

    def load(self, device: torch.device) -> Any:
        return {
            "bright": lambda images, prompts: images.mean(dim=(1, 2, 3)),
            "red": lambda images, prompts: images[:, 0].square().mean(dim=(1, 2)),
            "nan": lambda images, prompts: images.mean(dim=(1, 2, 3)) * float("nan"),
            "detached": lambda images, prompts: images.detach().mean(dim=(1, 2, 3)),
            "parameter": lambda images, prompts: torch.zeros(len(images), requires_grad=True) + 1,
            "scalar": lambda images, prompts: images.mean(),
            "list": lambda images, prompts: [0.0] * len(images),
            "constant": lambda images, prompts: images.mean(dim=(1, 2, 3)) * 0,
            "sqrt": lambda images, prompts: (images.mean(dim=(1, 2, 3)) * 0).sqrt(),
            "columns": lambda images, prompts: images.mean(dim=(1, 2, 3)) * len(prompts.column("target")),
        }[self.kind]


class Blind(Toy):
    """A metric without gradient."""

    name = "blind"
    differentiable = False


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Callable[..., dict[str, float]]:
    def run(settings: TrainSettings = SETTINGS, *kinds: str, folder: str = "out", **weights: float) -> dict[str, float]:
        terms = [Term(kind, Toy(kind=kind), weights.get(kind, 1.0)) for kind in kinds or ("bright",)]
        return train(
            settings,
            model=str(tiny_model),
            prompts=PROMPTS,
            terms=terms,
            seed=0,
            folder=tmp_path / folder,
            progress=Silent(),
        )

    return run


def _rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", [Draft(), DraftK(k=2), DraftLV(copies=2)], ids=str)
def test_the_reward_rises_under_every_method(run, tiny_model: Path, tmp_path: Path, method) -> None:
    settings = replace(SETTINGS, method=method, max_steps=20, learning_rate=0.1, weight_decay=0.0)
    figures = run(settings, "bright", "red", red=-0.1)
    rows = _rows(tmp_path / "out")
    assert [row["step"] for row in rows] == list(range(1, 21))
    keys = {"step", "loss", "reward", "bright", "red", "grad_norm", "lr", "saturated", "seconds"}
    assert set(rows[0]) == keys | {"evaluations", "optimizer_steps"}
    model = load_text_to_image(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)
    factors = denoiser_factors(read_adapter(tmp_path / "out" / "adapter.safetensors"))
    load_lora(model.network, factors, name="trained")

    def brightness(name: str | None) -> float:
        use_lora(model.network, name)
        return float(torch.cat(list(generate_images(model, ["a cat"] * 8, range(8), settings.sampler))).mean())

    assert brightness("trained") > brightness(None) + 0.003
    assert rows[0]["reward"] == pytest.approx(rows[0]["bright"] - 0.1 * rows[0]["red"], abs=1e-6)
    assert rows[0]["loss"] == pytest.approx(-rows[0]["reward"], rel=1e-5)
    assert set(figures) == {"loss", "reward", "bright", "red"}
    tensors = load_file(tmp_path / "out" / "adapter.safetensors")
    assert any(key.endswith("lora_up.weight") and tensor.abs().max() > 0 for key, tensor in tensors.items())
    states = tmp_path / "out" / "checkpoints"
    assert sorted(path.name for path in states.iterdir()) == ["step-00000018.ckpt", "step-00000020.ckpt"]
    remove_superseded(states, keep_final=True)
    assert [path.name for path in states.iterdir()] == ["step-00000020.ckpt"]


def test_the_same_seed_gives_the_same_bytes(run, tmp_path: Path) -> None:
    run(folder="a")
    run(folder="b")
    run(replace(SETTINGS, checkpoint=CheckpointSettings(every=0)), folder="c")
    contents = {(tmp_path / name / "adapter.safetensors").read_bytes() for name in "abc"}
    assert len(contents) == 1


@pytest.fixture
def interrupted(tiny_model: Path, listener: Callable[[int], Any]) -> Callable[[Path, int], Any]:
    """Trains into a folder and interrupts it with an update; gives what heard of it."""

    def interrupted(folder: Path, update: int) -> Any:
        reporter = listener(update - 1)
        with pytest.raises(KeyboardInterrupt):
            train(
                SETTINGS,
                model=str(tiny_model),
                prompts=PROMPTS,
                terms=[Term("bright", Toy())],
                seed=0,
                folder=folder,
                progress=reporter,
            )
        return reporter

    return interrupted


def test_an_interrupted_training_ends_with_the_same_bytes(run, tmp_path: Path, interrupted) -> None:
    run(folder="whole")
    interrupted(tmp_path / "cut", 5)
    assert len(_rows(tmp_path / "cut")) == 5
    assert not (tmp_path / "cut" / "adapter.safetensors").exists()
    again = interrupted(tmp_path / "cut", 1)  # goes on after 4, stops after 5 again
    assert "going on after update 4" in again.heard
    line = r"draft_lv: 3 sampling steps; the last one adds 0\.\d{3} of the network's output"
    assert any(re.fullmatch(line, text) for text in again.heard), again.heard
    run(folder="cut")
    assert (tmp_path / "cut" / "adapter.safetensors").read_bytes() == (
        tmp_path / "whole" / "adapter.safetensors"
    ).read_bytes()
    drop = {"seconds"}
    whole, cut = _rows(tmp_path / "whole"), _rows(tmp_path / "cut")
    assert [{k: v for k, v in row.items() if k not in drop} for row in cut] == [
        {k: v for k, v in row.items() if k not in drop} for row in whole
    ]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run, tmp_path: Path, interrupted) -> None:
    run(folder="whole")
    interrupted(tmp_path / "cut", 5)
    newest = tmp_path / "cut" / "checkpoints" / "step-00000004.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="step-00000004.ckpt is damaged; going back to the one before"):
        run(folder="cut")
    assert (tmp_path / "cut" / "adapter.safetensors").read_bytes() == (
        tmp_path / "whole" / "adapter.safetensors"
    ).read_bytes()


def test_a_checkpoint_of_other_settings_is_not_continued(run, tmp_path: Path, interrupted) -> None:
    interrupted(tmp_path / "cut", 5)
    other = replace(SETTINGS, learning_rate=2e-2)
    with pytest.warns(UserWarning, match=r"of other settings.* are kept in .*checkpoints\.kept-1"):
        run(other, folder="cut")
    run(other, folder="fresh")
    assert (tmp_path / "cut" / "adapter.safetensors").read_bytes() == (
        tmp_path / "fresh" / "adapter.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_training_killed_with_sigkill_ends_with_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("run_tiny.py"))

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, script, str(tiny_model), str(tmp_path / name)])

    assert start("whole").wait() == 0
    process = start("cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "adapter.safetensors").exists()
    assert start("cut").wait() == 0
    assert (tmp_path / "cut" / "adapter.safetensors").read_bytes() == (
        tmp_path / "whole" / "adapter.safetensors"
    ).read_bytes()
    assert [row["step"] for row in _rows(tmp_path / "cut")] == list(range(1, 31))


def test_previews_are_grids_of_fixed_prompts_and_begin_before_the_first_update(run, tmp_path: Path) -> None:
    run(replace(SETTINGS, preview=PreviewSettings(every=3, prompts=("a", "b", "c"), seed=1)))
    names = sorted(path.name for path in (tmp_path / "out" / "previews").iterdir())
    assert names == ["step-000000.png", "step-000003.png", "step-000006.png"]
    with Image.open(tmp_path / "out" / "previews" / names[0]) as image:
        assert image.size == (32, 32)


def test_other_columns_reach_the_reward(run) -> None:
    run(replace(SETTINGS, max_steps=1, micro_batch_size=2), "columns")


@pytest.mark.parametrize("weight_radius", [0.0, 0.1])
def test_the_fall_of_the_reward_where_images_are_moved_is_told(run, tmp_path: Path, weight_radius: float) -> None:
    once = replace(SETTINGS, max_steps=1)
    run(replace(once, robust=RobustSettings(image_radius=0.02, weight_radius=weight_radius)), folder="moved")
    run(replace(once, robust=RobustSettings(weight_radius=weight_radius)), folder="unmoved")
    (moved,), (unmoved,) = _rows(tmp_path / "moved"), _rows(tmp_path / "unmoved")
    assert moved["robust_drop"] > 1e-4 and "robust_drop" not in unmoved
    assert moved["reward"] < unmoved["reward"]


def test_bf16_trains(run, tmp_path: Path) -> None:
    run(replace(SETTINGS, mixed_precision="bf16", max_steps=2, learning_rate=1e-3))
    assert all(0 < row["grad_norm"] < 1e3 for row in _rows(tmp_path / "out"))
    assert {t.dtype for t in load_file(tmp_path / "out" / "adapter.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "reward 'nan': its score is not finite before the first update (got nan) for 'a cat' and 'a dog'"),
        ("detached", "reward 'detached': its scores are not connected to the images"),
        ("parameter", "reward 'parameter': its scores are not connected to the images"),
        ("scalar", "reward 'scalar': must return one score per image, shape (1,) (got ())"),
        ("list", "reward 'list': must return a tensor of shape (1,) (got list)"),
        ("constant", "reward 'constant': its gradient with respect to the images is zero"),
        (
            "sqrt",
            "reward 'sqrt': its gradient with respect to the images is not finite (got nan) for 'a cat' and 'a dog'",
        ),
    ],
)
def test_a_reward_that_cannot_train_is_refused_by_name(run, tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(DraftError) as caught:
        run(SETTINGS, "bright", kind)
    assert str(caught.value).splitlines()[0] == message
    assert not (tmp_path / "out" / "adapter.safetensors").exists()
    assert _rows(tmp_path / "out") == []


def test_a_reward_that_breaks_later_is_named_with_the_update(run, tiny_model: Path, tmp_path: Path) -> None:
    class Later(Toy):
        """Finite for the first calls only."""

        name = "later"

        def load(self, device: torch.device) -> Any:
            calls = iter([1.0] * 12 + [float("nan")] * 1000)
            return lambda images, prompts: images.mean(dim=(1, 2, 3)) * next(calls)

    with pytest.raises(DraftError, match=r"reward 'late': its score is not finite after 3 updates \(got nan\)"):
        train(
            SETTINGS, model=str(tiny_model), prompts=PROMPTS, terms=[Term("late", Later())], seed=0,
            folder=tmp_path, progress=Silent(),
        )  # fmt: skip


def test_terms_that_make_no_sense_are_refused(run, tiny_model: Path, tmp_path: Path) -> None:
    def message(*terms: Term, prompts: Prompts = PROMPTS, settings: TrainSettings = SETTINGS) -> str:
        with pytest.raises(DraftError) as caught:
            train(
                settings,
                model=str(tiny_model),
                prompts=prompts,
                terms=terms,
                seed=0,
                folder=tmp_path,
                progress=Silent(),
            )
        return caught.value.what

    assert message() == "training needs at least one reward with a weight other than 0"
    assert message(Term("a", Toy(), 0.0)) == "training needs at least one reward with a weight other than 0"
    assert message(Term("a", Toy()), Term("a", Toy())) == "two rewards have the label 'a'"
    assert message(Term("a", Blind())) == "reward 'a': blind has no gradient, so it cannot train"
    assert message(Term("a", Toy()), prompts=Prompts([])) == "there are no training prompts"
    stuck = replace(SETTINGS, sampler=SamplerSettings(num_inference_steps=3, spacing="linspace", final="first_alpha"))
    assert message(Term("a", Toy()), settings=stuck).startswith("the last sampling step does not depend on the network")
    assert message(Term("a", Toy()), settings=replace(SETTINGS, device="toaster")).startswith("device 'toaster' is not")
    assert message(Term("a", Toy()), settings=replace(SETTINGS, report_to=("nowhere",))).startswith("tracker 'nowhere'")


def test_a_metric_without_gradient_is_logged_at_weight_0(tiny_model: Path, tmp_path: Path) -> None:
    terms = [Term("bright", Toy()), Term("watched", Blind(kind="red"), 0.0)]
    train(SETTINGS, model=str(tiny_model), prompts=PROMPTS, terms=terms, seed=0, folder=tmp_path, progress=Silent())
    assert all(row["watched"] > 0 for row in _rows(tmp_path))


def test_more_than_one_process_is_refused_by_name(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DraftError, match=r"one process only \(got WORLD_SIZE=2\): gradients are not synchronised"):
        run()


def test_accumulation_of_small_batches_equals_one_large_batch(run, tmp_path: Path) -> None:
    def first(batch: int, accumulate: int) -> dict[str, torch.Tensor]:
        name = f"{batch}x{accumulate}"
        settings = replace(
            SETTINGS,
            method=DraftK(k=2),
            batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            max_grad_norm=0,
        )
        run(settings, folder=name)
        return _rows(tmp_path / name)[0]

    small, large = first(1, 4), first(4, 1)
    for key in ("loss", "grad_norm", "saturated"):
        assert small[key] == pytest.approx(large[key], rel=1e-4)


class Claiming(Toy):
    """A reward that says it uses prompts, as one whose tokenizer is empty does."""

    name = "claiming"
    uses_prompt = True


def test_scores_that_ignore_the_prompts_are_warned_of_and_the_look_changes_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    def adapter(reward: Reward, folder: str) -> tuple[bytes, list[dict[str, Any]]]:
        torch.manual_seed(5)
        train(
            SETTINGS, model=str(tiny_model), prompts=PROMPTS, terms=[Term("fit", reward)], seed=0,
            folder=tmp_path / folder, progress=Silent(),
        )  # fmt: skip
        rows = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row.pop("seconds")
        assert torch.initial_seed() == 5
        return (tmp_path / folder / "adapter.safetensors").read_bytes(), rows

    plain = adapter(Toy(kind="red"), "plain")
    with pytest.warns(DraftWarning, match="reward 'fit' uses prompts, but its scores do not depend on them") as found:
        assert adapter(Claiming(kind="red"), "claiming") == plain
    assert len([each for each in found if "do not depend" in str(each.message)]) == 1


class Picky(Reward):
    """The mean of an image, but for one word."""

    name = "picky"

    def load(self, device: torch.device) -> Any:
        def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
            factors = torch.tensor([float("nan") if "birds" in prompt else 1.0 for prompt in prompts])
            return images.mean(dim=(1, 2, 3)) * factors

        return score


def _train(tiny_model: Path, folder: Path, terms: list[Term], **changes: Any) -> dict[str, float]:
    return train(
        replace(SETTINGS, **changes), model=str(tiny_model), prompts=PROMPTS, terms=terms, seed=0, folder=folder,
        progress=Silent(),
    )  # fmt: skip


def test_a_reward_that_breaks_on_one_word_names_the_prompt_and_leaves_its_images(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError) as caught:
        _train(tiny_model, tmp_path, [Term("picky", Picky())], batch_size=3)
    error = caught.value
    assert error.what == ("reward 'picky': its score is not finite before the first update (got nan) for 'two birds'")
    assert error.hint.startswith("the images are finite, and the reward scores others") and error.by_reward
    assert error.__notes__ == [f"images: {tmp_path / 'not_finite'}"]
    assert (tmp_path / "not_finite" / "prompts.txt").read_text() == "0000.png: two birds\n0001.png: two birds\n"
    with Image.open(tmp_path / "not_finite" / "0000.png") as picture:
        assert picture.size == (16, 16) and len(set(picture.convert("L").tobytes())) > 1
    _train(tiny_model, tmp_path, [Term("bright", Toy())], max_steps=1)
    assert not (tmp_path / "not_finite").exists()


def test_images_that_are_no_numbers_are_the_trainings_fault(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        _train(tiny_model, tmp_path, [Term("bright", Toy())], learning_rate=1e30, max_grad_norm=0.0)
    assert "lower learning_rate" in caught.value.hint and not caught.value.by_reward


def test_a_reward_of_weight_0_that_breaks_is_a_warning_once_and_changes_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    bright = Term("bright", Toy())
    with pytest.warns(DraftWarning, match="'picky' of weight 0: its score is not finite .* for 'two birds'") as told:
        closing = _train(tiny_model, tmp_path / "both", [bright, Term("picky", Picky(), 0.0)], batch_size=3)
    assert len([warning for warning in told if "picky" in str(warning.message)]) == 1
    assert closing["reward"] == closing["bright"] and "picky" not in closing
    assert all(row["picky"] is None and row["reward"] == row["bright"] for row in _rows(tmp_path / "both"))
    _train(tiny_model, tmp_path / "alone", [bright], batch_size=3)
    ours, wanted = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("both", "alone"))
    assert load_file(tmp_path / "both" / "adapter.safetensors").keys() and ours == wanted

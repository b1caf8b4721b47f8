"""Prompts are embedded once, as many as will be drawn, and come back with the same bits however they were embedded."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.diffusion.conditioning import Conditioning
from draft.diffusion.families import TextToImage, load_text_to_image
from draft.diffusion.prompt_store import PromptStore, open_store
from draft.diffusion.settings import LoraSettings, SamplerSettings
from draft.errors import ConfigError, ResourceError, StageError
from draft.methods.values import DraftK
from draft.progress import Silent
from draft.rewards.reward import Reward, Term
from draft.shelves import cache_limit, make_room, open_shelf, shelves
from draft.training.settings import CheckpointSettings, TrainSettings
from draft.training.state import Randomness
from draft.training.train import train
from draft.types import Prompts
from draft_cli.app import main

PROMPTS = Prompts([f"{number} cats" for number in range(40)])


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture
def load(tiny_model: Path) -> Callable[[], TextToImage]:
    return lambda: load_text_to_image(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)


class Counted:
    """A model that counts the prompts that it embeds."""

    def __init__(self, model: TextToImage) -> None:
        self.model, self.embedded = model, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(self, prompts: Sequence[str], size: Any) -> Conditioning:
        self.embedded += list(prompts)
        return self.model.encode(prompts, size)


def store(
    load: Callable[[], TextToImage], *, kind: Any = "auto", draws: int = 8, random: Randomness | None = None
) -> tuple[PromptStore, Counted, list[Counted], bool]:
    model, again = Counted(load()), []

    def reopen() -> Any:
        again.append(Counted(load()))
        return again[-1]

    order = random or Randomness(0, len(PROMPTS))
    opened, stay = open_store(
        model, PROMPTS, model.default_size,
        kind=kind, upcoming=order.upcoming, draws=draws, reopen=reopen, progress=Silent(),
    )  # type: ignore[arg-type]  # fmt: skip
    return opened, model, again, stay


def same(a: Conditioning, b: Conditioning) -> bool:
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)


def test_only_what_will_be_drawn_is_embedded_and_a_later_run_embeds_nothing(load) -> None:
    random = Randomness(0, len(PROMPTS))
    first, model, _, stay = store(load, draws=6, random=random)
    assert not stay
    drawn = random.indices(6)
    assert set(model.embedded) == {PROMPTS[number] for number in drawn}
    model.model.drop_encoders()
    expected = load().encode([PROMPTS[number] for number in drawn], model.default_size)
    assert same(first[drawn], expected)
    second, other, _, _ = store(load, draws=6)
    assert len(other.embedded) == 1, "the one that shows what an embedding looks like"
    assert same(second[drawn], expected)


def test_a_prompt_that_nobody_expected_is_embedded_by_encoders_that_are_read_again(load) -> None:
    opened, model, again, _ = store(load, draws=2)
    model.model.drop_encoders()
    missing = next(n for n, text in enumerate(PROMPTS) if text not in model.embedded)
    assert same(opened[[missing, missing]], load().encode([PROMPTS[missing]] * 2, model.default_size))
    assert [each.embedded for each in again] == [[PROMPTS[missing]]]


def test_prompts_are_embedded_again_by_a_model_of_other_code(load, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    def embedded(code: str) -> int:
        (tmp_path / "some_family.py").write_text(code)
        sys.modules.pop("some_family", None)
        importlib.invalidate_caches()
        model = importlib.import_module("some_family").Model(load())
        opened, _ = open_store(
            model, PROMPTS, model.default_size, kind="cached", upcoming=lambda count: list(range(count)), draws=3,
            reopen=load, progress=Silent(),
        )  # fmt: skip
        assert len(opened[[0, 1, 2]]) == 3
        return model.count

    code = """
class Model:
    def __init__(self, model):
        self.model, self.count = model, 0
    def __getattr__(self, name):
        return getattr(self.model, name)
    def encode(self, prompts, size):
        self.count += len(prompts)
        return self.model.encode(prompts, size)
"""
    assert [embedded(code), embedded(code), embedded(code + "TEMPLATE = 2\n")] == [1 + 3, 1, 1 + 3]


def test_resident_encoders_embed_each_batch_and_write_nothing(load, root: Path) -> None:
    opened, model, _, stay = store(load, kind="resident")
    assert stay and not root.exists()
    assert same(opened[[3, 1]], load().encode([PROMPTS[3], PROMPTS[1]], model.default_size))


def test_where_the_limit_is_exceeded_prompts_are_embedded_in_parts(load, root: Path, monkeypatch) -> None:
    opened, _, _, _ = store(load, draws=1)
    row = sum(form.bytes for form in opened.forms.values())
    monkeypatch.setenv("DRAFT_CACHE_LIMIT", repr(row * 16.5 / 1e9))
    random = Randomness(0, len(PROMPTS))
    opened, model, again, stay = store(load, draws=40, random=random)
    assert not stay and len(set(model.embedded)) == 8
    model.model.drop_encoders()
    for _ in range(10):
        numbers = random.indices(4)
        assert same(opened[numbers], load().encode([PROMPTS[n] for n in numbers], model.default_size))
        assert sum(len(part.embedded) for part in again) <= 40
        assert sum(file.stat().st_size for file in root.glob("*/*.rows")) <= row * 16
    assert 4 <= len(again) <= 6, "in parts of 8"


def test_a_cache_that_was_cleared_or_damaged_is_made_again(load, root: Path) -> None:
    opened, _, _, _ = store(load, draws=6)
    number = Randomness(0, len(PROMPTS)).upcoming(1)[0]
    expected = opened[[number]]
    for file in root.glob("*/*.rows"):
        content = bytearray(file.read_bytes())
        file.write_bytes(bytes(byte ^ 1 for byte in content))
    assert same(opened[[number]], expected)
    make_room(cache_limit())
    assert not list(root.iterdir())
    assert same(opened[[number]], expected)


def test_the_shelf_not_used_for_longest_is_dropped_first(tmp_path: Path, monkeypatch) -> None:
    opened = [open_shelf({"name": name}, {"a": 100}) for name in "abc"]
    for number, shelf in enumerate(opened):
        shelf.add(["x"], [{"a": bytes(100)}])
        os.utime(shelf.folder / "about.json", (number, number))
    size = sum(shelf.size for shelf in shelves())
    monkeypatch.setenv("DRAFT_CACHE_LIMIT", repr(size / 1e9))
    make_room(50)
    assert [shelf.about["name"] for shelf in shelves()] == ["c", "b"]


@pytest.mark.parametrize("text", ["many", "0", "-1", "inf"])
def test_a_limit_that_is_none_is_refused(text: str, monkeypatch) -> None:
    monkeypatch.setenv("DRAFT_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match="DRAFT_CACHE_LIMIT must be a number of GB above 0"):
        cache_limit()


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch) -> None:
    shelf = open_shelf({"name": "a"}, {"a": 4})

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StageError, match="cannot write to the cache of prompt embeddings: No space left") as caught:
        shelf.add(["x"], [{"a": b"1234"}])
    assert "DRAFT_CACHE" in caught.value.hint
    monkeypatch.undo()
    (shelf.folder / "index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ResourceError, match="cannot write to the cache of prompt embeddings: file is not a database"):
        shelf.find(["x"])


class Brightness(Reward):
    """How bright an image is."""

    name = "brightness"

    def load(self, device: torch.device) -> Any:
        return lambda images, prompts: images.mean(dim=(1, 2, 3))


def test_a_training_is_the_same_byte_for_byte_whichever_way_prompts_are_embedded(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(
        method=DraftK(k=1), sampler=SamplerSettings(num_inference_steps=2, guidance_scale=2.0),
        lora=LoraSettings(rank=2), max_steps=3, batch_size=2, checkpoint=CheckpointSettings(every=0), device="cpu",
    )  # fmt: skip
    for kind in ("auto", "cached", "resident"):
        train(
            replace(settings, text_encoder=kind),
            model=str(tiny_model), prompts=PROMPTS, terms=[Term("bright", Brightness())], seed=0,
            folder=tmp_path / kind, progress=Silent(),
        )  # fmt: skip
    contents = {(tmp_path / kind / "adapter.safetensors").read_bytes() for kind in ("auto", "cached", "resident")}
    assert len(contents) == 1


def test_the_command_shows_and_clears_the_cache(capsys: pytest.CaptureFixture[str], monkeypatch, root: Path) -> None:
    open_shelf({"family": "sd", "size": "64 x 64"}, {"text": 8}).add(["a", "b"], [{"text": bytes(8)}] * 2)

    def draft(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["draft", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    shown = draft("cache").splitlines()
    assert shown[0].startswith(f"{root.parent}: ") and shown[0].endswith("at most 20.0 GB")
    assert shown[2].startswith("  2 prompts, ") and shown[2].endswith(": sd, 64 x 64")
    assert draft("cache", "clear", "--days", "1").startswith("deleted 0 embeddings")
    assert draft("cache", "clear").startswith("deleted 2 embeddings")
    assert len(draft("cache").splitlines()) == 2
    assert json.dumps([shelf.rows for shelf in shelves()]) == "[]"

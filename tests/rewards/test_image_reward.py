"""`image_reward` against what the published package said of a small model (`tests/golden`), and its own layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import draft
from draft.errors import ResourceError
from draft.testing import check_reward
from draft_rewards._image_reward import build, preprocess, read
from draft_rewards._image_reward_published import convert
from draft_rewards.image_reward import ImageReward

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((GOLDEN / "image_reward.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def small(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The small model that was recorded, and its pictures."""
    return load_module(GOLDEN / "image_reward_small.py")


@pytest.fixture(scope="module")
def published(
    recorded: dict[str, Any], small: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The small model as `ImageReward.pt`, and its tokenizer."""
    folder, words = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("bert")
    torch.save(small.weights(recorded["shapes"]), folder / "ImageReward.pt")
    (words / "vocab.txt").write_text("\n".join(small.VOCABULARY), encoding="utf-8")
    transformers.BertTokenizerFast.from_pretrained(words).save_pretrained(words)
    return folder, words


@pytest.fixture(scope="session")
def own(tiny_blip: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.save_image_reward(tmp_path_factory.mktemp("own"))


def test_the_score_is_that_of_the_published_package(
    recorded: dict[str, Any], small: ModuleType, published: tuple[Path, Path]
) -> None:
    score = draft.load("image_reward", model=str(published[0]), tokenizer=str(published[1]))
    count = len(small.PROMPTS)
    for height, width in small.SIZES:
        images = small.picture(height, width)[None].expand(count, -1, -1, -1).float() / 255
        wanted = torch.tensor(recorded["scores"][f"{height}x{width}"])
        # One batch of prompts of 2 to 35 tokens, each recorded alone and padded to 35. Pillow rounds what it resizes to
        # whole levels, which the small model's random weights amplify; the next test is the sharp one for that.
        close = 5e-5 if small.SIDE in (height, width) else 0.3
        torch.testing.assert_close(score(images, small.PROMPTS), wanted, atol=close, rtol=0.0)
        assert wanted.std() > 0.5, "the small model must tell prompts apart, or this test says nothing"


def test_pictures_are_resized_and_cropped_as_published(recorded: dict[str, Any], small: ModuleType) -> None:
    mean, std = (torch.tensor(values).view(3, 1) for values in (CLIP_MEAN, CLIP_STD))
    for height, width in small.SIZES:
        pixels = preprocess(small.picture(height, width)[None].float() / 255, small.SIDE)
        assert pixels.shape == (1, 3, small.SIDE, small.SIDE)
        levels = (pixels[0, :, small.ROW] * std + mean) * 255
        difference = (levels - torch.tensor(recorded["rows"][f"{height}x{width}"])).abs().max()
        # Pillow rounds after each of its two passes, and the file holds whole levels.
        assert difference < (1e-3 if small.SIDE in (height, width) else 2), (height, width)


def test_every_tensor_arrives_unchanged_and_only_the_unused_are_left(
    recorded: dict[str, Any], small: ModuleType
) -> None:
    weights = small.weights(recorded["shapes"])
    _, tensors = convert(weights)
    places = {tensor.data_ptr(): name for name, tensor in weights.items()}
    arrived = {places[tensor.data_ptr()] for tensor in tensors.values()}
    assert len(tensors) == len(arrived)
    assert set(weights) - arrived == {
        *(f"blip.{tower}_proj.{kind}" for tower in ("vision", "text") for kind in ("weight", "bias")),
        "blip.text_encoder.embeddings.position_ids",
    }


def test_the_published_sizes_are_read_off_the_tensors_and_fit_every_one_of_them(recorded: dict[str, Any]) -> None:
    weights = {
        pattern.replace("#", str(layer)): torch.empty(shape, device="meta")
        for pattern, (layers, shape) in recorded["full_size"].items()
        for layer in range(layers or 1)
    }
    assert len(weights) > 600
    config, tensors = convert(weights)
    vision, text = config["vision_config"], config["text_config"]
    assert (vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"]) == (1024, 24, 16)
    assert (vision["image_size"], vision["patch_size"], vision["intermediate_size"]) == (224, 16, 4096)
    assert (text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]) == (768, 12, 12)
    assert (text["vocab_size"], text["intermediate_size"], text["max_position_embeddings"]) == (30524, 3072, 512)
    assert (config["head"], config["max_length"]) == ([1024, 128, 64, 16], 35)
    with torch.device("meta"):
        wanted = build(config).state_dict()
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in wanted.items()}


def test_published_weights_in_drafts_own_layout_score_the_same(
    recorded: dict[str, Any], small: ModuleType, published: tuple[Path, Path], tmp_path: Path
) -> None:
    config, tensors = read(str(published[0]))
    folder = shutil.copytree(published[1], tmp_path / "own")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    save_file(small.weights(recorded["shapes"]), tmp_path / "p.safetensors")
    images = torch.stack([small.picture(61, 37, seed) for seed in range(2)]).float() / 255
    wanted = draft.load("image_reward", model=str(published[0] / "ImageReward.pt"), tokenizer=str(published[1]))
    same = draft.load("image_reward", model=str(folder), tokenizer="")
    third = draft.load("image_reward", model=str(tmp_path / "p.safetensors"), tokenizer=str(folder))
    for prompts in (["a cat", "birds"], ["ocean", ""]):
        for other in (same, third):
            torch.testing.assert_close(other(images, prompts), wanted(images, prompts), atol=1e-5, rtol=1e-6)


def test_a_model_of_the_own_layout_scores_as_the_layout_is_described(
    tiny: ModuleType, tiny_blip: ModuleType, own: Path
) -> None:
    config, network = tiny_blip.image_reward()
    clip = tiny.published("CLIP", size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    images = [tiny.levels(24, 24, seed) for seed in range(2)]
    prompts = ["a cat", "a very long caption that has to be cut somewhere"]
    tokenizer = transformers.BertTokenizerFast.from_pretrained(own)
    padded = {"padding": "max_length", "truncation": True, "max_length": 12, "return_token_type_ids": False}
    tokens = tokenizer(prompts, return_tensors="pt", **padded)
    with torch.no_grad():
        seen = network["vision"](pixel_values=tiny.pixels(clip, images)).last_hidden_state
        read = network["text"](**tokens, encoder_hidden_states=seen).last_hidden_state[:, 0]
        wanted = (network["head"](read)[:, 0] - config["mean"]) / config["std"]
    score = draft.load("image_reward", model=str(own), tokenizer="")
    found = score(torch.stack(images).float() / 255, prompts)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert found.std() > 1e-3


def test_image_reward_keeps_the_contract(own: Path, published: tuple[Path, Path]) -> None:
    check_reward(ImageReward(model=str(own), tokenizer=""), size=(40, 56))
    check_reward(ImageReward(model=str(published[0]), tokenizer=str(published[1]), text="a cat"), size=(61, 37))


def test_text_may_be_a_column(tiny: ModuleType, own: Path) -> None:
    images = torch.stack([tiny.levels(24, 24, seed) for seed in range(2)]).float() / 255
    options: dict[str, Any] = {"model": str(own), "tokenizer": ""}
    wanted = draft.load("image_reward", **options)(images, ["dog", "fox"])
    column = draft.load("image_reward", text="{animal}", **options)
    torch.testing.assert_close(column(images, draft.Prompts(["x", "y"], {"animal": ["dog", "fox"]})), wanted)


def test_a_file_that_holds_something_else_is_refused(
    recorded: dict[str, Any], small: ModuleType, published: tuple[Path, Path], tmp_path: Path
) -> None:
    def load(value: Any) -> Any:
        torch.save(value, tmp_path / "ImageReward.pt")
        return draft.load("image_reward", model=str(tmp_path), tokenizer=str(published[1]))

    weights, block = small.weights(recorded["shapes"]), "blip.visual_encoder.blocks.1"
    load({**weights, "optimizer.step": torch.zeros(1)})
    with pytest.raises(draft.DraftError, match="lack 'vision.encoder.layers.1.layer_norm2.bias', 1 names") as raised:
        load({name: tensor for name, tensor in weights.items() if name != f"{block}.norm2.bias"})
    assert raised.value.where == "image_reward"
    with pytest.raises(draft.DraftError, match="lack 'vision.embeddings.patch_embedding.weight'"):
        load({})
    with pytest.raises(draft.DraftError, match="hold 'blip.visual_encoder.blocks.1.gamma', which ImageReward"):
        load({**weights, f"{block}.gamma": torch.zeros(1)})
    with pytest.raises(draft.DraftError, match=r"fc2.bias' must be \(128,\) .got \(5,\)."):
        load({**weights, f"{block}.mlp.fc2.bias": torch.zeros(5)})
    with pytest.raises(draft.DraftError, match="a pickle of more than weights"):
        load(torch.nn.Linear(2, 2))
    with pytest.raises(draft.DraftError, match="must hold a state dict .got list."):
        load([torch.zeros(1)])


def test_missing_files_and_keys_are_clear_errors(own: Path, tmp_path: Path) -> None:
    with pytest.raises(draft.DraftError, match="cannot load the ImageReward model"):
        draft.load("image_reward", model=str(tmp_path / "nothing"))
    with pytest.raises(draft.DraftError, match="cannot load the tokenizer"):
        draft.load("image_reward", model=str(own), tokenizer=str(tmp_path / "nothing"))
    folder = shutil.copytree(own, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    del config["mean"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(draft.DraftError, match="its config.json lacks 'mean'"):
        draft.load("image_reward", model=str(folder), tokenizer="")


def test_the_hub_is_asked_for_the_published_file_at_the_pinned_commit(
    published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.utils.hub

    from draft_rewards._weights import WEIGHTS

    calls: list[tuple[str, str, str]] = []

    def cached_file(repository: str, file: str, revision: str = "", **more: Any) -> str | None:
        calls.append((repository, file, revision))
        return str(published[0] / file) if file == "ImageReward.pt" else None

    monkeypatch.setattr(transformers.utils.hub, "cached_file", cached_file)
    read("zai-org/ImageReward")
    pinned = WEIGHTS["zai-org/ImageReward"].revision
    assert calls == [("zai-org/ImageReward", file, pinned) for file in ("config.json", "ImageReward.pt")]
    read("me/mine", "abc")
    assert calls[-1] == ("me/mine", "ImageReward.pt", "abc")


def test_a_hub_that_is_out_of_reach_says_how_to_get_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.hub

    def cached_file(*names: str, **more: Any) -> str:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.utils.hub, "cached_file", cached_file)
    with pytest.raises(ResourceError, match="cannot load the ImageReward model 'zai-org/ImageReward'") as raised:
        draft.load("image_reward")
    assert "hf download zai-org/ImageReward" in raised.value.hint and "1787 MB" in raised.value.needs


@pytest.mark.weights
def test_the_published_examples_score_as_published() -> None:
    if not (folder := os.environ.get("DRAFT_IMAGE_REWARD_EXAMPLES")):
        pytest.skip("DRAFT_IMAGE_REWARD_EXAMPLES must be the folder assets/images of github.com/zai-org/ImageReward")
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    score, found = draft.load("image_reward"), []
    for number in range(1, 5):
        picture = Image.open(Path(folder) / f"{number}.webp").convert("RGB")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        image = pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)[None].float() / 255
        found.append(score(image, [prompt]).item())
    # The README's example.
    wanted = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
    assert found == pytest.approx(wanted, abs=0.03)

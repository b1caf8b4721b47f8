"""A tokenizer without a vocabulary is refused wherever a reward reads a text, and the error says how to get one."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import draft
from draft.errors import ResourceError

REWARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip_score": ("emoji/clip", {}),
    "pickscore": ("emoji/preference", {"processor": ""}),
    "hpsv2": ("emoji/preference", {"processor": ""}),
    "owlvit": ("emoji/owlvit", {}),
    "owlvit_count": ("emoji/owlvit", {}),
    "caption": ("emoji/caption", {"prefix": ""}),
    "vqa": ("emoji/vqa", {}),
    "image_reward": ("emoji/image_reward", {"tokenizer": ""}),
}


def copied(model: str, folder: Path, *, without: str = "tokenizer*") -> Path:
    return Path(
        shutil.copytree(draft.model_path(model), folder / "copy", ignore=shutil.ignore_patterns(without or "nothing"))
    )


@pytest.mark.parametrize("name", REWARDS)
def test_a_folder_without_its_tokenizers_files_is_refused_by_every_reward_that_reads(name: str, tmp_path: Path) -> None:
    model, options = REWARDS[name]
    folder = copied(model, tmp_path)
    with pytest.raises(draft.DraftError) as caught:
        draft.load(name, model=str(folder), **options)
    files = "vocab.txt" if name in ("caption", "vqa", "image_reward") else "vocab.json and merges.txt"
    assert f"has no vocabulary, so it reads all prompts alike: {folder} lacks tokenizer.json, or {files}" in str(
        caught.value
    )
    assert caught.value.where == name
    assert f"copy tokenizer.json, or {files}, with tokenizer_config.json into that folder" in caught.value.hint


def test_paligemmas_tokenizer_is_checked_as_well(tiny: ModuleType, tiny_blip: ModuleType, tmp_path: Path) -> None:
    folder = tiny_blip.save_paligemma(tmp_path, partial(tiny.published, "Siglip"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(draft.DraftError, match="tokenizer"):
        draft.load("vqa", model=str(folder))


def test_the_tokenizer_of_hpsv2s_checkpoint_is_checked_as_well(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "any.pt").write_bytes(b"")
    with pytest.raises(draft.DraftError, match="the tokenizer of '.*empty' has no vocabulary"):
        draft.load("hpsv2", model=str(tmp_path / "any.pt"), processor=str(tmp_path / "empty"))


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = copied("emoji/clip", tmp_path, without="")
    whole = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for content in ("{broken", whole[: len(whole) // 2], '{"version": "1.0", "model": {"type": "Nothing"}}'):
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(draft.DraftError, match=f"CLIP model '{re.escape(str(folder))}'"):
            draft.load("clip_score", model=str(folder))


@pytest.mark.parametrize("name", ["diversity", "aesthetic"])
def test_what_reads_no_text_needs_no_tokenizer(name: str, tmp_path: Path) -> None:
    options = {"head": "emoji/aesthetic"} if name == "aesthetic" else {}
    assert callable(draft.load(name, model=str(copied("emoji/clip", tmp_path)), **options))


def test_a_tokenizer_that_only_the_hub_has_comes_with_the_command_that_fetches_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ResourceError, match="google-bert/bert-base-uncased") as caught:
        draft.load("image_reward", model="emoji/image_reward")
    assert "hf download google-bert/bert-base-uncased --revision 86b5e09" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("image_reward", ["zai-org/ImageReward", "google-bert/bert-base-uncased"]),
        ("pickscore", ["yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]),
        ("hpsv2", ["xswu/HPSv2", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]),
        ("aesthetic", ["openai/clip-vit-large-patch14", "ttj/sac-logos-ava1-l14-linearMSE"]),
        ("clip_score", ["openai/clip-vit-large-patch14"]),
    ],
)
def test_one_command_fetches_all_that_a_reward_loads(name: str, commands: list[str]) -> None:
    with pytest.raises(ResourceError) as caught:
        draft.load(name)
    (command,) = re.findall(r"`(hf download .*?)`", caught.value.hint)
    assert [part.split()[2] for part in command.split(" && ")] == commands

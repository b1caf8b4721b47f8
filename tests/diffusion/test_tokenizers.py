"""A text encoder whose tokenizer has no vocabulary would read all prompts alike: such models are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from draft.diffusion.families import load_text_to_image
from draft.diffusion.families.vocabulary import clip_tokenizer
from draft.errors import DraftError
from draft.tokenizer import check_tokenizer, tokenizer_class

VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")


def refusal(model: Path) -> DraftError:
    with pytest.raises(DraftError) as caught:
        load_text_to_image(str(model), device=torch.device("cpu"), dtype=torch.float32)
    return caught.value


def without_vocabulary(model: Path, folder: Path, part: str) -> Path:
    copy = Path(shutil.copytree(model, folder / "copy"))
    for name in VOCABULARY:
        (copy / part / name).unlink(missing_ok=True)
    return copy


def test_stable_diffusions_tokenizer_must_have_a_vocabulary(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    copy = without_vocabulary(tiny_folders["epsilon"], tmp_path, "tokenizer")
    error = refusal(copy)
    assert error.what == (
        f"the tokenizer of model '{copy}' has no vocabulary, so it reads all prompts alike: "
        f"{copy / 'tokenizer'} lacks tokenizer.json, or vocab.json and merges.txt"
    )
    assert "copy tokenizer.json, or vocab.json and merges.txt" in error.hint
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    assert refusal(copy).what == error.what, "an empty folder, too"


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_both_tokenizers_of_sdxl_must_have_a_vocabulary(xl_folder: Path, tmp_path: Path, part: str) -> None:
    copy = without_vocabulary(xl_folder, tmp_path, part)
    assert f"{copy / part} lacks tokenizer.json" in refusal(copy).what


def test_a_damaged_tokenizer_of_a_model_is_an_error(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_folders["epsilon"], tmp_path / "copy"))
    for content in ("{broken", '{"version": "1.0", "model": {"type": "Nothing"}}'):
        (copy / "tokenizer" / "tokenizer.json").write_text(content, encoding="utf-8")
        assert f"model '{copy}'" in refusal(copy).what


@pytest.mark.parametrize("content", ["{}", '{"<|startoftext|>": 0, "<|endoftext|>": 1}'])
def test_a_vocabulary_beside_a_checkpoint_must_hold_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text(content, encoding="utf-8")
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    with pytest.raises(DraftError, match=r"has no vocabulary.*vocab.json, merges.txt in .* cannot be right"):
        clip_tokenizer(tmp_path / "model.safetensors", tmp_path / "tokenizer", padding="!")


def test_a_vocabulary_without_letters_gives_all_prompts_the_same_tokens(tmp_path: Path) -> None:
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "&</w>": 2}
    (tmp_path / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = tokenizer_class("CLIPTokenizer")(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    with pytest.raises(DraftError, match="gives different texts the same tokens"):
        check_tokenizer(tokenizer, str(tmp_path), of="a model")
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        check_tokenizer(tokenizer, "somebody/model", of="a model")

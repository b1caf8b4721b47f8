"""Every unusable file is named, with the reason, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from draft.adapters.files.formats import Adapter, Factors, read_adapter, write_adapter
from draft.errors import StageError

NAME = "lora_unet_mid_block_attentions_0_proj_in"
PATH = "unet.mid_block.attentions.0.proj_in"
NOT_A_SUM = "{} is not a sum of B A, so its factors cannot be read as a LoRA (tensor {!r})"
INCOMPLETE = f"the factors of {PATH} disagree or are incomplete (got down (2, 3), {{}} (4,), up (4, 2))"
PICKLE_HINT = "pickle files are never opened, loading one can run code; convert it to safetensors with a tool you trust"


def good() -> dict[str, torch.Tensor]:
    return {f"{NAME}.lora_down.weight": torch.ones(2, 3), f"{NAME}.lora_up.weight": torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04" + b"\0" * 90, f"a pickle checkpoint, not safetensors\n  hint: {PICKLE_HINT}"),
        (b"\x80\x02}q\x00.", f"a pickle checkpoint, not safetensors\n  hint: {PICKLE_HINT}"),
        (b"hello", "not a safetensors file"),
        (b"\xff" * 7 + b"\x7f" + b"{}" + b" " * 60, "not a safetensors file"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer, not the file itself\n  hint: run `git lfs pull` where it came from",
        ),
        (
            (400).to_bytes(8, "little") + b"{" + b" " * 99,
            "the file is truncated: its header says 400 bytes, 100 are there\n  hint: download or copy it again",
        ),
    ],
)
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(StageError) as error:
        read_adapter(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}},
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        {"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        [],
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 12)
    with pytest.raises(StageError, match=r"not an intact safetensors file|not a safetensors file") as error:
        read_adapter(path)
    assert "\n" not in str(error.value).split("\n  hint")[0]


def test_a_file_cut_in_its_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file(good(), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StageError, match="not an intact safetensors file"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{NAME}.dora_scale": torch.ones(4)}, NOT_A_SUM.format("DoRA", f"{NAME}.dora_scale")),
        ({f"{NAME}.hada_w1_a": torch.ones(4)}, INCOMPLETE.format("hada_w1_a")),
        ({f"{NAME}.lokr_w1": torch.ones(4)}, INCOMPLETE.format("lokr_w1")),
        ({f"{NAME}.oft_blocks": torch.ones(4)}, NOT_A_SUM.format("OFT", f"{NAME}.oft_blocks")),
        ({f"{NAME}.lora_up.weight": torch.ones(4, 3)}, f"the factors of {PATH} disagree: A has shape (2, 3), B (4, 3)"),
        ({f"{NAME}.lora_up.weight": torch.full((4, 2), float("nan"))}, f"{PATH} has NaN or infinite values"),
        ({f"{NAME}.lora_up.weight": torch.ones(4, 2, dtype=torch.int32)}, f"{PATH} must hold floats (got int32)"),
        ({f"{NAME}.alpha": torch.ones(2)}, f"the alpha of {PATH} must be one finite number (got shape (2,))"),
        ({"lora_x.lora_up.weight": torch.ones(1, 1)}, "the name of tensor 'lora_x.lora_up.weight' is not understood"),
        ({"lora_unet_conv_in.lora_up.weight": torch.ones(1, 1)}, "unet.conv_in lacks its down factor"),
        ({f"{PATH}.lora_B.weight": torch.ones(4, 2)}, f"{PATH} is there twice, under two names"),
    ],
)  # fmt: skip
def test_tensors_that_make_no_lora_are_named(tmp_path: Path, extra: dict[str, torch.Tensor], message: str) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(good() | extra, path)
    with pytest.raises(StageError) as error:
        read_adapter(path)
    assert str(error.value).split("\n")[0] == f"{path}: {message}"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"model.diffusion_model.out.2.weight": torch.ones(1)},
            "not a LoRA: no lora_down/lora_up or lora_A/lora_B tensors",
        ),
        (
            {"transformer.x.to_q.lora_A.weight": torch.ones(1, 1)},
            "a LoRA of a family that is not read (tensor 'transformer.x.to_q.lora_A.weight')",
        ),
        ({}, "not a LoRA: the file holds no tensors"),
    ],
)
def test_other_safetensors_files_are_told_apart(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with pytest.raises(StageError) as error:
        read_adapter(path)
    assert message in str(error.value)


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        read_adapter(tmp_path / "no.safetensors")
    assert str(error.value) == f"{tmp_path / 'no.safetensors'}: no such adapter file"
    with pytest.raises(StageError, match=r"holds no adapter_model\.safetensors"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "not a JSON object"),
        ("{", "not a JSON object"),
        ('{"use_dora": true}', "DoRA is not a sum of B A"),
        ('{"lora_alpha": "x"}', "has an alpha that is no number"),
    ],
)
def test_a_broken_peft_configuration_is_named(tmp_path: Path, config: str, message: str) -> None:
    save_file(good(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(StageError, match=message):
        read_adapter(tmp_path)


def test_what_a_layout_cannot_name_is_refused(tmp_path: Path) -> None:
    factors = Factors(torch.ones(1, 2), torch.ones(2, 1))
    with pytest.raises(StageError, match="no unambiguous name for"):
        write_adapter(Adapter({"unet.my_block.to_q": factors}), tmp_path / "a.safetensors")
    with pytest.raises(StageError, match="a peft adapter belongs to one model"):
        write_adapter(
            Adapter({"text_encoder.text_model.encoder.layers.0.mlp.fc1": factors}),
            tmp_path / "a.safetensors",
            format="peft",
        )
    with pytest.raises(StageError, match="without modules"):
        write_adapter(Adapter({}), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []

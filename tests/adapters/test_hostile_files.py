"""Files made to harm: each is refused in one line that names it, quickly, in little memory, and is left as it was."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from draft.adapters.files.container import read_tensors
from draft.adapters.files.formats import read_adapter
from draft.adapters.files.header import read_header
from draft.errors import StageError

A, B = "lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight"


def entry(dtype: object = "F32", shape: object = None, offsets: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [1, 1] if shape is None else shape, "data_offsets": offsets or [0, 4]}


def write(path: Path, header: object, data: int = 4) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + b"\0" * data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "not an intact safetensors file (Expecting property name"),
        ('{"a": NaN}', "its header holds NaN, which is no JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "its header is nested too deep"),
        ('{"a": ' + "9" * 10_000 + "}", "Exceeds the limit"),
        ({"a": {}}, "the entry of 'a' is not dtype, shape and data_offsets"),
        ({"a": [1]}, "the entry of 'a' is not dtype, shape and data_offsets"),
        ({"a": {**entry(), "x": 1}}, "the entry of 'a' is not dtype, shape and data_offsets"),
        ({"a": entry(dtype="F31")}, "the dtype of 'a' is unknown (got 'F31')"),
        ({"a": entry(dtype=32)}, "the dtype of 'a' is unknown (got '32')"),
        ({"a": entry(shape=[-1, -1])}, "the shape of 'a' is not at most 8 whole numbers from 0"),
        ({"a": entry(shape=[1.0, 1])}, "the shape of 'a' is not at most 8 whole numbers from 0"),
        ({"a": entry(shape=[True, True])}, "the shape of 'a' is not at most 8 whole numbers from 0"),
        ({"a": entry(shape=[1] * 9)}, "the shape of 'a' is not at most 8 whole numbers from 0"),
        ({"a": entry(shape="11")}, "the shape of 'a' is not at most 8 whole numbers from 0"),
        ({"a": entry(shape=[2**40, 2**40])}, "the shape of 'a' is beyond any memory"),
        ({"a": entry(shape=[0, 2**59, 2**59], offsets=[0, 0])}, "the shape of 'a' is beyond any memory"),
        ({"a": entry(shape=[2**28, 1])}, "'a' has 4 bytes, its shape (268435456, 1) in F32 needs 1073741824"),
        ({"a": entry(dtype="F64")}, "'a' has 4 bytes, its shape (1, 1) in F64 needs 8"),
        ({"a": entry(dtype="F4")}, "'a' has 4 bytes, its shape (1, 1) in F4 needs 0"),
        ({"a": entry(offsets=[4, 0])}, "the data_offsets of 'a' are not two rising whole numbers from 0"),
        ({"a": entry(offsets=[-4, 0])}, "the data_offsets of 'a' are not two rising whole numbers from 0"),
        ({"a": entry(offsets=[0])}, "the data_offsets of 'a' are not two rising whole numbers from 0"),
        ({"a": entry(offsets=[4, 8])}, "the bytes of 'a' begin at 4, those before it end at 0"),
        ({"a": entry(), "b": entry()}, "the bytes of 'b' begin at 0, those before it end at 4"),
        ({"a": entry(), "b": entry(offsets=[8, 12])}, "the bytes of 'b' begin at 8, those before it end at 4"),
        ({"a": entry(), "b": entry(offsets=[4, 8])}, "its tensors need 8 bytes, 4 are there"),
        ({}, "its tensors need 0 bytes, 4 are there"),
        ('{"a": 1, "a": 1}', "its header names 'a' twice"),
        ('{"a": {"dtype": "F32", "dtype": "F16"}}', "its header names 'dtype' twice"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "its __metadata__ is no table of strings"),
        ({"__metadata__": [], "a": entry()}, "its __metadata__ is no table of strings"),
        ({"n" * 5000: {}}, f"the entry of '{'n' * 100}...{'n' * 15}' is not"),
        ({"a": entry(dtype="C64", offsets=[0, 4], shape=[0])}, "'a' has 4 bytes, its shape (0,) in C64 needs 0"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(tmp_path: Path, header: object, message: str) -> None:
    path = write(tmp_path / "bad.safetensors", header)
    before = path.read_bytes()
    with pytest.raises(StageError) as error:
        read_adapter(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and message in text
    assert "\n" not in text.split("\n  hint")[0] and len(text) < 1000 and path.read_bytes() == before


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes((4).to_bytes(8, "little") + b"{\xff\xfe}")
    with pytest.raises(StageError, match="not an intact safetensors file"):
        read_header(path)


@pytest.mark.parametrize("name", ["\\ud800", "\\udc00 x"])
def test_text_that_is_no_unicode_is_refused_as_the_library_does(tmp_path: Path, name: str) -> None:
    for header in (f'{{"{name}": {json.dumps(entry())}}}', f'{{"__metadata__": {{"a": "{name}"}}}}'):
        with pytest.raises(StageError, match="not an intact safetensors file") as error:
            read_header(write(tmp_path / "bad.safetensors", header, data=4 if "dtype" in header else 0))
        assert str(error.value).encode()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: torch.ones(1, 2, dtype=torch.int8)}, "unet.conv_in must hold floats (got int8)"),
        ({A: torch.ones(1, 2, dtype=torch.bool)}, "unet.conv_in must hold floats (got bool)"),
        ({A: torch.ones(1, 2, dtype=torch.complex64)}, "has a dtype that no adapter has (got C64)"),
        ({A: torch.ones(0, 2), B: torch.ones(3, 0)}, "disagree: A has shape (0, 2), B (3, 0)"),
        ({A: torch.ones(1, 0)}, "disagree: A has shape (1, 0), B (3, 1)"),
        ({A: torch.ones(2)}, "disagree: A has shape (2,), B (3, 1)"),
        ({A: torch.tensor([[float("inf"), 0.0]])}, "unet.conv_in has NaN or infinite values"),
        ({"lora_unet_conv_in.alpha": torch.tensor(float("nan"))}, "must be one finite number"),
        ({"lora_unet_conv_in.diff": torch.ones(3, 2)}, "a full change of weights, not one of low rank"),
        ({"lora_unet_conv_in.diff_b": torch.ones(3)}, "a change of biases is not a sum of B A"),
        ({"lora_unet_conv_in.on_input": torch.ones(3)}, "IA3 is not a sum of B A"),
        ({"lora_unet_conv_in.boft_R": torch.ones(3)}, "BOFT is not a sum of B A"),
        ({"unet.conv_in.lora_B.bias": torch.ones(3)}, "a LoRA with biases is not a sum of B A"),
        ({"base_model.vera_lambda_b": torch.ones(3)}, "VeRA is not a sum of B A"),
        ({"bundle_emb.cat.clip_l": torch.ones(3)}, "the file bundles embeddings with the LoRA, which would be lost"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(3)}, "a change of norms is not a sum of B A"),
    ],
)
def test_tensors_that_are_no_factors_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    path = tmp_path / "bad.safetensors"
    save_file({A: torch.ones(1, 2), B: torch.ones(3, 1)} | tensors, path)
    with pytest.raises(StageError) as error:
        read_adapter(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_a_header_longer_than_any_adapter_s_is_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path / "long.safetensors", {"__metadata__": {"x": "x" * 2**24}}, data=0)
    with pytest.raises(StageError, match=r"its header is 16777\d+ bytes long, more than any adapter's"):
        read_header(path)


def test_a_claim_of_a_terabyte_costs_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "huge.safetensors", {"a": entry(shape=[2**38, 1], offsets=[0, 2**40])})
    tracemalloc.start()
    with pytest.raises(StageError, match="its tensors need 1099511627776 bytes, 4 are there"):
        read_adapter(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in a folder")
def test_a_pipe_is_not_waited_for_and_a_device_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(StageError, match="a pipe or device, not a safetensors file"):
            read_adapter(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "file/inside"])
def test_names_that_no_file_can_have_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StageError, match=r"no such adapter file|cannot read the file"):
        read_adapter(tmp_path / name)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file({A: torch.ones(1, 2)}, path)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(StageError, match=r"cannot read the file \(Permission denied\)"):
        read_header(path)


def test_every_tensor_is_read_with_its_bytes_and_may_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    # A tensor of three bytes puts the next one where its dtype is not aligned.
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.randn(2, 3, dtype=torch.float64),
        "c": torch.randn(5).to(torch.bfloat16),
        "d": torch.tensor(2.5),
        "e": torch.ones(0, 4),
    }
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        dtype = {torch.uint8: "U8", torch.float64: "F64", torch.bfloat16: "BF16", torch.float32: "F32"}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    write(path, header, data=0)
    path.write_bytes(path.read_bytes() + data)
    before = path.read_bytes()
    found, _ = read_tensors(path)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        found[name].zero_()
    assert path.read_bytes() == before


@given(position=st.integers(0, 399), value=st.integers(0, 255), cut=st.integers(0, 400))
@example(position=0, value=0, cut=400)
def test_whatever_is_done_to_a_file_s_bytes_it_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.safetensors"
    save_file({A: torch.ones(4, 9), B: torch.ones(3, 4)}, path, metadata={"ss_network_dim": "4"})
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data[: cut if cut < len(data) and cut % 3 == 0 else len(data)])
    try:
        read_adapter(path)
    except StageError as error:
        refusal = error.where
    else:
        refusal = str(path)
    assert refusal == str(path)


def test_a_file_costs_its_size_in_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file({A: torch.ones(8, 500), B: torch.ones(300, 8)}, path)
    made: list[int] = []
    empty = torch.empty

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        made.append(tensor.numel() * tensor.element_size())
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    factors = read_adapter(path).modules["unet.conv_in"]
    assert sum(made) == 4 * (8 * 500 + 300 * 8)
    assert factors.down.untyped_storage().nbytes() + factors.up.untyped_storage().nbytes() == sum(made)

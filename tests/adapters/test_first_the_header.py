"""What a file is, is decided before it is read; float8 is read, scaled float8 is not."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from draft.adapters.conversion import convert_file, resize_file
from draft.adapters.files.formats import read_adapter
from draft.adapters.identity import adapter_digest
from draft.adapters.inspect import inspect_adapter
from draft.adapters.mixture import mix_files
from draft.adapters.settings import MixSettings
from draft.adapters.verification.verify import verify
from draft.errors import DraftError, StageError
from draft.files import sha256
from draft_cli.app import app

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
LINUX = sys.platform.startswith("linux")


def sparse(path: Path, names: list[str], size: int = 4 * 2**30) -> Path:
    """A file of a few gigabytes on no disk: its header is real, its numbers are holes."""
    rows = size // len(names) // 1024
    shape, each = [rows, 256], rows * 1024
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [index * each, (index + 1) * each]}
        for index, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + each * len(names))
    return path


@contextmanager
def reading_at_most(size: int) -> Iterator[None]:
    """Count what the process asks the system for, mapped pages apart."""

    def counted() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = counted()
    yield
    assert counted() - before < size


READERS: dict[str, Callable[[Path, Path], object]] = {
    "mix": lambda path, out: mix_files([(path, 1.0)], out),
    "convert": convert_file,
    "resize": lambda path, out: resize_file(path, out, rank=1),
    "inspect": lambda path, _: inspect_adapter(path),
    "verify": lambda path, _: verify(path),
    "read": lambda path, _: read_adapter(path),
    "digest": lambda path, _: adapter_digest(path),
}


@pytest.mark.skipif(not LINUX, reason="only Linux counts what a process reads")
@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.weight"], "not a LoRA"),
        ([f"{Q}.lora_down.weight", "other.weight"], "is not understood"),
        ([f"{Q}.lora_down.weight"], "lacks its up factor"),
        ([f"{Q}.lora_down.weight", f"{Q}.lora_up.weight"], "disagree"),
        ([f"{Q}.lora_down.weight", f"{Q}.lora_up.weight", f"{Q}.alpha"], "one finite number"),
    ],
)
def test_gigabytes_that_are_no_adapter_are_not_read(
    tmp_path: Path, reader: str, names: list[str], message: str
) -> None:
    path, out = sparse(tmp_path / "big.safetensors", names), tmp_path / "out.safetensors"
    with reading_at_most(200_000), pytest.raises(StageError, match=message):
        READERS[reader](path, out)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes, sockets and devices in a folder")
def test_what_is_no_regular_file_is_neither_opened_nor_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({f"{Q}.lora_down.weight": torch.ones(1, 4), f"{Q}.lora_up.weight": torch.ones(4, 1)}, "a.safetensors")
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("link").symlink_to("/dev/zero")
    Path("peft").mkdir()
    os.mkfifo("peft/adapter_model.safetensors")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "folder", "link", "socket", "peft", "/dev/zero", "/dev/stdin/x"):
            path = Path(name)
            for read in READERS.values():
                with pytest.raises(StageError):
                    read(path, Path("out.safetensors"))
            for command in (["mix", "a.safetensors", name], ["diff", "a.safetensors", name], ["inspect", name]):
                assert isinstance(CliRunner().invoke(app, command).exception, DraftError), command
            if not path.is_dir():
                with pytest.raises((StageError, OSError)):
                    sha256(path)
        assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read_for_what_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 16, generator=generator).to(dtype), torch.randn(16, 4, generator=generator).to(dtype)
    tensors = {f"{Q}.lora_down.weight": down, f"{Q}.lora_up.weight": up, f"{Q}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    (factors,) = read_adapter(tmp_path / "a.safetensors").modules.values()
    assert torch.equal(factors.down.double(), down.double()) and torch.equal(factors.up.double(), up.double())
    report = mix_files([(tmp_path / "a.safetensors", 0.7)], tmp_path / "mix.safetensors")
    assert report.dtype == "float16" and report.error is not None and report.error < 1e-3
    (mixed,) = read_adapter(tmp_path / "mix.safetensors").modules.values()
    wanted = 0.7 * 2.0 / 4 * up.double() @ down.double()
    assert torch.linalg.norm(mixed.up.double() @ mixed.down.double() - wanted) < 1e-3 * torch.linalg.norm(wanted)


def test_every_number_of_both_kinds_of_float8_is_kept(tmp_path: Path) -> None:
    for index, dtype in enumerate((torch.float8_e4m3fn, torch.float8_e5m2)):
        every = torch.arange(256, dtype=torch.uint8).view(dtype)
        finite = every.view(torch.uint8)[torch.isfinite(every.float())].view(dtype).reshape(1, -1)
        path = tmp_path / f"{index}.safetensors"
        save_file({f"{Q}.lora_down.weight": finite, f"{Q}.lora_up.weight": torch.ones(finite.shape[1], 1)}, path)
        (factors,) = read_adapter(path).modules.values()
        assert torch.equal(factors.down.double(), finite.double())
        save_file({f"{Q}.lora_down.weight": every.reshape(1, -1), f"{Q}.lora_up.weight": torch.ones(256, 1)}, path)
        with pytest.raises(StageError, match="has NaN or infinite values"):
            read_adapter(path)


@pytest.mark.parametrize(
    "name", ["scaled_fp8", f"{Q}.lora_down.scale_weight", f"{Q}.lora_down.weight_scale", f"{Q}.lora_up.weight.absmax"]
)
def test_numbers_that_count_times_scales_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    eighth = torch.float8_e4m3fn
    down, up = torch.ones(4, 16).to(eighth), torch.ones(16, 4).to(eighth)
    save_file({f"{Q}.lora_down.weight": down, f"{Q}.lora_up.weight": up, name: torch.ones(1)}, path)
    with pytest.raises(StageError, match="quantised and count times scales") as error:
        read_adapter(path)
    assert "fp16, bf16 or fp32" in error.value.hint and repr(name) in str(error.value)


@pytest.mark.parametrize("prefix", ["text_encoders.clip_h.transformer", "clip_h.transformer", "clip_h"])
def test_the_text_encoder_of_stable_diffusion_2_is_read_under_its_name(tmp_path: Path, prefix: str) -> None:
    path = f"{prefix}.text_model.encoder.layers.22.self_attn.q_proj"
    tensors = {f"{path}.lora_A.weight": torch.ones(4, 1024), f"{path}.lora_B.weight": torch.ones(1024, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert list(adapter.modules) == ["text_encoder.text_model.encoder.layers.22.self_attn.q_proj"]
    assert adapter.family == "sd"


@pytest.mark.parametrize("size", [3e-6, 2e-7])
def test_numbers_too_small_for_float16_are_met_with_another_dtype(tmp_path: Path, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(64, 16, generator=generator), torch.randn(16, 64, generator=generator)
    tensors = {f"{Q}.lora_down.weight": (down * size).half(), f"{Q}.lora_up.weight": (up * size).half()}
    path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_file({**tensors, f"{Q}.alpha": torch.tensor(1.0)}, path)
    for write in (lambda: mix_files([(path, 1.0)], out), lambda: convert_file(path, out)):
        with pytest.raises(StageError) as error:
            write()
        assert "--dtype fp32" in error.value.hint and "report" not in str(error.value)
        assert list(tmp_path.iterdir()) == [path]
    assert mix_files([(path, 1.0)], out, settings=MixSettings(dtype="fp32")).dtype == "float32"


def test_numbers_too_large_for_float16_too(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_down.weight": torch.full((1, 8), 6e4).half(), f"{Q}.lora_up.weight": torch.ones(8, 1).half()}
    save_file({**tensors, f"{Q}.alpha": torch.tensor(100.0)}, tmp_path / "a.safetensors")
    with pytest.raises(StageError, match="not finite in float16") as error:
        mix_files([(tmp_path / "a.safetensors", 1.0)], tmp_path / "out.safetensors")
    assert "--dtype fp32" in error.value.hint

"""A mix a module at a time, on several cores: the same bytes as all at once, and no more memory than that."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from draft.adapters.algebra.concatenation import concatenated, rounded
from draft.adapters.algebra.deviation import deviation
from draft.adapters.algebra.mix import ExactSum, RoundedSum, mix
from draft.adapters.factors import Adapter, Factors
from draft.adapters.files.container import map_tensors, read_tensors, write_tensors
from draft.adapters.files.formats import Format, read_adapter, read_changes, write_adapter
from draft.adapters.files.header import read_header
from draft.adapters.mixture import mix_files
from draft.adapters.parallel import each
from draft.errors import StageError

NAMES = [f"unet.down_blocks.1.attentions.0.transformer_blocks.{i}.attn1.to_q" for i in range(12)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)


def factors(seed: int, rank: int, dtype: torch.dtype, *kernel: int, scale: float = 0.7) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 24, *kernel, generator=generator)
    up = torch.randn(20, rank, *(1 for _ in kernel), generator=generator)
    return Factors(down.to(dtype), up.to(dtype), scale)


def adapter(seed: int, dtype: torch.dtype = torch.float16) -> Adapter:
    return Adapter({name: factors(seed + 10 * i, 2 + i % 3, dtype) for i, name in enumerate(NAMES)})


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("threads", [1, 3])
def test_factors_that_are_computed_on_demand_give_the_bytes_of_those_in_memory(
    tmp_path: Path, two_threads: None, format: Format, threads: int
) -> None:
    torch.set_num_threads(threads)
    inputs = [(adapter(0), 0.7), (adapter(1, torch.float32), -0.3)]
    lazy = Adapter(RoundedSum(ExactSum(inputs)), "sd", {"note": "kept"})
    write_adapter(lazy, tmp_path / "lazy.safetensors", format=format)
    whole = Adapter(mix(inputs).modules, "sd", {"note": "kept"})
    write_adapter(whole, tmp_path / "whole.safetensors", format=format)
    content = (tmp_path / "lazy.safetensors").read_bytes()
    assert content == (tmp_path / "whole.safetensors").read_bytes() and torch.get_num_threads() == threads
    header = read_header(tmp_path / "lazy.safetensors")
    write_tensors(load_file(tmp_path / "lazy.safetensors"), tmp_path / "again.safetensors", metadata=header.metadata)
    assert content == (tmp_path / "again.safetensors").read_bytes()


def test_no_more_modules_are_in_memory_than_threads_work(
    tmp_path: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        write_adapter(adapter(seed), tmp_path / f"{seed}.safetensors")
    living: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most, lock, compute = [0], threading.Lock(), RoundedSum.__getitem__

    def counted(self: RoundedSum, name: str) -> Factors:
        computed = compute(self, name)
        with lock:
            living.add(computed.down)
            most[0] = max(most[0], len(living))
        return computed

    monkeypatch.setattr(RoundedSum, "__getitem__", counted)
    gc.collect()
    report = mix_files(
        [(tmp_path / "0.safetensors", 0.7), (tmp_path / "1.safetensors", 0.3)], tmp_path / "mix.safetensors"
    )
    assert report.modules == len(NAMES) and 1 <= most[0] <= 3


@DTYPES
@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("weights", [(0.7, -0.3), (1.0, 2.0), (0.0, 0.5), (0.0, 0.0)])
def test_what_is_rounded_is_the_sum_in_float64(
    dtype: torch.dtype, kernel: tuple[int, ...], weights: tuple[float, float]
) -> None:
    one, two = factors(1, 3, torch.float16, *kernel), factors(2, 2, torch.bfloat16, *kernel, scale=-1.3)
    other = Factors(one.down, two.up.new_ones(20, 3, *(1 for _ in kernel)), 0.2)
    for terms in ([(one, weights[0]), (two, weights[1])], [(one, weights[0]), (other, weights[1]), (two, 0.1)]):
        exact, got = concatenated(terms), rounded(terms, dtype)
        for a, b in ((exact.down, got.down), (exact.up, got.up)):
            assert torch.equal(a.to(dtype), b) and a.dtype == torch.float64


def test_nothing_that_is_read_changes(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16):
        one = factors(1, 3, dtype)
        before = one.down.clone(), one.up.clone()
        rounded([(one, 0.3), (Factors(one.down, one.up * 2), 0.5), (factors(2, 2, dtype), 3.0)], torch.float32)
        deviation(one, [(one, 0.5)])
        assert torch.equal(one.down, before[0]) and torch.equal(one.up, before[1])
    write_adapter(adapter(0), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    for change in read_changes(tmp_path / "a.safetensors", mapped=True).modules.values():
        assert isinstance(change, Factors)
        change.down.zero_()
    assert (tmp_path / "a.safetensors").read_bytes() == content


@DTYPES
def test_mapped_tensors_are_those_that_are_read_wherever_they_begin(tmp_path: Path, dtype: torch.dtype) -> None:
    odd = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.randn(3, 5).to(dtype), "c": torch.zeros(0, 4, dtype=dtype)}
    path = tmp_path / "a.safetensors"
    save_file(odd | {"z": torch.tensor(2.0)}, path)
    # The library aligns tensors, other programs need not.
    for file in (path, _in_order(tmp_path / "b.safetensors", odd)):
        header = read_header(file)
        mapped, read = map_tensors(file, header), read_tensors(file)[0]
        assert list(mapped) == list(read)
        assert all(torch.equal(mapped[name], read[name]) for name in read)
        assert all(mapped[name].data_ptr() % mapped[name].element_size() == 0 for name in read)


def _in_order(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    table, data = {}, b""
    names = {
        torch.uint8: "U8",
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
    }
    for name, tensor in tensors.items():
        raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        offsets = [len(data), len(data) + len(raw)]
        table[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_disk_that_maps_no_files_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(adapter(0), tmp_path / "a.safetensors")
    wanted = read_adapter(tmp_path / "a.safetensors").modules

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", refuse)
    changes = read_changes(tmp_path / "a.safetensors", mapped=True)
    assert all(torch.equal(change.down, wanted[name].down) for name, change in changes.modules.items())  # type: ignore[union-attr]


def test_work_is_done_in_order_and_its_first_error_ends_it(two_threads: None) -> None:
    assert list(each(lambda item: (item, torch.get_num_threads()), range(5))) == [(i, 1) for i in range(5)]
    assert torch.get_num_threads() == 2
    begun: list[int] = []

    def fail(item: int) -> None:
        begun.append(item)
        raise StageError(f"item {item}")

    with pytest.raises(StageError, match="item 0"):
        list(each(fail, range(1000)))
    assert len(begun) < 1000 and torch.get_num_threads() == 2
    assert list(each(str, [])) == []

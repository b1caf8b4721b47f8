"""Whatever is done to an adapter's file, it is refused in words, or what comes out of it is what it says."""

from __future__ import annotations

import json
import random
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open

from draft.adapters.inspect import inspect_adapter
from draft.adapters.mixture import mix_files
from draft.adapters.settings import MixSettings
from draft.adapters.verification.verify import verify
from draft.errors import DraftError

OLD = b"what was there before"
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@pytest.fixture(scope="module")
def mutants(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module `mutants.py`."""
    return load_module(Path(__file__).with_name("mutants.py"))


@contextmanager
def seconds(number: int) -> Iterator[None]:
    """Interrupt what takes longer, where the system can."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {number} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(number)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def written(mutants: ModuleType, adapter: Any, draw: random.Random, done: list[str]) -> bytes:
    """The file's bytes, some with a header that is made up, cut, grown or with other bytes."""
    crafted, bytewise = draw.random() < 0.15, draw.random() < 0.15
    content = bytearray(mutants.packed(adapter, draw, crafted=crafted))
    done += ["crafted"] * crafted + ["bytes"] * bytewise
    if bytewise:
        what = draw.randrange(4)
        if what == 0:
            del content[draw.randrange(len(content)) :]
        elif what == 1:
            content += bytes(draw.randrange(1, 99))
        else:
            for _ in range(draw.choice([1, 3])):
                content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def attempt(mutants: ModuleType, folder: Path, seed: int) -> str:
    """Make a mutant and mix it; says whether it was mixed, and what had been done to it."""
    draw = random.Random(seed)
    kinds = mutants.adapters()
    kind = draw.choice(list(kinds))
    adapter = kinds[kind]
    done = [mutants.mutate(adapter, draw) for _ in range(draw.choice([1, 1, 2]))]
    content = written(mutants, adapter, draw, done)
    path = file = folder / "in.safetensors"
    if adapter.config is not None:
        path = folder / "peft"
        path.mkdir(exist_ok=True)
        file = path / "adapter_model.safetensors"
        (path / "adapter_config.json").write_text(json.dumps(adapter.config))
    file.write_bytes(content)
    output = folder / "out.safetensors"
    output.write_bytes(OLD)
    names = sorted(folder.iterdir())
    story = f"seed {seed}: {kind}, {', '.join(done)}"
    try:
        with seconds(20), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = MixSettings(format=adapter.format, rank=adapter.rank)  # type: ignore[arg-type]
            report = mix_files([(path, 1.0)], output, settings=settings)
            if seed % 8 == 0:
                inspect_adapter(path)
                verify(path)
    except DraftError as error:
        text = str(error)
        assert text and len(text) < 3000, story
        if adapter.rank is None or output.read_bytes() == OLD:  # LoHa and LoKr are mixed, and need not be inspected
            assert output.read_bytes() == OLD, story
        assert sorted(folder.iterdir()) == names, story
        return "refused"
    except Exception as error:
        raise AssertionError(f"{story}: {type(error).__name__}: {error}") from error
    assert sorted(folder.iterdir()) == names, story
    try:
        wanted = mutants.changes(file, adapter.config, _metadata(file))
    except Exception as error:
        raise AssertionError(f"{story}: mixed, though the independent reader cannot read it ({error!r})") from error
    made = mutants.changes(output, None, _metadata(output))
    assert made.keys() == wanted.keys(), story
    for name, change in wanted.items():
        off = torch.linalg.norm(made[name].reshape(change.shape) - change)
        assert off <= TOLERANCE[report.dtype] * torch.linalg.norm(change) + 1e-30, f"{story}: {name}"
    return "mixed"


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def test_untouched_every_kind_is_mixed_as_the_other_reader_reads_it(
    mutants: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "CHANGES", {"nothing": mutants.CHANGES["nothing"]})
    for name, adapter in mutants.adapters().items():
        monkeypatch.setattr(mutants, "adapters", lambda name=name, adapter=adapter: {name: adapter})
        assert "mixed" in {attempt(mutants, tmp_path, seed) for seed in range(9)}, name


def test_mutants_are_refused_or_mixed_for_what_they_are(mutants: ModuleType, tmp_path: Path) -> None:
    outcomes = Counter(attempt(mutants, tmp_path, seed) for seed in range(150))
    assert min(outcomes["refused"], outcomes["mixed"]) > 20


@pytest.mark.slow
def test_two_thousand_mutants_are_refused_or_mixed_for_what_they_are(mutants: ModuleType, tmp_path: Path) -> None:
    outcomes = Counter(attempt(mutants, tmp_path, seed) for seed in range(1000, 3000))
    assert min(outcomes["refused"], outcomes["mixed"]) > 200

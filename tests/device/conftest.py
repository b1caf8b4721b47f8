"""The command in this process, on an accelerator that isn't there and beside it on the CPU."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draft.testing import pretended_accelerator
from draft.testing.pretended import Counts
from draft_cli.app import main

FAMILIES = ("sd", "sdxl")
"""The families of `tests/tiny.py`: every test of this folder runs for each."""
DEVICES = ("cpu", "cuda:0")


def draft(*words: str) -> tuple[int, str]:
    """Call `draft`; returns the exit code and all that it printed."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = ["draft", *words]
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            pytest.raises(SystemExit) as stop,
        ):
            main()
    finally:
        sys.argv = before
    return int(stop.value.code or 0), printed.getvalue()


@dataclass(frozen=True)
class Bench:
    """A model, and a folder in which pipelines run with it.

    Args:
        folder: The folder.
        model: The model's folder.
    """

    folder: Path
    model: Path

    def stage(self, kind: str, **settings: Any) -> dict[str, Any]:
        """A stage that takes a second."""
        if kind == "mix":
            return {"kind": kind, **settings}
        small = {"num_inference_steps": 2, "guidance_scale": 2.0, **settings.pop("sampler", {})}
        common = {"kind": kind, "model": str(self.model), "prompts": ["a cat", "a dog"], "device": "${vars.device}"}
        if kind == "train":
            common |= {
                "method": {"kind": "draft_lv", "copies": 1},
                "lora": {"rank": 2},
                "max_steps": 1,
                "batch_size": 2,
                "preview": {"every": 0},
                "rewards": {"symmetry": None},
            }
        return {**common, "sampler": small, **settings}

    def run(self, device: str, stages: Mapping[str, Any], *words: str) -> Path:
        """Run stages on a device of this process; returns their folder."""
        self.draft("run", str(self.write(device, stages)), "--runs-dir", str(self.folder), *words)
        return self.folder / self.name(device)

    def draft(self, *words: str) -> str:
        """Call `draft`, which must succeed; returns what it printed."""
        code, printed = draft(*words)
        assert code == 0, printed
        return printed

    def write(self, device: str, stages: Mapping[str, Any]) -> Path:
        """Write a pipeline; JSON is YAML."""
        content = {"name": self.name(device), "vars": {"device": device}, "stages": dict(stages)}
        file = self.folder / f"{self.name(device)}.yaml"
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    def name(self, device: str) -> str:
        """The name of a pipeline on a device."""
        return "on-" + device.replace(":", "-")

    def run_on_both(self, stages: Mapping[str, Any]) -> tuple[Path, Path]:
        """Run stages on the CPU and on the pretended accelerator; returns their folders."""
        on_cpu = self.run("cpu", stages)
        with pretended_accelerator():
            return on_cpu, self.run("cuda:0", stages)


@pytest.fixture(scope="session", autouse=True)
def distributions() -> Iterator[None]:
    """Which module is of which distribution is read once: it would be half of what a small stage takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "packages_distributions", cache(importlib.metadata.packages_distributions))
        yield


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*FAMILIES[1:], "stranger")]
# Stable Diffusion goes through everything in the default run, the others in CI's slow one.


@pytest.fixture(scope="session", params=[FAMILIES[0], *_SLOW])
def family_model(
    request: pytest.FixtureRequest, tiny_module: ModuleType, load_module: Any, tmp_path_factory: Any
) -> Iterator[Path]:
    """The folder of a tiny model of each family, also of one that a package brings; `tests/families` has more of it."""
    assert set(FAMILIES) == set(tiny_module.FAMILIES)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "stranger":
        with load_module(Path(__file__).parents[1] / "stranger.py").model(folder) as model:
            yield model
    else:
        yield tiny_module.FAMILIES[request.param](folder / "model")


@pytest.fixture
def bench(family_model: Path, tmp_path: Path) -> Bench:
    """An empty folder, and the model of a family."""
    return Bench(tmp_path, family_model)


@pytest.fixture(scope="module")
def module_bench(family_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same for all tests of a module."""
    return Bench(tmp_path_factory.mktemp("bench"), family_model)


@pytest.fixture
def accelerator() -> Iterator[Counts]:
    """A pretended accelerator, and what is counted on it."""
    with pretended_accelerator() as counts:
        yield counts


@pytest.fixture(scope="session")
def command() -> Callable[..., tuple[int, str]]:
    """Calls `draft` with words; returns the exit code and all that it printed."""
    return draft


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    """The JSON schema of pipeline files."""
    code, printed = draft("schema")
    assert code == 0, printed
    return json.loads(printed)


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """Reads the figures of a training, without the times."""

    def read(folder: Path) -> list[dict[str, float]]:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    return read

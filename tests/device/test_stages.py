"""Every kind of stage runs on an accelerator, and finds what it finds on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

SAMPLING: dict[str, dict[str, Any]] = {
    "guided": {"weight": 0.1},
    "noise_opt": {"iterations": 1},
    "prompt_search": {"budget": 2},
}
"""Each method that raises a reward while sampling, to what makes it quick."""
PASSING = ("seconds", "memory", "machine", "device", "versions", "config", "time")
"""Words in the names of figures that are of the run, not of its result."""


def stages(bench: Any) -> dict[str, Any]:
    """A pipeline with each kind of stage and each sampling method."""
    trained = {"from": "${out:train.adapter}"}
    metric = {"rewards": {"symmetry": None, "kilobytes": {"use": "jpeg_size"}}}
    reward = {"rewards": {"symmetry": None}}
    measured = {"prompts": ["a fox"], "images_per_prompt": 1}
    methods = {"draft_k": {"method": {"kind": "draft_k", "k": 1}}}
    schedule = {"kind": "last_steps", "steps": 1}
    return {
        "train": bench.stage("train", learning_rate=1e-2),
        "mix": bench.stage("mix", adapters={"a": trained, "b": {**trained, "weight": 0.5}}, rank=2),
        "evaluate": bench.stage(
            "evaluate", adapters={"mix": {"from": "${out:mix.adapter}"}}, images_per_prompt=1, **metric
        ),
        "generate": bench.stage("generate", adapters={"late": {**trained, "schedule": schedule}}),
        **{
            kind: bench.stage("generate", method={"kind": kind, **options}, prompts=["a cat"], **reward)
            for kind, options in SAMPLING.items()
        },
        "compare": bench.stage(
            "compare",
            methods=methods,
            measure=measured,
            learning_rates=[1e-3],
            seeds=[0],
            # So few seconds that the first update spends them, and a cap that no training comes to.
            budget={"updates": 1, "evaluations": 1, "seconds": 1e-3, "cap": 1e6},
            curve={"every": 1, "prompts": 1},
            lora={"rank": 2},
            batch_size=1,
            **reward,
        ),
        "probe": bench.stage("probe", adapter=trained, batches=1, batch_size=1, **reward),
        "strip": bench.stage("strip", adapters={"a": trained}, scales=[0, 1], seeds=[0], prompts=["a cat"], **metric),
    }


@pytest.fixture(scope="module")
def folders(module_bench: Any) -> tuple[Path, Path]:
    """Where the pipeline has run: on the CPU, and there."""
    return module_bench.run_on_both(stages(module_bench))


def figures(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a result by their place, but those of the run itself."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in inner:
        if not any(word in str(key) for word in PASSING):
            yield from figures(value, f"{name}.{key}")
    if isinstance(found, int | float) and not isinstance(found, bool):
        yield name, float(found)


def test_every_kind_of_the_schema_is_here(schema: dict[str, Any], module_bench: Any) -> None:
    (of_stages,) = schema["properties"]["stages"]["patternProperties"].values()
    here = stages(module_bench)
    assert {stage["kind"] for stage in here.values()} == set(of_stages["discriminator"]["mapping"])
    sampling = schema["$defs"]["GenerateStage"]["properties"]["method"]["anyOf"][0]["discriminator"]["mapping"]
    assert set(SAMPLING) == set(sampling)


@pytest.mark.parametrize("name", ["train", "mix"])
def test_a_stage_writes_the_adapter_that_it_writes_on_the_cpu(folders: tuple[Path, Path], name: str) -> None:
    expected, adapter = (load_file(folder / name / "adapter.safetensors") for folder in folders)
    assert set(adapter) == set(expected)
    for key, tensor in adapter.items():
        assert (tensor - expected[key]).norm() <= 1e-3 * expected[key].norm(), key


@pytest.mark.parametrize(
    "file", ["evaluate/report.json", "compare/compare.json", "probe/probe.json", "strip/strip.json"]
)
def test_a_stage_finds_what_it_finds_on_the_cpu(folders: tuple[Path, Path], file: str) -> None:
    expected, found = (dict(figures(json.loads((folder / file).read_text(encoding="utf-8")))) for folder in folders)
    assert len(found) > 5
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["generate", *SAMPLING])
def test_a_stage_draws_what_it_draws_on_the_cpu(folders: tuple[Path, Path], name: str) -> None:
    expected, drawn = (sorted((folder / name / "images").rglob("*.png")) for folder in folders)
    assert [path.name for path in drawn] == [path.name for path in expected] != []
    for before, after in zip(expected, drawn, strict=True):
        levels = [np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in (before, after)]
        assert np.abs(levels[0] - levels[1]).max() <= 1, after.name

"""A family that a package brings, not Stable Diffusion at all, goes everywhere that Draft's own go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from draft.adapters.files.header import read_header
from draft.testing import pretended_accelerator

METHODS: dict[str, dict[str, Any]] = {
    "draft_k": {"k": 2},
    "draft_lv": {"copies": 1},
    "refl": {"window": 2},
    "leap_align": {},
}
"""Methods, one of them cached, and their options."""


def train(model: object, **settings: Any) -> dict[str, Any]:
    """A stage that takes a second."""
    small = {"num_inference_steps": 3, "guidance_scale": 3.5, **settings.pop("sampler", {})}
    return {
        "kind": "train",
        "model": str(model),
        "prompts": ["a cat", "two dogs on a hill", "a fox"],
        "method": {"kind": "draft_k", "k": 1},
        "sampler": small,
        "lora": {"rank": 2},
        "learning_rate": 1e-2,
        "batch_size": 2,
        "max_steps": 1,
        "preview": {"every": 0},
        "rewards": {"symmetry": None},
        "device": "cpu",
        **settings,
    }


def every_stage(model: object, device: str) -> dict[str, Any]:
    """Trainings by each method, and each kind of stage that reads an adapter."""
    trained, other = ({"from": f"${{out:{name}.adapter}}"} for name in ("draft_k", "draft_lv"))
    sampler = {"num_inference_steps": 3, "guidance_scale": 3.5}
    common = {"model": str(model), "prompts": ["a cat"], "sampler": sampler, "device": device}
    metrics = {"rewards": {"symmetry": None, "kilobytes": {"use": "jpeg_size"}}}
    return {
        **{
            kind: train(model, device=device, method={"kind": kind, **options}, max_steps=2)
            for kind, options in METHODS.items()
        },
        "mix": {"kind": "mix", "adapters": {"a": trained, "b": {**other, "weight": 0.5}}, "rank": 2},
        "evaluate": {
            **common,
            **metrics,
            "kind": "evaluate",
            "adapters": {"mix": {"from": "${out:mix.adapter}"}},
            "images_per_prompt": 1,
        },
        "generate": {**common, "kind": "generate", "adapters": {"a": trained}},
        "guided": {
            **common,
            "kind": "generate",
            "method": {"kind": "guided", "weight": 0.1},
            "rewards": {"symmetry": None},
        },
        "strip": {
            **common,
            **metrics,
            "kind": "strip",
            "adapters": {"a": trained},
            "scales": [0, 1],
            "seeds": [0],
        },
        "probe": {
            **common,
            "kind": "probe",
            "adapter": trained,
            "batches": 1,
            "batch_size": 1,
            "rewards": {"symmetry": None},
        },
    }


@pytest.fixture(scope="module")
def ran(
    pocket: Path, command: Callable[..., tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Where a pipeline of all stages has run, on the CPU and on the pretended accelerator."""
    root, folders = tmp_path_factory.mktemp("ran"), {}
    for name, device in (("there", "cuda:0"), ("here", "cpu")):
        file = root / f"{name}.yaml"
        file.write_text(json.dumps({"name": name, "stages": every_stage(pocket, device)}), encoding="utf-8")
        words = ("run", str(file), "--runs-dir", str(root))
        if device == "cpu":
            code, printed = command(*words)
        else:
            with pretended_accelerator():
                code, printed = command(*words)
        assert code == 0, printed
        folders[name] = root / name
    return folders


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_trains_it(ran: dict[str, Path], kind: str) -> None:
    rows = [json.loads(line) for line in (ran["here"] / kind / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["grad_norm"] > 1e-6 for row in rows)
    header = read_header(ran["here"] / kind / "adapter.safetensors").metadata
    assert header["modelspec.architecture"] == "pocket_flow/lora"
    names = {name.split(".attn.")[1].partition(".lora_")[0] for name in load_file(adapter(ran["here"], kind))}
    assert names == {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"}


@pytest.mark.parametrize("kind", METHODS)
def test_a_training_on_an_accelerator_goes_as_on_the_cpu(ran: dict[str, Path], kind: str) -> None:
    expected, found = (
        [json.loads(line) for line in (ran[name] / kind / "metrics.jsonl").read_text().splitlines()]
        for name in ("here", "there")
    )
    for before, after in zip(expected, found, strict=True):
        assert {k: v for k, v in after.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in before.items() if k != "seconds"}, rel=1e-3, abs=1e-6
        )


@pytest.mark.parametrize("stage", ["generate", "guided"])
def test_an_accelerator_draws_with_its_adapter_what_the_cpu_draws(ran: dict[str, Path], stage: str) -> None:
    expected, drawn = (sorted((ran[name] / stage / "images").rglob("*.png")) for name in ("here", "there"))
    assert [file.name for file in drawn] == [file.name for file in expected] != []
    for before, after in zip(expected, drawn, strict=True):
        levels = [np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in (before, after)]
        assert np.abs(levels[0] - levels[1]).max() <= 1
        assert levels[0].std() > 10


def test_an_adapter_of_it_is_mixed_with_another_to_the_sum_of_what_they_change(ran: dict[str, Path]) -> None:
    changes = []
    for stage in ("draft_k", "draft_lv", "mix"):
        tensors = load_file(adapter(ran["here"], stage))
        ups = {name: up.float() for name, up in tensors.items() if "lora_B" in name}
        downs = {name: tensors[name.replace("lora_B", "lora_A")].float() for name in ups}
        changes.append({name: up @ downs[name] for name, up in ups.items()})
    first, second, mixed = changes
    assert mixed.keys() == first.keys()
    for name, change in mixed.items():  # the two best of its four directions were kept
        wanted = first[name] + 0.5 * second[name]
        assert (change - wanted).norm() < 0.7 * wanted.norm()


def test_the_stages_that_read_an_adapter_find_what_it_changes(ran: dict[str, Path]) -> None:
    report, strip, probe = (
        json.loads((ran["here"] / name / file).read_text())
        for name, file in (("evaluate", "report.json"), ("strip", "strip.json"), ("probe", "probe.json"))
    )
    assert report["arms"]["mix"]["symmetry"]["gain"]["mean"] != 0
    (off,), (on,) = strip["rewards"]["symmetry"]["scores"]
    assert off != on
    assert [row["k"] for row in probe["k"]] == [1, 2, 3] and all(row["norm"] > 0 for row in probe["k"])


def adapter(folder: Path, stage: str) -> Path:
    return folder / stage / "adapter.safetensors"

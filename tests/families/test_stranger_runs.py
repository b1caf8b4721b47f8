"""A family that a package brings, from the check to a resumed run and its rehearsal; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from draft.diffusion.families import families, family_of
from draft.rewards.extensions import model_path, model_place
from draft.training import train as training

Command = Callable[..., tuple[int, str]]


def stage(model: object = "pocket_flow", **settings: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "model": str(model),
        "prompts": ["a cat", "two dogs", "a fox"],
        "method": {"kind": "draft_k", "k": 1},
        "sampler": {"num_inference_steps": 2, "guidance_scale": 3.5},
        "lora": {"rank": 2},
        "learning_rate": 1e-2,
        "batch_size": 2,
        "micro_batch_size": 0,
        "max_steps": 4,
        "checkpoint": {"every": 1},
        "preview": {"every": 0},
        "rewards": {"symmetry": None},
        "device": "cpu",
        **settings,
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Interrupts the training after an update, once."""
    with monkeypatch.context() as patch:
        append = training.append_metrics

        def after(update: int) -> None:
            def interrupted(path: Path, row: Any) -> None:
                append(path, row)
                if row["step"] == update:
                    patch.undo()
                    raise KeyboardInterrupt

            patch.setattr(training, "append_metrics", interrupted)

        yield after


def bytes_of(folder: str) -> bytes:
    return (Path(folder) / "pocket" / "train" / "adapter.safetensors").read_bytes()


def test_a_check_refuses_what_only_a_diffusion_schedule_has(command: Command, write: Any) -> None:
    code, printed = command("check", write({"train": stage(sampler={"final": "first_alpha", "guidance_scale": 3.5})}))
    assert code == 2 and "sampler.final must be 'one' for a flow-matching model (got 'first_alpha')" in printed


def test_its_model_is_named_made_once_and_a_stage_is_reused_after_it_is_made(command: Command, write: Any) -> None:
    file = write({"train": stage(max_steps=1)})
    code, printed = command("check", file)
    assert code == 0, printed
    assert not Path(model_place("pocket_flow")).exists(), "a check makes no model"
    assert "pocket_flow  (text-to-image, made when first used" in command("models")[1]
    code, printed = command("run", file)
    assert code == 0, printed
    code, printed = command("run", file)
    assert code == 0 and "reused" in printed, printed


def test_interrupted_it_goes_on_to_the_same_bytes_and_to_more_updates(
    command: Command, write: Any, killed: Callable[[int], None]
) -> None:
    file = write({"train": stage()})
    code, printed = command("run", file, "--runs-dir", "whole")
    assert code == 0, printed
    killed(2)
    code, printed = command("run", file, "--runs-dir", "parts")
    assert code == 130, printed
    code, printed = command("run", file, "--runs-dir", "parts")
    assert code == 0 and "going on after update" in printed, printed
    assert bytes_of("parts") == bytes_of("whole")
    longer = "stages.train.max_steps=6"
    assert command("run", file, longer, "--runs-dir", "at_once")[0] == 0
    code, printed = command("run", file, longer, "--runs-dir", "parts")
    assert code == 0 and "going on after update 4" in printed, printed
    assert bytes_of("parts") == bytes_of("at_once")


def test_recomputed_blocks_and_bf16_train_it(command: Command, write: Any, pocket: Path) -> None:
    kept = {"method": {"kind": "draft_k", "k": 2}, "max_steps": 1}
    stages = {
        "plain": stage(pocket, **kept),
        "recomputed": stage(pocket, gradient_checkpointing=True, **kept),
        "bf16": stage(pocket, mixed_precision="bf16", **kept),
    }
    code, printed = command("run", write(stages))
    assert code == 0, printed
    rows = {name: json.loads(Path(f"runs/pocket/{name}/metrics.jsonl").read_text().splitlines()[0]) for name in stages}
    assert rows["recomputed"]["grad_norm"] == pytest.approx(rows["plain"]["grad_norm"], rel=1e-5)
    assert rows["bf16"]["grad_norm"] == pytest.approx(rows["plain"]["grad_norm"], rel=0.2)


def test_another_of_its_models_is_rehearsed_on_its_own(command: Command, write: Any, pocket: Path) -> None:
    full = stage(pocket, max_steps=3000, batch_size=16, sampler={"num_inference_steps": 28, "guidance_scale": 3.5})
    evaluate = {
        "kind": "evaluate",
        "model": str(pocket),
        "prompts": ["a cat"],
        "sampler": {"num_inference_steps": 28, "guidance_scale": 3.5},
        "adapters": {"trained": {"from": "${out:train.adapter}"}},
        "images_per_prompt": 1,
        "rewards": {"symmetry": None},
    }
    file = write({"train": full, "evaluate": evaluate})
    code, printed = command("run", file, "--rehearse", "stages.train.max_steps=1", "stages.train.batch_size=2")
    assert code == 0, printed
    assert "-> pocket_flow" in printed
    adapter = "runs/pocket-rehearsal/train/adapter.safetensors"
    with safe_open(adapter, "np") as opened:
        assert opened.metadata()["modelspec.architecture"] == "pocket_flow/lora"


def test_its_adapters_are_inspected_mixed_and_kept_apart_from_other_families(
    command: Command, write: Any, pocket: Path
) -> None:
    file = write({"train": stage(pocket, max_steps=1)})
    assert command("run", file)[0] == 0
    assert command("run", file, "seed=1", "--runs-dir", "second")[0] == 0
    first, second = "runs/pocket/train/adapter.safetensors", "second/pocket/train/adapter.safetensors"
    code, printed = command("inspect", first)
    assert code == 0 and "pocket_flow" in printed, printed
    code, printed = command("mix", f"{first}:1", f"{second}:-0.5", "-o", "mixed.safetensors")
    assert code == 0, printed
    evaluate = {
        "kind": "evaluate",
        "model": str(pocket),
        "prompts": ["a cat"],
        "sampler": {"num_inference_steps": 2, "guidance_scale": 3.5},
        "adapters": {"mixed": {"from": "mixed.safetensors"}},
        "images_per_prompt": 1,
        "rewards": {"symmetry": None},
        "device": "cpu",
    }
    code, printed = command("run", write({"evaluate": evaluate}, "judged"))
    assert code == 0, printed
    foreign = write({"evaluate": {**evaluate, "model": "emoji"}}, "foreign")
    code, printed = command("run", foreign)
    assert code == 2 and "the adapter is for another family of models, pocket_flow; this model is sd" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.train.sampler.negative_prompt=fog", "negative_prompt has no effect with Pocket Flow"),
        ("stages.train.cfg_gradient=detached", "cfg_gradient has no effect with Pocket Flow"),
        ("stages.train.resolution=36", "resolution must be a multiple of 8 for this model (got 36)"),
        ("stages.train.resolution=[32,36]", "resolution must be a multiple of 8 for this model (got [32, 36])"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_setting_that_it_does_not_go_with_is_found_by_check(
    command: Command, write: Any, pocket: Path, named: bool, change: str, message: str
) -> None:
    code, printed = command("check", write({"train": stage("pocket_flow" if named else pocket)}), change)
    assert code == 2 and message in printed, printed


def test_guidance_where_a_family_has_none_is_found_by_check(
    command: Command, write: Any, pocket: Path, stranger: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(stranger, "FAMILY", replace(stranger.FAMILY, guidance="none"))
    assert families()["pocket_flow"].guidance == "none"
    code, printed = command("check", write({"train": stage(pocket)}))
    assert code == 2
    assert "sampler.guidance_scale must be 1 for Pocket Flow, which has no guidance (got 3.5)" in printed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("vae", "has no vae"),
        ("class", "the transformer of model .* must be of the class PocketTransformer (got FluxTransformer2DModel)"),
        ("weights", "cannot be read or is damaged"),
        ("config", "do not go together"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(
    command: Command, write: Any, pocket: Path, tmp_path: Path, damage: str, message: str
) -> None:
    folder = Path(shutil.copytree(pocket, tmp_path / "damaged"))
    match damage:
        case "vae":
            shutil.rmtree(folder / "vae")
        case "class":
            index = json.loads((folder / "model_index.json").read_text())
            index["transformer"] = ["diffusers", "FluxTransformer2DModel"]
            (folder / "model_index.json").write_text(json.dumps(index))
        case "weights":
            (folder / "transformer" / "model.safetensors").write_bytes(b"nothing")
        case "config":
            file = folder / "transformer" / "model.safetensors"
            with safe_open(str(file), "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys() if "proj_out" not in name}  # noqa: SIM118
            save_file(tensors, file)
    file = write({"train": stage(folder, max_steps=1)})
    code, printed = command("check" if damage in ("vae", "class") else "run", file)
    assert code == 2, printed
    start, _, end = message.partition(" .* ")
    assert start in printed and end in printed, printed


def test_its_models_are_of_its_family_by_folder_and_by_name(pocket: Path) -> None:
    for model in (str(pocket), model_place("pocket_flow"), model_path("pocket_flow")):
        family = family_of(model)
        assert family is not None and family.name == "pocket_flow"

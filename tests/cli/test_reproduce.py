"""`draft reproduce`: an adapter's header becomes a pipeline, and its run gives the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from draft.adapters.files.formats import read_adapter, write_adapter

FILE = """\
name: first
seed: 5
vars:
  prompt: a cat
stages:
  train:
    kind: train
    model: model
    prompts: {file: prompts.csv}
    method: {kind: draft_k, k: 1}
    sampler: {num_inference_steps: 2, guidance_scale: 1}
    lora: {rank: 2}
    batch_size: 1
    max_steps: 2
    learning_rate: 1e-2
    rewards:
      bright: {gain: 2, weight: 3}
      length: {use: wordy, text: "{thing}", weight: 0}
  more:
    kind: train
    model: model
    prompts: [a dog, "cost: ${vars.prompt}"]
    method: {kind: draft_k, k: 1}
    sampler: {num_inference_steps: 2, guidance_scale: 1}
    lora: {rank: 3}
    batch_size: 1
    max_steps: 1
    seed: 8
    init_adapter: "${out:train.adapter}"
    base_adapters:
      - {file: outside.safetensors, weight: 0.5}
    rewards: {bright: {}}
  both:
    kind: mix
    adapters:
      y: {from: "${out:train.adapter}", weight: 0.7}
      x: {from: "${out:more.adapter}", weight: -0.2}
"""


@pytest.fixture
def place(folder: Path, tiny_model: Path, tastes: None) -> Path:
    """The folder of the first pipeline, which has not run."""
    import torch

    from draft.adapters.files.formats import Adapter, Factors

    first = folder / "first"
    first.mkdir()
    shutil.copytree(tiny_model, first / "model")
    (first / "prompts.csv").write_text('prompt,thing\na cat,cat\n"a dog, asleep",dog\n')
    (first / "first.yaml").write_text(FILE)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = Factors(torch.ones(1, 16) / 9, torch.ones(16, 1) / 9, 1.0)
    write_adapter(Adapter({name: factors}, "sd", {}), first / "outside.safetensors")
    return first


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_every_adapter_of_a_pipeline_is_made_again_byte_for_byte(command, place: Path, folder: Path) -> None:
    code, _, err = command("run", str(place / "first.yaml"))
    assert code == 0, err
    made = {name: folder / "runs" / "first" / name / "adapter.safetensors" for name in ("train", "more", "both")}
    # Somebody else's machine: the file alone, the model and the adapter from outside, nothing under its old name.
    kept = folder / "elsewhere"
    kept.mkdir()
    for name, path in made.items():
        shutil.copy(path, kept / f"{name}.safetensors")
    shutil.move(place / "model", kept / "model")
    shutil.move(place / "outside.safetensors", kept / "renamed.safetensors")
    shutil.rmtree(place)
    words = ["--model", str(kept / "model"), "--input", str(kept / "renamed.safetensors")]
    code, out, err = command("reproduce", str(kept / "both.safetensors"), "-o", "again.yaml", *words, "--check")
    assert code == 0, err
    assert "wrote again.train.jsonl" in out and "wrote again.yaml" in out and "to be given" not in out
    assert "both.adapter is the adapter" in out
    assert "check: the same fingerprint" in out
    assert "its rewards came from: draft-tastes 1.0.0\n" in out
    assert "# Its rewards came from: draft-tastes 1.0.0\n" in (folder / "again.yaml").read_text()
    code, _, err = command("run", "again.yaml", "--runs-dir", "second")
    assert code == 0, err
    for name in ("train", "more", "both"):
        again = folder / "second" / "both-again" / name / "adapter.safetensors"
        assert again.read_bytes() == made[name].read_bytes(), name
    # And a file alone, checked.
    code, out, err = command("reproduce", str(kept / "train.safetensors"), "-o", "one.yaml", *words[:2], "--check")
    assert code == 0, err
    assert "check: the same fingerprint" in out
    data = yaml.safe_load((folder / "one.yaml").read_text())
    assert list(data["stages"]) == ["train"]
    assert data["stages"]["train"]["rewards"]["length"] == {"use": "wordy", "text": "{thing}", "weight": 0}
    # What changes the result is found before anything is trained.
    info = next(folder.parent.glob("site/draft_tastes-1.0.0.dist-info/METADATA"))
    info.write_text(info.read_text().replace("1.0.0", "1.1"))
    code, _, err = command("reproduce", str(kept / "train.safetensors"), "-o", "new.yaml", *words[:2], "--check")
    changed = "bright (draft-tastes 1.0.0 -> draft-tastes 1.1), length (draft-tastes 1.0.0 -> draft-tastes 1.1)"
    assert code == 2 and f"here it would be another adapter: reward package changed: {changed}" in err
    info.write_text(info.read_text().replace("1.1", "1.0.0"))
    (kept / "model" / "unet" / "config.json").write_text(
        (kept / "model" / "unet" / "config.json").read_text().replace("{", "{ ", 1)
    )
    code, _, err = command("reproduce", str(kept / "train.safetensors"), "-o", "two.yaml", *words[:2], "--check")
    assert code == 2 and "here it would be another adapter: the model, or one that a reward uses" in err
    for path in made.values():
        text = json.dumps(_header(path))
        assert str(folder) not in text and str(place) not in text and "/tmp" not in text
        assert "T0" not in _header(path)["draft.pipeline"]  # no time


def _story(tmp: Path, name: str = "a", **entries: object) -> Path:
    """An adapter with entries in its header."""
    import torch

    from draft.adapters.files.formats import Adapter, Factors

    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    own = {f"draft.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}
    path = tmp / f"{name}.safetensors"
    write_adapter(Adapter({module: Factors(torch.ones(1, 16), torch.ones(16, 1), 1.0)}, "sd", own), path)
    assert read_adapter(path).modules
    return path


TRAINED = {
    "kind": "train", "stage": "train", "draft": "0", "seed": 3, "model": {"name": "emoji"}, "prompts": ["a cat"],
    "rewards": {"jpeg": {"use": "jpeg", "quality": 50}}, "settings": {"max_steps": 2, "base_adapters": []},
}  # fmt: skip


def test_where_the_same_bytes_are_promised_the_number_of_threads_is_named(command) -> None:
    code, shown, _ = command("reproduce", "--help")
    assert code == 0 and "OMP_NUM_THREADS" in shown
    root = Path(__file__).parents[2]
    for page, promise in {
        "README.md": "the same files, byte for",
        "docs/pipelines.md": "the adapter is the same, byte for byte",
        "docs/adapters.md": "it gives the same bytes; on another machine",
    }.items():
        text = (root / page).read_text(encoding="utf-8")
        paragraph = next(part for part in text.split("\n\n") if promise in part)
        assert "OMP_NUM_THREADS" in paragraph, page


def test_without_an_output_the_pipeline_is_printed(command, folder: Path) -> None:
    code, out, err = command("reproduce", str(_story(folder, pipeline=TRAINED)))
    assert (code, err) == (0, "")
    assert yaml.safe_load(out) == {
        "name": "a-again",
        "stages": {
            "train": {
                "kind": "train", "model": "emoji", "prompts": ["a cat"], "seed": 3,
                "rewards": {"jpeg": {"use": "jpeg", "quality": 50}}, "max_steps": 2,
            }
        },
    }  # fmt: skip
    assert [path.name for path in folder.iterdir()] == ["a.safetensors"]


def test_a_mix_of_the_command_line_becomes_its_trainings_and_a_mix(command, folder: Path) -> None:
    other = {**TRAINED, "seed": 4}
    recipe = {
        "kind": "mix", "rank": 4, "method": "exact", "components": {}, "format": "auto", "seed": None,
        "inputs": [
            {"name": "one", "sha256": "11", "weight": 0.7, "pipeline": TRAINED},
            {"name": "two words", "sha256": "22", "weight": -1.0, "pipeline": other},
            {"name": "one", "sha256": "11", "weight": 0.1, "pipeline": TRAINED},
            {"name": "civitai", "sha256": "33", "weight": 1.0},
        ],
    }  # fmt: skip
    code, out, err = command("reproduce", str(_story(folder, recipe=recipe)))
    assert code == 0
    stages = yaml.safe_load(out)["stages"]
    assert list(stages) == ["train", "train_2", "mix"]
    assert (stages["train"]["seed"], stages["train_2"]["seed"]) == (3, 4)
    assert stages["mix"] == {
        "kind": "mix", "rank": 4,
        "adapters": {
            "one": {"from": "${out:train.adapter}", "weight": 0.7},
            "two_words": {"from": "${out:train_2.adapter}", "weight": -1.0},
            "one_3": {"from": "${out:train.adapter}", "weight": 0.1},
            "civitai": {"from": "???", "weight": 1.0},
        },
    }  # fmt: skip
    line = "to be given: stages.mix.adapters.civitai.from: the adapter civitai, sha256 33 (--input FILE)"
    assert line in err and "# To be given: stages.mix.adapters.civitai.from" in out


@pytest.mark.parametrize("words", [["resize", "--rank", "1"], ["convert", "--format", "diffusers", "--dtype", "fp16"]])
def test_what_was_cut_or_converted_is_a_mix_of_one(command, folder: Path, words: list[str]) -> None:
    source = _story(folder, pipeline=TRAINED)
    code, _, err = command(words[0], str(source), *words[1:], "-o", "made.safetensors")
    assert code == 0, err
    code, out, err = command("reproduce", "made.safetensors", "--input", str(source), "-o", "again.yaml")
    assert code == 0, err
    assert list(yaml.safe_load((folder / "again.yaml").read_text())["stages"]) == [words[0]]
    assert command("run", "again.yaml")[0] == 0
    again = folder / "runs" / "made-again" / words[0] / "adapter.safetensors"
    wanted, got = load_file(folder / "made.safetensors"), load_file(again)
    assert set(wanted) == set(got) and all((wanted[name] == got[name]).all() for name in wanted)
    assert all(wanted[name].dtype == got[name].dtype for name in wanted)
    code, out, _ = command("reproduce", "made.safetensors")
    assert list(yaml.safe_load(out)["stages"]) == ["train", words[0]]


def test_what_is_missing_is_told_by_check_with_its_line_and_may_be_given_on_the_command_line(
    command, folder: Path
) -> None:
    story = {**TRAINED, "model": {"name": "mine", "sha256": "44"}, "rewards": {"jpeg": {"use": "jpeg", "quality": 50}}}
    code, out, _ = command("reproduce", str(_story(folder, pipeline=story)), "-o", "again.yaml")
    assert code == 0 and "to be given: stages.train.model: the model mine (--model MODEL)" in out
    code, _, err = command("check", "again.yaml")
    assert code == 2 and "stages.train.model must be given (got '???')" in err and "again.yaml:" in err
    assert command("check", "again.yaml", "stages.train.model=emoji")[0] == 0
    assert command("reproduce", "a.safetensors", "-o", "again.yaml")[0] == 2  # it is there
    assert command("reproduce", "a.safetensors", "-o", "again.yaml", "--force", "--model", "emoji")[0] == 0
    assert command("check", "again.yaml")[0] == 0


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({}, "does not say how it was made (no draft.pipeline or draft.recipe in its header)"),
        ({"config": {}}, "was written by a version of Draft that did not say enough"),
        ({"pipeline": "{broken"}, "does not say how it was made"),
        ({"recipe": {"kind": "soup", "inputs": []}}, "does not say how it was made"),
    ],
)
def test_a_file_of_another_tool_is_refused(command, folder: Path, entries, error: str) -> None:
    code, out, err = command("reproduce", str(_story(folder, **entries)))
    assert (code, out) == (2, "")
    assert err.startswith("error: a.safetensors: ") or str(folder) in err
    assert error in err


def test_files_that_cannot_be_or_do_not_belong_are_refused(command, folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(b"no")
    assert "not a safetensors file" in command("reproduce", "x.safetensors")[2]
    assert "no such adapter file" in command("reproduce", "nowhere.safetensors")[2]
    good = str(_story(folder, pipeline=TRAINED))
    assert "no such adapter file" in command("reproduce", good, "--input", "nowhere.safetensors")[2]
    code, _, err = command("reproduce", good, "--input", "x.safetensors")
    assert code == 2 and "the file is no input of this adapter (its sha256 is " in err


def test_a_changed_setting_is_found_by_check(command, folder: Path) -> None:
    config = {"kind": "train", "version": 1, "settings": {"max_steps": 9}, "rewards": {}, "sources": {}}
    path = _story(folder, pipeline=TRAINED, config=config, fingerprint="0" * 64)
    code, _, err = command("reproduce", str(path), "--check")
    assert code == 2 and "here it would be another adapter: config changed: max_steps 9 -> 2" in err


def test_a_header_without_packages_is_checked_by_its_sources_and_says_so(command, folder: Path, tastes: None) -> None:
    from draft.pipeline.identity import fingerprint
    from draft.pipeline.load import load_pipeline
    from draft.pipeline.plan import make_plan
    from draft.pipeline.sources import source_digest

    story = {**TRAINED, "rewards": {"bright": {"use": "bright"}}}
    assert command("reproduce", str(_story(folder, pipeline=story)), "-o", "a-again.yaml")[0] == 0
    (step,) = make_plan(load_pipeline("a-again.yaml"), folder / "runs")
    module = next(folder.parent.glob("site/draft_tastes.py"))
    parts = {key: value for key, value in step.identity.items() if key != "packages"}
    parts["sources"] = {"bright": source_digest(module.resolve())}
    config = {key: value for key, value in parts.items() if key not in ("model", "reward_models", "upstream")}
    path = _story(folder, pipeline=story, config=config, fingerprint=fingerprint(parts))
    code, out, err = command("reproduce", str(path), "-o", "b.yaml", "--check")
    assert code == 0, err
    note = "its header has no versions and files of reward packages: those of bright are not compared"
    assert "check: the same fingerprint" in out and f"({note})" in out
    config["sources"] = {"bright": "0" * 64}
    path = _story(folder, pipeline=story, config=config, fingerprint="0" * 64)
    code, _, err = command("reproduce", str(path), "-o", "c.yaml", "--check")
    assert code == 2 and "here it would be another adapter: reward source changed: bright" in err


@pytest.mark.parametrize(
    "packages", [5, [1], {"a": 3}, {"a": {"name": "x\ny: 1", "version": "1"}}, {"a": {"version": []}}]
)
def test_names_of_packages_that_cannot_be_are_left_out(command, folder: Path, packages: object) -> None:
    code, out, _ = command("reproduce", str(_story(folder, pipeline={**TRAINED, "packages": packages})))
    assert code == 0 and "came from" not in out


def test_more_prompts_than_a_header_holds_are_asked_for(command, folder: Path) -> None:
    path = _story(folder, pipeline={**TRAINED, "prompts": "???", "count": 9})
    code, out, _ = command("reproduce", str(path), "-o", "again.yaml")
    assert code == 0
    assert "to be given: stages.train.prompts.file: the file of the 9 prompts, too many for a header" in out
    assert "stages.train.prompts.file must be given" in command("check", "again.yaml")[2]
    (folder / "mine.txt").write_text("a cat")
    assert command("check", "again.yaml", "stages.train.prompts.file=mine.txt")[0] == 0

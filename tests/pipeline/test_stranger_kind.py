"""A kind of stage defined here runs through everything that Draft's own do, with no edit under `draft/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from draft.adapters.files.header import read_header
from draft.errors import ConfigErrors, DraftError, StageError
from draft.pipeline.describe import json_schema, key_tables
from draft.pipeline.kinds import KINDS
from draft.pipeline.load import load_pipeline
from draft.pipeline.reproduce import reproduce

HERE = Path(__file__).parent
PIPELINE = """\
name: demo
seed: 3
stages:
  train:
    kind: train
    model: model
    prompts: [a cat]
    rewards: {jpeg: {quality: 50}}
  tint:
    kind: tint
    model: model
    prompts: [a dog, a cow]
    rewards: {kb: {use: jpeg_size, quality: 50}}
    adapter: {from: "${out:train.adapter}", weight: 0.7}
  mix:
    kind: mix
    adapters:
      a: {from: "${out:tint.adapter}"}
"""


@pytest.fixture(autouse=True)
def tint(workshop, monkeypatch: pytest.MonkeyPatch):
    """The stranger's module, and the pipeline with a stage of its kind between two of ours."""
    monkeypatch.syspath_prepend(str(HERE))
    import tint_kind

    monkeypatch.setitem(KINDS, "tint", tint_kind.TINT)
    workshop.file.write_text(PIPELINE)
    workshop.made = lambda job: tint_kind.write_adapter(job.folder / "adapter.safetensors", ["x"], job.metadata)
    return tint_kind


def run(workshop, *overrides: str, **options):
    """Run it: ours only write their files, the stranger's really runs."""

    def ours(job):
        workshop.made(job)
        for path in set(job.stage.outputs.values()) - {"adapter.safetensors"}:
            (job.folder / path).write_text("")
        return {}

    return workshop.run(*overrides, executors={"train": ours, "mix": ours}, **options)


def actions(result) -> list[str]:
    return [stage.action for stage in result.stages]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.tint.rounds=0", "stages.tint.rounds must be at least 1 (got 0)"),
        ("stages.tint.colour=green", "stages.tint.colour must be 'red' or 'blue' (got 'green')"),
        ("stages.tint.round=2", "unknown key 'stages.tint.round'\n  hint: did you mean 'rounds'?"),
        ("stages.tint={kind: tnit}", "unknown stage kind 'tnit'\n  hint: did you mean 'tint'?"),
        ("stages.tint.adapter.from=lost.safetensors", "no such file (got "),
        ("stages.tint.adapter.from=${out:train.metrics}", "stages.tint.adapter.from must be an output 'adapter'"),
        ("stages.tint.model=${out:train.adapter}", "references stand in adapter.from"),
        ("stages.mix.adapters.a.from=${out:tint.adaptor}", "has no output 'adaptor'"),
        ("stages.tint.model=lost", "no such model (got 'lost')"),
        ("stages.tint.rewards={jpge: {}}", "did you mean 'jpeg'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_told_as_with_ours(workshop, override: str, message: str) -> None:
    with pytest.raises(DraftError) as caught:
        load_pipeline(workshop.file, [override])
    assert message in str(caught.value)
    assert not isinstance(caught.value, ConfigErrors)


def test_its_own_problems_are_told_with_their_line(workshop) -> None:
    with pytest.raises(DraftError, match=r"stages\.tint\.rounds=1.*must be at least 2 for blue"):
        load_pipeline(workshop.file, ["stages.tint.colour=blue", "stages.tint.rounds=1"])


def test_it_runs_between_ours_and_is_used_again_until_something_that_decides_its_result_changes(workshop) -> None:
    assert actions(run(workshop)) == ["ran", "ran", "ran"]
    assert (workshop.runs / "tint" / "rounds.txt").read_text().split()[-1].startswith("red-3-3-")
    assert actions(run(workshop)) == ["reused"] * 3
    assert actions(run(workshop, "stages.tint.device=cpu")) == ["reused"] * 3, "marked as inert"
    assert workshop.plan("stages.tint.rounds=2") == [
        "train: reused",
        "tint: will run (config changed: rounds 4 -> 2)",
        "mix: will run (upstream changed: tint)",
    ]
    assert workshop.plan("stages.tint.adapter.weight=1")[1] == (
        "tint: will run (config changed: adapter.weight 0.7 -> 1.0)"
    )
    assert workshop.plan("stages.tint.prompts=[a hen]")[1] == "tint: will run (prompts changed)"
    assert workshop.plan("stages.tint.seed=9")[1] == "tint: will run (seed changed: 3 -> 9)"


def test_a_failure_goes_on_in_its_folder_and_another_run_is_kept_aside(workshop) -> None:
    with pytest.raises(StageError, match="one too many") as caught:
        run(workshop, "stages.tint.rounds=13")
    assert caught.value.__notes__[0].startswith("resume: draft run ")
    assert workshop.plan("stages.tint.rounds=13", "stages.tint.device=cpu")[1] == (
        'tint: will continue (was interrupted; goes on with device "auto" -> "cpu")'
    )
    assert workshop.plan()[1] == (
        "tint: will run (has not run; an interrupted run is kept in tint.kept-1 (config changed: rounds 13 -> 4))"
    )
    run(workshop)
    assert len((workshop.runs / "tint.kept-1" / "rounds.txt").read_text().split()) == 13
    assert len((workshop.runs / "tint" / "rounds.txt").read_text().split()) == 4


CHILD = """
import sys
from pathlib import Path
import tint_kind
from draft.pipeline.kinds import KINDS
from draft.pipeline.run import run_pipeline

KINDS["tint"] = tint_kind.TINT
run_pipeline(sys.argv[1], ["stages.tint.pause=2"], runs_dir=Path(sys.argv[2]), only="tint")
"""


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(workshop) -> None:
    run(workshop, only="train")
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(workshop.file), str(workshop.folder / "runs")],
        env={**os.environ, "PYTHONPATH": paths},
    )
    rounds = workshop.runs / "tint.partial" / "rounds.txt"
    deadline = time.monotonic() + 60
    while not rounds.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert 1 <= len(rounds.read_text().split()) < 4
    assert workshop.plan()[1] == "tint: will continue (was interrupted)"
    run(workshop)
    killed = (workshop.runs / "tint" / "adapter.safetensors").read_bytes()
    run(workshop, force=True)
    assert (workshop.runs / "tint" / "adapter.safetensors").read_bytes() == killed


def test_a_rehearsal_makes_it_small_by_its_marks(workshop) -> None:
    head, tint = PIPELINE.split("  tint:\n")
    large = tint.replace("model: model", "model: owner/large\n    device: cuda")
    workshop.file.write_text(f"{head}  tint:\n{large}")
    pipeline = load_pipeline(workshop.file, rehearse=True)
    changes = {each.key: (each.before, each.after) for each in pipeline.replacements if each.key[:12] == "stages.tint."}
    assert changes == {
        "stages.tint.model": ("owner/large", "emoji"),
        "stages.tint.rounds": (4, 3),
        "stages.tint.device": ("cuda", "auto"),
    }
    (workshop.folder / "own.safetensors").write_text("")
    workshop.file.write_text(workshop.file.read_text().replace('"${out:train.adapter}"', "own.safetensors"))
    with pytest.raises(DraftError, match=r"stages\.tint\.adapter\.from was trained on another model"):
        load_pipeline(workshop.file, rehearse=True)


def test_its_adapter_says_how_it_was_made_and_is_made_again_byte_for_byte(workshop, tmp_path: Path) -> None:
    run(workshop)
    made = workshop.runs / "tint" / "adapter.safetensors"
    metadata = read_header(made).metadata
    told = json.loads(metadata["draft.pipeline"])
    assert (told["kind"], told["settings"]["rounds"], told["prompts"]) == ("tint", 4, ["a dog", "a cow"])
    assert told["inputs"][0]["key"] == ["adapter", "from"] and told["inputs"][0]["pipeline"]["kind"] == "train"
    again = reproduce(metadata, name="again", model=str(workshop.folder / "model"))
    assert (list(again.stages), again.target, again.missing) == (["train", "tint"], "tint", {})
    assert again.stages["tint"]["adapter"] == {"from": "${out:train.adapter}", "weight": 0.7}
    file = tmp_path / "again.yaml"
    file.write_text(again.text())
    run(workshop, file=file)
    assert (workshop.folder / "runs" / "again" / "tint" / "adapter.safetensors").read_bytes() == made.read_bytes()


def test_schema_and_tables_show_it(workshop) -> None:
    assert "TintStage" in json_schema()["$defs"]
    assert "### `kind: tint`" in key_tables() and "| `rounds` | integer, at least 1 | `4` |" in key_tables()

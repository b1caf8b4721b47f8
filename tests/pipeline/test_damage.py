"""What became of finished results is seen: deleted pictures, a flipped bit under the old size and time, links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draft.errors import StageError
from draft.pipeline.cache import read_record
from draft.pipeline.kinds import KINDS


def flip(file: Path) -> None:
    """Change a bit of a file and leave its size and time as they were."""
    state, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_everything_that_a_stage_leaves_is_in_its_record(workshop) -> None:
    def evaluate(job) -> dict[str, float]:
        workshop.execute(job)
        (job.folder / "scores.csv").write_text("a,b\n")
        (job.folder / "images" / "base").mkdir(parents=True)
        (job.folder / "images" / "base" / "0000.png").write_text("a picture")
        return {}

    workshop.run(executors={**workshop.executors, "evaluate": evaluate})
    record = read_record(workshop.runs / "evaluate")
    assert record is not None and set(record.outputs) == {"report", "results", "adapters", "scores", "images"}
    assert workshop.plan()[2] == "evaluate: reused"
    (workshop.runs / "evaluate" / "images" / "base" / "0000.png").unlink()
    assert workshop.plan()[2] == "evaluate: will run (output missing: images/base/0000.png)"
    (workshop.runs / "evaluate" / "images" / "base" / "0000.png").write_text("another")
    assert workshop.plan()[2] == "evaluate: will run (output changed: images/base/0000.png)"
    (workshop.runs / "evaluate" / "scores.csv").unlink()
    assert workshop.plan()[2] == "evaluate: will run (output missing: scores.csv)"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_outputs_and_extras_do_not_share_names_or_places(kind: str) -> None:
    parts = (KINDS[kind].outputs, KINDS[kind].extras, KINDS[kind].byproducts)
    for listed in ([name for part in parts for name in part], [path for part in parts for path in part.values()]):
        assert len(set(listed)) == len(listed)


def test_checkpoints_are_no_results_and_may_be_deleted(workshop) -> None:
    def train(job) -> dict[str, float]:
        workshop.execute(job)
        (job.folder / "previews").mkdir()
        for name in ("step-000001.png", "step-00000001.ckpt"):
            (job.folder / "previews" / name).write_text("x")
        return {}

    workshop.run(executors={**workshop.executors, "train": train})
    record = read_record(workshop.runs / "train")
    assert record is not None and [file.path for file in record.outputs["previews"]] == ["previews/step-000001.png"]


def test_a_flipped_bit_is_found_when_it_is_looked_for(workshop) -> None:
    workshop.run()
    flip(workshop.runs / "evaluate" / "report.html")
    assert workshop.plan()[2] == "evaluate: reused"
    assert workshop.plan(verify=True) == [
        "train: reused (its files were read and are intact)",
        "mix: reused (its files were read and are intact)",
        "evaluate: will run (output changed: report.html)",
    ]
    workshop.ran()
    workshop.run(verify=True)
    assert workshop.ran() == ["evaluate"]


def test_an_adapter_is_read_before_a_later_stage_uses_it(workshop) -> None:
    workshop.run()
    flip(workshop.runs / "train" / "adapter.safetensors")
    assert workshop.plan()[0] == "train: reused"
    changed = "stages.mix.adapters.a.weight=0.5"
    assert workshop.plan(changed)[:2] == [
        "train: will run (output changed: adapter.safetensors)",
        "mix: will run (config changed: adapters.a.weight 0.7 -> 0.5; upstream runs: train)",
    ]
    with pytest.raises(StageError, match=r"needs 'train', which must run first \(output changed: adapter.safetensors"):
        workshop.run(changed, only="mix")
    workshop.ran()
    workshop.run(changed)
    assert workshop.ran() == ["train", "mix", "evaluate"]


def test_what_runs_later_in_a_chain_has_its_inputs_read_too(workshop) -> None:
    workshop.run()
    flip(workshop.runs / "mix" / "adapter.safetensors")
    assert workshop.plan("stages.evaluate.shown=3") == [
        "train: reused",
        "mix: will run (output changed: adapter.safetensors)",
        "evaluate: will run (config changed: shown 12 -> 3; upstream runs: mix)",
    ]


def test_a_disk_that_fails_makes_a_result_again(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> str:
        raise OSError(5, "Input/output error")

    workshop.run()
    monkeypatch.setattr("draft.pipeline.cache.sha256", fails)
    assert workshop.plan(verify=True)[0] == (
        "train: will run (output cannot be read: adapter.safetensors (Input/output error))"
    )

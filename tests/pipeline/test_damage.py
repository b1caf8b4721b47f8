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


def elsewhere(workshop) -> Path:
    """Move the results of `train` to another disk, say, and leave a link in their place."""
    target = workshop.folder / "archive" / "train"
    target.parent.mkdir()
    (workshop.runs / "train").rename(target)
    (workshop.runs / "train").symlink_to(target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stage_folder_that_is_a_link_is_used_again_and_replaced_alone(workshop) -> None:
    workshop.run()
    target = elsewhere(workshop)
    before = contents(target)
    assert workshop.plan()[0] == "train: reused"
    assert workshop.plan(force=True)[0] == (
        f"train: will run (forced; train is a link, which is replaced; {str(target)!r} stays as it is)"
    )
    workshop.content = "new weights"
    for _ in range(2):
        workshop.run(force=True)
        assert contents(target) == before, "what the link pointed at is not touched"
        assert not (workshop.runs / "train").is_symlink()
        assert (workshop.runs / "train" / "adapter.safetensors").read_text().startswith("new weights")
        assert {path.name for path in workshop.runs.iterdir() if path.is_dir()} == {"train", "mix", "evaluate"}
    assert workshop.plan() == ["train: reused", "mix: reused", "evaluate: reused"]


def test_a_link_to_a_training_with_checkpoints_is_kept_as_a_link(workshop) -> None:
    workshop.run()
    target = elsewhere(workshop)
    (target / "step-00000001.ckpt").write_text("state")
    before = contents(target)
    workshop.run("seed=9")
    assert (workshop.runs / "train.kept-1").readlink() == target and contents(target) == before
    assert not (workshop.runs / "train").is_symlink()


def test_a_link_to_nothing_gives_way(workshop) -> None:
    workshop.runs.mkdir(parents=True)
    (workshop.runs / "train").symlink_to(workshop.folder / "unmounted")
    assert workshop.plan()[0].startswith("train: will run (has not run; train is a link, which is replaced;")
    workshop.run()
    assert workshop.plan()[0] == "train: reused" and not os.path.lexists(workshop.runs / "train.old")


@pytest.mark.parametrize("kind", ["link", "file", "folder"])
def test_what_a_crash_left_in_place_of_a_result_is_settled_at_the_next_run(workshop, kind: str) -> None:
    workshop.run()
    old, target = workshop.runs / "train.old", workshop.folder / "archive"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    if kind == "link":
        old.symlink_to(target)
    elif kind == "file":
        old.write_text("")
    else:
        (old / "deep").mkdir(parents=True)
    for name in ("train.kept-1", "train.kept-2"):
        (workshop.runs / name).mkdir()
        (workshop.runs / name / "step-00000001.ckpt").write_text("state")
    workshop.run()
    assert not os.path.lexists(old)
    assert (target / "mine.txt").read_text() == "mine"
    assert all((workshop.runs / f"train.kept-{n}" / "step-00000001.ckpt").read_text() == "state" for n in (1, 2))


def test_an_interrupted_run_behind_a_link_is_forgotten_without_what_it_points_at(workshop) -> None:
    workshop.failing["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        workshop.run()
    workshop.failing.clear()
    target = workshop.folder / "archive"
    (workshop.runs / "train.partial").rename(target)
    (workshop.runs / "train.partial").symlink_to(target)
    before = contents(target)
    workshop.run(fresh=True)
    assert contents(target) == before and not os.path.lexists(workshop.runs / "train.partial")

"""A training goes on with inert settings changed, further than asked at first, or as a branch; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from draft.adapters.files.header import read_header
from draft.diffusion.settings import LoraSettings
from draft.errors import DivergedError, DraftWarning, StageError
from draft.methods.values import DraftK
from draft.rewards.reward import Reward, Term
from draft.training.branch import Branch, find_checkpoint
from draft.training.identity import differences, identity
from draft.training.settings import CheckpointSettings, PreviewSettings, TrainSettings
from draft.types import Prompts

Run = Callable[..., list[str]]


def adapter(folder: Path) -> bytes:
    return (folder / "adapter.safetensors").read_bytes()


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


INERT = {
    "device": {"device": "auto"},
    "compile": {"compile": True},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "micro_batch_size": {"micro_batch_size": 1},
    "preview": {"preview": PreviewSettings(every=3)},
    "checkpoint": {"checkpoint": CheckpointSettings(every=3, keep=1)},
}


@pytest.mark.parametrize("name", [name for name in INERT if name != "compile"])
def test_a_killed_training_goes_on_with_an_inert_setting_changed(
    run: Run, tmp_path: Path, name: str, settings: TrainSettings
) -> None:
    run(settings, "cut", stop=4)
    heard = run(replace(settings, **INERT[name]), "cut")
    assert "going on after update 4" in heard
    continued = read_header(tmp_path / "cut" / "adapter.safetensors").metadata.get("draft.continued")
    if name in ("preview", "checkpoint"):
        assert continued is None, "not one bit depends on it"
        return
    key, value = next(iter(INERT[name].items()))
    event = {"update": 4, "changed": {key: [json.dumps(getattr(settings, key)), json.dumps(value)]}}
    assert json.loads(str(continued)) == [event]
    assert any(text.startswith(f"changed since: {key} ") for text in heard)


class Notes(GeneralTracker):
    """A tracker that is installed everywhere."""

    name = "notes"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    @property
    def tracker(self) -> list[int | None]:
        return self.steps

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        assert values["seed"] == 0

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        assert "reward" in values
        self.steps.append(step)


def test_a_killed_training_goes_on_with_a_tracker_that_hears_of_the_updates_from_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: TrainSettings
) -> None:
    run(settings, "at_once")
    run(settings, "cut", stop=4)
    notes = Notes()

    def accelerator(*_: Any, **__: Any) -> Accelerator:
        return Accelerator(cpu=True, log_with=notes)

    monkeypatch.setattr("draft.training.train.make_accelerator", accelerator)
    heard = run(replace(settings, report_to=("notes",)), "cut")
    assert "going on after update 4" in heard and notes.steps == [5, 6]
    assert adapter(tmp_path / "cut") == adapter(tmp_path / "at_once")


@pytest.mark.parametrize("stop", [3, None], ids=["killed", "finished"])
def test_a_larger_max_steps_goes_on_to_the_same_bytes(
    run: Run, tmp_path: Path, stop: int | None, settings: TrainSettings
) -> None:
    longer = replace(settings, max_steps=9)
    run(longer, "at_once")
    run(settings, "later", stop=stop)
    heard = run(longer, "later")
    assert f"going on after update {6 if stop is None else 2}" in heard
    assert adapter(tmp_path / "later") == adapter(tmp_path / "at_once")
    steps = [json.loads(line)["step"] for line in (tmp_path / "later" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))


def test_with_a_falling_learning_rate_it_goes_on_and_records_what_differs(
    run: Run, tmp_path: Path, settings: TrainSettings
) -> None:
    falling = replace(settings, lr_schedule="cosine")
    run(falling, "out")
    heard = run(replace(falling, max_steps=8), "out")
    assert heard[-1] == "the learning rate of updates 1 to 6 followed lr_schedule: cosine towards 6 updates, not 8"
    header = read_header(tmp_path / "out" / "adapter.safetensors").metadata
    assert json.loads(header["draft.continued"]) == [{"update": 6, "changed": {"max_steps": ["6", "8"]}}]


def test_a_smaller_max_steps_goes_on_from_an_earlier_checkpoint_and_keeps_the_later_ones(
    run: Run, tmp_path: Path, settings: TrainSettings
) -> None:
    run(settings, "out", stop=5)
    shorter = replace(settings, max_steps=3)
    with pytest.warns(DraftWarning, match=r"are kept in .*checkpoints\.kept-1"):
        heard = run(shorter, "out")
    assert "going on after update 2" in heard
    assert states(tmp_path / "out" / "checkpoints.kept-1") == ["step-00000004.ckpt"]
    run(shorter, "at_once")
    assert adapter(tmp_path / "out") == adapter(tmp_path / "at_once")


def test_a_finished_training_keeps_its_last_state_unless_told_not_to(
    run: Run, tmp_path: Path, settings: TrainSettings
) -> None:
    run(settings, "out")
    assert states(tmp_path / "out" / "checkpoints") == ["step-00000006.ckpt"]
    run(replace(settings, checkpoint=CheckpointSettings(every=2, keep_final=False)), "without")
    assert not (tmp_path / "without" / "checkpoints").exists()


def test_finishing_again_what_was_finished_trains_nothing_and_gives_the_same_adapter(
    run: Run, tmp_path: Path, settings: TrainSettings
) -> None:
    run(settings, "out")
    before = adapter(tmp_path / "out")
    rows = (tmp_path / "out" / "metrics.jsonl").read_text()
    run(settings, "out")
    assert (adapter(tmp_path / "out"), (tmp_path / "out" / "metrics.jsonl").read_text()) == (before, rows)


def test_checkpoints_of_other_settings_are_kept_aside(run: Run, tmp_path: Path, settings: TrainSettings) -> None:
    run(settings, "out", stop=4)
    other = replace(settings, learning_rate=2e-2)
    with pytest.warns(DraftWarning, match="of other settings"):
        run(other, "out")
    assert states(tmp_path / "out" / "checkpoints.kept-1") == ["step-00000002.ckpt", "step-00000004.ckpt"]
    assert len((tmp_path / "out" / "checkpoints.kept-1" / "metrics.jsonl").read_text().splitlines()) == 5
    run(other, "fresh")
    assert adapter(tmp_path / "out") == adapter(tmp_path / "fresh")


def test_a_branch_begins_at_the_checkpoint_with_what_changed_and_is_recorded(
    run: Run, tmp_path: Path, settings: TrainSettings
) -> None:
    run(settings, "first", stop=5)
    branch = Branch(find_checkpoint([tmp_path / "first" / "checkpoints"], 4), tmp_path / "first" / "metrics.jsonl")
    slower = replace(settings, learning_rate=1e-3)
    heard = run(slower, "branch", branch=branch)
    assert "branches after update 4: learning_rate 0.01 -> 0.001" in heard
    rows = [json.loads(line) for line in (tmp_path / "branch" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["lr"]) for row in rows][3:] == [(4, 0.01), (5, 0.001), (6, 0.001)]
    header = read_header(tmp_path / "branch" / "adapter.safetensors").metadata
    assert json.loads(header["draft.continued"]) == [
        {"branch": branch.digest(), "changed": {"learning_rate": ["0.01", "0.001"]}, "update": 4}
    ]


def test_a_branch_with_nothing_changed_is_the_training_itself(
    run: Run, tmp_path: Path, settings: TrainSettings
) -> None:
    run(settings, "first")
    run(settings, "cut", stop=5)
    run(settings, "branch", branch=Branch(find_checkpoint([tmp_path / "cut" / "checkpoints"], 2)))

    def tensors(folder: str) -> bytes:
        content = adapter(tmp_path / folder)
        return content[8 + int.from_bytes(content[:8], "little") :]

    assert tensors("branch") == tensors("first")


def test_a_killed_branch_goes_on_as_that_branch_alone(run: Run, tmp_path: Path, settings: TrainSettings) -> None:
    run(settings, "first", stop=5)
    branch = Branch(find_checkpoint([tmp_path / "first" / "checkpoints"], 2))
    slower = replace(settings, learning_rate=1e-3, max_steps=8)
    run(slower, "whole", branch=branch)
    run(slower, "cut", branch=branch, stop=4)
    assert "going on after update 6" in run(slower, "cut", branch=branch)
    assert adapter(tmp_path / "cut") == adapter(tmp_path / "whole")
    run(slower, "other", branch=branch, stop=4)
    with pytest.warns(DraftWarning, match="of other settings"):
        assert not any("going on" in text for text in run(slower, "other"))


@pytest.mark.parametrize(
    ("changes", "heard"),
    [
        ({"method": DraftK(k=1)}, "the method's own memory begins anew"),
        (
            {"prompts": Prompts(["a cow"])},
            "branches after update 4: prompts changed",
        ),
    ],
)
def test_a_branch_may_change_its_method_and_its_prompts(
    run: Run, tmp_path: Path, changes: Any, heard: str, settings: TrainSettings
) -> None:
    run(settings, "first", stop=5)
    branch = Branch(find_checkpoint([tmp_path / "first" / "checkpoints"], 4))
    settings = replace(settings, **{key: value for key, value in changes.items() if key != "prompts"})
    more = {key: value for key, value in changes.items() if key == "prompts"}
    texts = run(settings, "branch", branch=branch, **more)
    assert any(
        text.startswith(heard) or heard.startswith(text[:30]) for text in texts if "branches" in text or heard in text
    )


def test_a_branch_that_cannot_begin_is_refused(run: Run, tmp_path: Path, settings: TrainSettings) -> None:
    run(settings, "first", stop=5)
    folder = tmp_path / "first" / "checkpoints"
    branch = Branch(find_checkpoint([folder], 4))
    with pytest.raises(StageError, match=r"max_steps must be more than the 4 updates .* \(got 4\)"):
        run(replace(settings, max_steps=4), "a", branch=branch)
    with pytest.raises(StageError, match="the checkpoint's LoRA has other shapes"):
        run(replace(settings, lora=LoraSettings(rank=3)), "b", branch=branch)
    with pytest.raises(StageError, match="there is no checkpoint after update 3") as caught:
        find_checkpoint([folder, tmp_path / "none"], 3)
    assert caught.value.hint == "there are some after 2, 4"
    path = branch.checkpoint
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StageError, match="is damaged"):
        run(settings, "c", branch=branch)


def test_a_training_that_diverges_names_the_newest_checkpoint(
    run: Run, tmp_path: Path, settings: TrainSettings, brightness: type[Reward]
) -> None:
    terms = [Term("bright", brightness(breaks_after=5))]
    with pytest.raises(DivergedError, match="its score is not finite after 5 updates") as caught:
        run(replace(settings, method=DraftK(k=1)), "out", terms=terms)
    assert caught.value.checkpoint == 4
    assert states(tmp_path / "out" / "checkpoints") == ["step-00000002.ckpt", "step-00000004.ckpt"]


def test_what_checkpoints_and_headers_hold_of_a_training_has_numbers_and_no_texts(
    settings: TrainSettings, brightness: type[Reward]
) -> None:
    secret = replace(settings, sampler=replace(settings.sampler, negative_prompt="s3cr3t", guidance_scale=2.0))
    given: dict[str, Any] = {"prompts": Prompts(["s3cr3t"]), "terms": [Term("s", brightness(), 1.0)], "seed": 0}
    before = identity(settings, model="owner/model", **given)
    after = identity(secret, model="/home/me/s3cr3t", **given)
    assert "s3cr3t" not in str(after.state()) and "owner" not in str(before.state())
    changes = differences(before.decisive, after.decisive)
    assert set(changes) == {"model", "sampler.negative_prompt", "sampler.guidance_scale"}
    assert changes["sampler.guidance_scale"] == (str(settings.sampler.guidance_scale), "2.0")

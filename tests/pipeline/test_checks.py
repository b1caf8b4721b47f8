"""What `draft check` refuses before anything runs, although only the work itself would stumble over it."""

from __future__ import annotations

import pytest

from draft.errors import ConfigErrors, DraftError
from draft.pipeline.load import load_pipeline

TRAIN = """\
name: demo
stages:
  train:
    kind: train
    model: model
    prompts: [a cat]
    report_to: [tensorboard]
    rewards:
      jpeg: {quality: 50}
"""
PROBE = TRAIN.replace("kind: train", "kind: probe").replace("    report_to: [tensorboard]\n", "")
COMPARE = PROBE.replace("kind: probe", "kind: compare") + "    methods: {a: {method: {kind: draft_lv}}}\n"
COMPARE += "    measure: {prompts: [a dog]}\n"


@pytest.fixture
def told(workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setattr("draft.pipeline.kinds.train.find_spec", lambda module: module == "tensorboardX")

    def told(text: str, *swap: str) -> list[str]:
        assert not swap or swap[0] in text
        workshop.file.write_text(text.replace(*swap) if swap else text)
        try:
            load_pipeline("demo.yaml")
        except DraftError as error:
            return [str(each) for each in (error.errors if isinstance(error, ConfigErrors) else [error])]
        return []

    return told


def test_what_is_right_is_not_refused(told) -> None:
    assert told(TRAIN) == told(PROBE) == told(COMPARE) == []


@pytest.mark.parametrize("text", [TRAIN, PROBE, COMPARE], ids=["train", "probe", "compare"])
def test_rewards_that_all_have_weight_0_are_nothing_to_train_for(told, text: str) -> None:
    line = text.splitlines().index("    rewards:") + 1
    assert told(text, "quality: 50", "weight: 0") == [
        f"demo.yaml:{line}: stages.train.rewards must have at least one reward with a weight other than 0\n"
        "  hint: a reward of weight 0 is only logged"
    ]
    assert (
        told(text, "      jpeg: {quality: 50}\n", "      jpeg: {weight: 0}\n      size: {use: jpeg, weight: -1}\n")
        == []
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "unknown tracker 'tensorbord'\n  hint: did you mean 'tensorboard'?"),
        ("all", "unknown tracker 'all'\n  hint: the trackers are aim, clearml, comet_ml, dvclive, mlflow, swanlab, "
         "tensorboard, trackio, wandb"),
        ("wandb", "tracker 'wandb' is not installed\n  hint: install it, or remove it from report_to; metrics.jsonl is "
         "always written"),
    ],
)  # fmt: skip
def test_a_tracker_that_is_unknown_or_not_installed_is_told(told, name: str, message: str) -> None:
    assert told(TRAIN, "[tensorboard]", f"[tensorboard, {name}]") == [f"demo.yaml:7: {message}"]


def test_every_tracker_of_accelerate_is_known() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from draft.pipeline.kinds.train import TRACKERS

    assert set(LOGGER_TYPE_TO_CLASS) <= set(TRACKERS)


def test_a_named_model_that_draws_nothing_is_told_with_those_that_do(told) -> None:
    (text,) = told(TRAIN, "model: model", "model: emoji/clip")
    assert text.startswith("demo.yaml:5: the model 'emoji/clip' is no text-to-image model (it is registered as clip)")
    assert "\n  hint: registered models of that kind: emoji" in text


@pytest.mark.parametrize("name", ["old.ckpt", "./old.pt", "old.bin", "lost.pth"])
def test_a_pickle_is_no_model_whether_it_is_there_or_not(told, workshop, name: str) -> None:
    for file in ("old.ckpt", "old.pt", "old.bin"):
        (workshop.folder / file).write_bytes(b"\x80\x02")
    assert told(TRAIN, "model: model", f"model: {name}") == [
        f"demo.yaml:5: a model's weights must be safetensors, in a folder or a single file (got {name!r})\n"
        "  hint: Draft never loads pickles, which can run code; convert the file first"
    ]


def test_a_folder_whose_name_ends_like_a_pickle_is_a_model(told, workshop) -> None:
    (workshop.folder / "model").rename(workshop.folder / "model.bin")
    assert told(TRAIN, "model: model", "model: ./model.bin") == []


def test_a_family_that_needs_newer_libraries_is_refused(told, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from draft.diffusion import families

    row = replace(families.FAMILIES[0], needs="diffusers>=99")
    monkeypatch.setattr("draft.pipeline.models.family_of", lambda model: row)
    (message,) = told(TRAIN)
    assert message.startswith("demo.yaml:5: the family 'sd' of this model needs diffusers>=99 (got ")


def test_a_message_shows_where_a_value_came_from_in_the_environment_and_not_the_value(
    told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_RATE", "s3cr3t-t0ken")
    (message,) = told(TRAIN, "    model: model\n", "    model: model\n    learning_rate: '${oc.env:MY_RATE}'\n")
    assert "s3cr3t" not in message
    assert message.startswith("demo.yaml:6: stages.train.learning_rate must be a number (got '${oc.env:MY_RATE}')")
    (message,) = told(TRAIN, "    model: model\n", "    model: '/models/${oc.env:MY_RATE}'\n")
    assert "s3cr3t" not in message and "${oc.env:MY_RATE}" in message


@pytest.mark.parametrize("line", ["batch_size: 99999999999999", "learning_rate: .inf", "learning_rate: 1.0e+300"])
def test_a_size_or_a_rate_that_nobody_means_is_refused(told, line: str) -> None:
    (message,) = told(TRAIN, "    model: model\n", f"    model: model\n    {line}\n")
    assert message.startswith(f"demo.yaml:6: stages.train.{line.partition(':')[0]} must be at most")

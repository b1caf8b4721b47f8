"""What an adapter file says about its making, and what it never says."""

from __future__ import annotations

import json

import pytest

from draft.pipeline.load import load_pipeline
from draft.pipeline.provenance import provenance, without_secrets


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"token": "hf_abc", "quality": 50}, {"token": "???", "quality": 50}),
        ({"deep": {"api_key": "x", "OPENAI_API_KEY": "y"}}, {"deep": {"api_key": "???", "OPENAI_API_KEY": "???"}}),
        ({"index": "https://me:secret@host/simple"}, {"index": "???"}),
        ({"file": "/home/me/x.pt", "other": "~/x", "more": ["C:\\x", "D:/x"]},
         {"file": "???", "other": "???", "more": ["???", "???"]}),
        ({"model": "owner/name", "text": "a cat / a dog", "tokens": 5, "password": ""},
         {"model": "owner/name", "text": "a cat / a dog", "tokens": 5, "password": ""}),
        ({"url": "https://host/x", "weight": -1.5, "none": None},
         {"url": "https://host/x", "weight": -1.5, "none": None}),
    ],
)  # fmt: skip
def test_paths_and_secrets_are_left_out_and_nothing_else(value, kept) -> None:
    assert without_secrets(value) == kept


def test_the_story_holds_prompts_rewards_and_settings_whole(workshop) -> None:
    workshop.run()
    told = {
        job.stage.name: json.loads(provenance(job.stage, job.files).get("draft.pipeline", "null"))
        for job in workshop.jobs
    }
    assert told["evaluate"] is None
    train = told["train"]
    assert train["prompts"] == ["a cat", "a dog"] and train["seed"] == 3 and train["stage"] == "train"
    assert train["rewards"] == {"jpeg": {"use": "jpeg", "quality": 50}}
    assert train["settings"]["learning_rate"] == 1e-4 and train["settings"]["lora"]["rank"] == 8
    assert train["model"]["name"] == "model" and len(train["model"]["sha256"]) == 64
    assert told["mix"]["settings"]["adapters"] == {"a": {"weight": 0.7}}
    assert str(workshop.folder) not in json.dumps(told)
    header = {job.stage.name: job.metadata for job in workshop.jobs}
    assert json.loads(header["train"]["draft.pipeline"]) == train and "draft.pipeline" not in header["evaluate"]


def test_what_comes_from_the_environment_is_in_no_file(workshop, plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin()
    monkeypatch.setenv("MY_PLACE", "the-very-secret")
    text = workshop.file.read_text()
    text = text.replace("rate: 1e-4", "rate: 1e-4\n  word: ${oc.env:MY_PLACE}")
    options = '{use: glow, target: "in ${vars.word}"}\n      other: {use: glow, target: plain, weight: 2}'
    workshop.file.write_text(text.replace("{quality: 50}\n  mix", options + "\n  mix").replace("jpeg: {use", "g: {use"))
    workshop.run()
    train = next(job for job in workshop.jobs if job.stage.name == "train")
    assert train.stage.terms[0].reward.target == "in the-very-secret"  # it is used
    assert "the-very-secret" not in json.dumps(dict(train.metadata))
    told = json.loads(train.metadata["draft.pipeline"])["rewards"]
    assert told["g"]["target"] == "???" and told["other"]["target"] == "plain"
    written = (workshop.runs / "config.yaml").read_text()
    for text in (written, train.config_text):  # the variable's name stands there, and is its value when it is run again
        assert "the-very-secret" not in text and "target: in ${oc.env:MY_PLACE}" in text
    again = load_pipeline(workshop.runs / "config.yaml")
    assert again.stages["train"].terms[0].reward.target == "in the-very-secret"


def test_prompts_that_a_header_should_not_carry_are_counted(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft.pipeline.provenance.MOST", 9)
    workshop.run()
    told = json.loads(workshop.jobs[0].metadata["draft.pipeline"])
    assert told["prompts"] == "???" and told["count"] == 2

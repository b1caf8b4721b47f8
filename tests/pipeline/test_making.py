"""What an adapter file says about its making, and what it never says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draft.errors import DraftError
from draft.pipeline.load import load_pipeline
from draft.pipeline.provenance import provenance, without_secrets
from draft.report.data import as_csv, as_json
from draft.report.withheld import withholding


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
    assert told["mix"]["settings"]["adapters"] == {"a": {"weight": 0.7, "text_encoder": None, "blocks": {}}}
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


ROUTES = {
    "by itself": "${oc.env:MY_PLACE}",
    "inside a text": "in ${oc.env:MY_PLACE}, there",
    "by a variable": "${vars.word}",
    "by a name that is looked up": "${oc.env:${vars.name}}",
    "by a resolver that is looked up": "${oc.${vars.e}:MY_PLACE}",
    "by a name of a name": "${vars.${vars.which}}",
    "decoded": "${oc.decode:'\"${oc.env:MY_PLACE}\"'}",
    "selected": "${oc.select:vars.word}",
    "as a default": "${oc.select:vars.none, ${oc.env:MY_PLACE}}",
    "created": "${vars.made.a}",
    "quoted": "${oc.env:'MY_PLACE'}",
}
VARIABLES = """\
rate: 1e-4
  word: ${oc.env:MY_PLACE}
  name: MY_PLACE
  e: env
  which: word
  made: "${oc.create:{a: '${oc.env:MY_PLACE}'}}\""""


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_takes_a_value_of_the_environment_into_a_file(
    workshop, plugin, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    plugin()
    monkeypatch.setenv("MY_PLACE", "the-very-secret")
    text = workshop.file.read_text().replace("rate: 1e-4", VARIABLES)
    options = f"glow: {{target: {json.dumps(ROUTES[route])}}}"
    workshop.file.write_text(text.replace("jpeg: {quality: 50}", options))
    workshop.run()
    train = next(job for job in workshop.jobs if job.stage.name == "train")
    assert "the-very-secret" in train.stage.terms[0].reward.target  # it is used
    texts = [json.dumps(dict(train.metadata)), train.config_text]
    texts += [file.read_text() for file in workshop.runs.rglob("*") if file.is_file()]
    assert len(texts) > 6 and not any("the-very-secret" in text for text in texts)
    again = load_pipeline(workshop.runs / "config.yaml")
    assert again.stages["train"].terms[0].reward == train.stage.terms[0].reward


def test_a_stage_runs_again_when_a_value_of_the_environment_is_another(
    workshop, plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin()
    monkeypatch.setenv("MY_PLACE", "one")
    text = workshop.file.read_text()
    workshop.file.write_text(text.replace("jpeg: {quality: 50}", 'glow: {target: "${oc.env:MY_PLACE}"}'))
    workshop.run()
    assert [line.split(":")[1] for line in workshop.plan()] == [" reused"] * 3
    monkeypatch.setenv("MY_PLACE", "two")
    said = workshop.plan()[0]
    assert said.startswith("train: will run (rewards changed: glow.target environment:") and "two" not in said


def test_settings_and_names_of_the_environment_are_in_no_file_either(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"NAME": "name-of-mine", "SEED": "12345", "RATE": "0.000123", "DEVICE": "cpu", "PLACE": "model"}
    for name, value in values.items():
        monkeypatch.setenv(f"MY_{name}", value)
    text = workshop.file.read_text().replace("name: demo", "name: d-${oc.env:MY_NAME}")
    text = text.replace("seed: 3", "seed: ${oc.decode:${oc.env:MY_SEED}}").replace(
        "model: model", "model: ${oc.env:MY_PLACE}"
    )
    text = text.replace("rate: 1e-4", "rate: ${oc.decode:${oc.env:MY_RATE}}")
    workshop.file.write_text(text)
    workshop.run()
    train = next(job for job in workshop.jobs if job.stage.name == "train")
    assert (train.stage.seed, train.stage.config.learning_rate) == (12345, 0.000123)
    assert train.title == "d-${oc.env:MY_NAME}" and train.stage.model_name == "${oc.env:MY_PLACE}"
    runs = workshop.folder / "runs" / "d-name-of-mine"
    texts = [json.dumps(dict(train.metadata)), train.config_text]
    texts += [file.read_text() for file in runs.rglob("*") if file.is_file()]
    for value in ("name-of-mine", "12345", "0.000123", f"{workshop.folder}/model"):
        assert not any(value in text for text in texts), value
    again = load_pipeline(runs / "config.yaml")
    assert (again.name, again.seed) == ("d-name-of-mine", 12345)
    assert again.stages["train"].model == train.stage.model
    assert [line.split(":")[1] for line in workshop.plan(file=runs / "config.yaml")] == [" reused"] * 3


def test_a_prompt_cannot_come_from_the_environment(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PLACE", "the-very-secret")
    text = workshop.file.read_text().replace("rate: 1e-4", 'rate: 1e-4\n  texts: ["${oc.env:MY_PLACE}"]')
    workshop.file.write_text(text.replace("prompts: [a cat, a dog]", "prompts: ${vars.texts}"))
    with pytest.raises(DraftError, match=r"stages.train.prompts.0 comes from the environment") as raised:
        load_pipeline(workshop.file)
    assert "the-very-secret" not in str(raised.value)


def test_a_page_has_no_folder_of_this_machine(workshop) -> None:
    elsewhere = workshop.folder.parent / "elsewhere.txt"
    elsewhere.write_text("a fox")
    workshop.run(f"stages.evaluate.prompts.file={elsewhere}")
    for job in workshop.jobs:
        assert str(workshop.folder.parent) not in job.config_text
    assert "'.../elsewhere.txt'" in workshop.jobs[-1].config_text
    assert "model: model" in workshop.jobs[-1].config_text


def test_what_is_withheld_is_in_no_page_and_no_table(tmp_path: Path) -> None:
    with withholding({"cpu": "${oc.env:A}", "the-very-secret": "${oc.env:B}"}, [tmp_path / "runs"]):
        text = as_json({"device": "cpu", "note": f"cpus: the-very-secret at {tmp_path}/runs/x/0.png"})
        table = as_csv(["a"], [["the-very-secret"]])
    assert json.loads(text) == {"device": "${oc.env:A}", "note": "cpus: ${oc.env:B} at x/0.png"}
    assert "secret" not in table
    assert json.loads(as_json({"device": "cpu"})) == {"device": "cpu"}


def test_prompts_that_a_header_should_not_carry_are_counted(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft.pipeline.provenance.MOST", 9)
    workshop.run()
    told = json.loads(workshop.jobs[0].metadata["draft.pipeline"])
    assert told["prompts"] == "???" and told["count"] == 2

"""Whatever is wrong with a pipeline file is said in one line, with its place and a way out, all at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draft.errors import ConfigErrors, DraftError, DraftWarning
from draft.methods.values import METHODS
from draft.pipeline.load import load_pipeline


def errors(workshop, *overrides: str, text: str | None = None, swap: tuple[str, str] | None = None) -> list[str]:
    if text is not None:
        workshop.file.write_text(text)
    if swap is not None:
        before = workshop.file.read_text()
        assert swap[0] in before
        workshop.file.write_text(before.replace(*swap))
    os.chdir(workshop.folder)
    with pytest.raises(DraftError) as caught:
        load_pipeline("demo.yaml", overrides)
    found = caught.value.errors if isinstance(caught.value, ConfigErrors) else [caught.value]
    return [str(error) for error in found]


@pytest.fixture(autouse=True)
def _here(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop.folder)


CASES = {
    "unknown key": (
        ("learning_rate:", "lerning_rate:"),
        "demo.yaml:11: unknown key 'stages.train.lerning_rate'\n  hint: did you mean 'learning_rate'?",
    ),
    "unknown key at the top": (
        ("seed: 3", "sed: 3"),
        "demo.yaml:2: unknown key 'sed'\n  hint: did you mean 'seed'?",
    ),
    "unknown key of a mapping": (
        ("prompts: {file: held.txt}", "prompts: {fil: held.txt}"),
        "demo.yaml:21: unknown key 'stages.evaluate.prompts.fil'\n  hint: did you mean 'file'?",
    ),
    "wrong type": (
        ("seed: 3", "seed: three"),
        "demo.yaml:2: seed must be an integer (got 'three')",
    ),
    "text for a number": (
        ("learning_rate: ${vars.rate}", "max_steps: '20'"),
        "demo.yaml:11: stages.train.max_steps must be an integer (got '20')",
    ),
    "out of bounds": (
        ("rate: 1e-4", "rate: -1.0"),
        "demo.yaml:11: stages.train.learning_rate must be greater than 0 (got -1.0)",
    ),
    "a choice": (
        ("learning_rate: ${vars.rate}", "mixed_precision: fp16"),
        "demo.yaml:11: stages.train.mixed_precision must be 'no' or 'bf16' (got 'fp16')",
    ),
    "alternatives": (
        ("learning_rate: ${vars.rate}", "gradient_checkpointing: 7"),
        "demo.yaml:11: stages.train.gradient_checkpointing must be true or false or 'auto' (got 7)",
    ),
    "unknown method": (
        ("learning_rate: ${vars.rate}", "method: {kind: draft_vl}"),
        "demo.yaml:11: unknown method 'draft_vl'\n  hint: did you mean 'draft_lv'?",
    ),
    "a method's unknown key": (
        ("learning_rate: ${vars.rate}", "method: {kind: draft_k, copies: 2}"),
        "demo.yaml:11: unknown key 'stages.train.method.copies'\n  hint: the keys here are kind, k",
    ),
    "a method without kind": (
        ("learning_rate: ${vars.rate}", "method: {k: 2}"),
        "demo.yaml:11: stages.train.method needs a key 'kind' (got {\"k\": 2})\n"
        f"  hint: the kinds are {', '.join(method.kind for method in METHODS)}",
    ),
    "more recorded than sampled steps": (
        ("learning_rate: ${vars.rate}", "method: {kind: draft_k, k: 60}"),
        "demo.yaml:11: stages.train.method.k must be at most sampler.num_inference_steps, 50 (got 60)",
    ),
    "missing key": (
        ("    model: ${vars.model}\n    prompts: [a", "    prompts: [a"),
        "demo.yaml:7: missing key 'stages.train.model'\n  hint: add 'model:'",
    ),
    "missing kind": (
        ("    kind: mix\n", ""),
        "demo.yaml:14: missing key 'stages.mix.kind'\n"
        "  hint: the kinds are train, mix, evaluate, generate, compare, probe, strip",
    ),
    "unknown stage kind": (
        ("kind: mix", "kind: mixx"),
        "demo.yaml:15: unknown stage kind 'mixx'\n  hint: did you mean 'mix'?",
    ),
    "a bad label": (
        ("jpeg: {quality: 50}", "a/b: {use: jpeg, quality: 50}"),
        "demo.yaml:13: stages.train.rewards.a/b is not a usable name (got 'a/b')\n"
        "  hint: names have up to 100 letters, digits, - and _, and begin with a letter or a digit",
    ),
    "a bad name": (
        ("name: demo", "name: ../demo"),
        "demo.yaml:1: name is not a usable name (got '../demo')\n"
        "  hint: names have up to 100 letters, digits, - and _, and begin with a letter or a digit",
    ),
    "a name too long for a folder": (
        ("name: demo", f"name: {'x' * 101}"),
        f"demo.yaml:1: name is not a usable name (got '{'x' * 56}...)\n"
        "  hint: names have up to 100 letters, digits, - and _, and begin with a letter or a digit",
    ),
    "empty prompts": (
        ("prompts: [a cat, a dog]", "prompts: []"),
        "demo.yaml:10: stages.train.prompts is empty\n  hint: give at least 1",
    ),
    "a prompt that is no text": (
        ("prompts: [a cat, a dog]", "prompts: [a cat, 7]"),
        "demo.yaml:10: stages.train.prompts.1 must be text (got 7)",
    ),
    "prompts that are neither list nor file": (
        ("prompts: [a cat, a dog]", "prompts: a cat"),
        "demo.yaml:10: stages.train.prompts must be a list (got 'a cat')",
    ),
    "no reward": (
        ("rewards:\n      jpeg: {quality: 50}", "rewards: {}"),
        "demo.yaml:12: stages.train.rewards is empty\n  hint: give at least 1",
    ),
    "unknown reward": (("jpeg: {quality: 50}", "jpge: {quality: 50}"), None),
    "unknown option of a reward": (
        ("jpeg: {quality: 50}", "jpeg: {qualty: 50}"),
        "demo.yaml:13: reward 'jpeg' has no option 'qualty'\n  hint: did you mean 'quality'?",
    ),
    "an option out of bounds": (
        ("jpeg: {quality: 50}", "jpeg:\n        quality: 0"),
        "demo.yaml:14: stages.train.rewards.jpeg.quality must be at least 1 (got 0)",
    ),
    "a weight that is no number": (
        ("jpeg: {quality: 50}", "jpeg: {weight: heavy}"),
        "demo.yaml:13: stages.train.rewards.jpeg.weight must be a finite number (got 'heavy')",
    ),
    "a metric that trains": (
        ("jpeg: {quality: 50}", "jpeg_size: {quality: 50}"),
        "demo.yaml:13: reward 'jpeg_size' has no gradient, so draft_lv cannot train for it\n"
        "  hint: measure it in an evaluate stage instead, or train by ddpo or best_of_n",
    ),
    "unknown stage in a reference": (
        ("out:train.adapter", "out:trian.adapter"),
        "demo.yaml:17: unknown stage 'trian' (got '${out:trian.adapter}')\n  hint: did you mean 'train'?",
    ),
    "unknown output": (
        ("out:train.adapter", "out:train.adaptor"),
        "demo.yaml:17: stage 'train' has no output 'adaptor' (got '${out:train.adaptor}')\n"
        "  hint: did you mean 'adapter'?",
    ),
    "output of the wrong type": (
        ("out:train.adapter", "out:train.metrics"),
        "demo.yaml:17: stages.mix.adapters.a.from must be an output 'adapter' (got '${out:train.metrics}')",
    ),
    "reference without output": (
        ("out:train.adapter", "out:train"),
        "demo.yaml:17: a reference names a stage and its output (got '${out:train}')\n"
        "  hint: write ${out:stage.output}",
    ),
    "reference to itself": (
        ("out:train.adapter", "out:mix.adapter"),
        "demo.yaml:17: stage 'mix' refers to itself (got '${out:mix.adapter}')",
    ),
    "reference inside a text": (
        ('"${out:train.adapter}"', '"x/${out:train.adapter}"'),
        "demo.yaml:17: a reference must stand alone (got 'x/${out:train.adapter}')\n  hint: write ${out:stage.output}",
    ),
    "reference in a wrong place": (
        ("model: ${vars.model}\n    prompts: {", "model: ${out:train.adapter}\n    prompts: {"),
        "demo.yaml:20: a reference cannot stand in 'stages.evaluate.model' (got '${out:train.adapter}')\n"
        "  hint: in a stage of kind evaluate, references stand in adapters.LABEL.from, curves.LABEL",
    ),
    "unknown variable": (
        ("model: ${vars.model}\n    prompts: [", "model: ${vars.modle}\n    prompts: ["),
        "demo.yaml:9: stages.train.model names an unknown key 'vars.modle' (got '${vars.modle}')\n"
        "  hint: did you mean 'model'?",
    ),
    "variable without vars": (
        ("model: ${vars.model}\n    prompts: [", "model: ${model}\n    prompts: ["),
        "demo.yaml:9: stages.train.model names an unknown key 'model' (got '${model}')\n  hint: write ${vars.model}",
    ),
    "a broken interpolation": (
        ("model: ${vars.model}\n    prompts: [", "model: 'a ${ b'\n    prompts: ["),
        None,
    ),
    "a circle of variables": (
        ("model: model", "model: ${vars.model}"),
        None,
    ),
    "a value to be given": (
        ("seed: 3", "seed: ???"),
        "demo.yaml:2: seed must be given (got '???')",
    ),
    "no such model": (
        ("model: model", "model: ./modell"),
        None,
    ),
    "no such named model": (
        ("model: model", "model: emojy"),
        None,
    ),
    "rehearsal": (
        ("seed: 3", "rehearsal: {a: 1}"),
        "demo.yaml:2: unknown key 'a'\n  hint: the keys here are name, stages, seed, vars",
    ),
    "duplicate key": (
        ("seed: 3", "seed: 3\nname: other"),
        "demo.yaml:3: duplicate key 'name'\n  hint: the first is in line 1",
    ),
    "not YAML": (
        ("seed: 3", "seed: [3"),
        None,
    ),
    "a reserved key": (
        ("jpeg: {quality: 50}", "jpeg: {every: 2}"),
        "demo.yaml:13: 'every' is not available yet\n  hint: leave it out",
    ),
}


@pytest.mark.parametrize("case", [case for case, (_, text) in CASES.items() if text is not None])
def test_a_mistake_is_told_with_its_line_and_a_hint(workshop, case: str) -> None:
    swap, text = CASES[case]
    assert errors(workshop, swap=swap) == [text]


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("unknown reward", ["demo.yaml:13: ", "'jpge'", "did you mean 'jpeg'?"]),
        ("a broken interpolation", ["demo.yaml:9: stages.train.model is not a readable interpolation (got 'a ${ b')"]),
        ("a circle of variables", ["demo.yaml:4: vars.model cannot be resolved: recursive interpolation"]),
        ("no such model", ["demo.yaml:9: no such model (got './modell', which is "]),
        ("no such named model", ["demo.yaml:9: no such model (got 'emojy')", "did you mean 'emoji'"]),
        ("not YAML", ["demo.yaml:3: not readable as YAML: "]),
    ],
)
def test_a_mistake_names_its_place(workshop, case: str, parts: list[str]) -> None:
    text = errors(workshop, swap=CASES[case][0])[0]
    for part in parts:
        assert part in text


def test_a_reference_to_a_later_stage_is_refused_with_the_stage_to_move(workshop) -> None:
    text = """\
name: demo
stages:
  mix:
    kind: mix
    adapters: {a: {from: "${out:later.adapter}"}}
  later:
    kind: mix
    adapters: {a: {from: x.safetensors}}
"""
    (workshop.folder / "x.safetensors").write_text("")
    assert errors(workshop, text=text) == [
        "demo.yaml:5: stage 'mix' refers to the later stage 'later' (got '${out:later.adapter}')\n"
        "  hint: move 'later' above 'mix'"
    ]


def test_stages_that_refer_to_each_other_in_a_circle_are_named_in_order(workshop) -> None:
    text = """\
name: demo
stages:
  a: {kind: mix, adapters: {x: {from: "${out:c.adapter}"}}}
  b: {kind: mix, adapters: {x: {from: "${out:a.adapter}"}}}
  c: {kind: mix, adapters: {x: {from: "${out:b.adapter}"}}}
"""
    assert errors(workshop, text=text) == ["demo.yaml:3: the stages refer to each other in a circle: a -> c -> b -> a"]


def test_all_errors_come_at_once_in_the_order_of_the_file(workshop) -> None:
    text = workshop.file.read_text().replace("seed: 3", "seed: x").replace("kind: mix", "kind: mox")
    found = errors(workshop, "stages.evaluate.shown=0", text=text.replace("held.txt", "gone.txt"))
    gone = str(workshop.folder / "gone.txt")
    assert found == [
        "demo.yaml:2: seed must be an integer (got 'x')",
        "demo.yaml:15: unknown stage kind 'mox'\n  hint: did you mean 'mix'?",
        f"demo.yaml:21: the prompt file does not exist (got {gone!r})",
        "command line, 'stages.evaluate.shown=0': stages.evaluate.shown must be at least 1 (got 0)",
    ]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("max_steps=20", "unknown key 'max_steps'\n  hint: keys are written in full: stages.train.max_steps=20"),
        ("sed=1", "unknown key 'sed'\n  hint: did you mean 'seed'?"),
        ("stages.trian.max_steps=1", "unknown stage 'trian'\n  hint: did you mean 'train'?"),
        ("vars.modle=x", "unknown variable 'modle'\n  hint: did you mean 'model'?"),
        (
            "stages.train.max_step=1",
            "unknown key 'stages.train.max_step'\n  hint: did you mean 'max_steps'?",
        ),
        ("stages.train.max_steps=x", "stages.train.max_steps must be an integer (got 'x')"),
        ("stages.train.prompts.9=x", "cannot set 'stages.train.prompts.9': list index out of range"),
        ("seed=[1", None),
    ],
)
def test_a_wrong_override_is_told_as_the_command_line(workshop, override: str, text: str | None) -> None:
    found = errors(workshop, override)
    if text is None:
        assert found[0].startswith(f"command line, {override!r}: not readable as YAML: ")
    else:
        assert found == [f"command line, {override!r}: {text}"]


def test_an_override_without_equals_is_refused(workshop) -> None:
    assert errors(workshop, "seed") == [
        "command line: an override must be key=value (got 'seed')\n  hint: e.g. stages.train.max_steps=20"
    ]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("p.txt", "# nothing\n\n", "demo.yaml:21: the prompt file has no prompts (got {path!r})\n"
         "  hint: write one prompt per line"),
        ("p.csv", "text,thing\na,b\n", "{path}:2: there must be a column 'prompt' (got text, thing)"),
        ("p.csv", "prompt,thing\na,b,c\n", "{path}:2: this row must have 2 fields, like the header\n"
         '  hint: put a prompt that has commas in "quotes"'),
        ("p.csv", "prompt,thing\n,b\n", "{path}:2: the prompt is empty"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', "{path}:2: not readable as JSON: Expecting ':' delimiter"),
        ("p.jsonl", "[1]\n", "{path}:1: every line must be a JSON object (got [1])"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "a", "x": "b"}\n',
         "{path}:2: every row must have the columns prompt (got prompt, x)"),
    ],
)  # fmt: skip
def test_a_bad_prompt_file_is_told(workshop, name: str, content: str, text: str) -> None:
    path = workshop.folder / name
    path.write_text(content)
    assert errors(workshop, swap=("held.txt", name)) == [text.format(path=str(path))]


def test_a_prompt_file_that_is_not_utf8_is_told(workshop) -> None:
    (workshop.folder / "held.txt").write_bytes("ein schöner Fuchs".encode("latin-1"))
    assert "is not UTF-8 text: byte 7" in errors(workshop)[0]


def test_an_option_that_names_a_column_needs_it_in_the_prompt_file(workshop, plugin) -> None:
    plugin()
    assert errors(workshop, swap=("jpeg: {quality: 50}", "glow: {amount: 0.5}")) == [
        "demo.yaml:13: stages.train.rewards.glow.target names the column 'thing', which the prompts do not have "
        "(columns: none)\n  hint: columns come from a csv or jsonl prompt file"
    ]


def test_a_missing_or_foreign_adapter_is_refused(workshop) -> None:
    (workshop.folder / "a.ckpt").write_text("")
    gone = str(workshop.folder / "gone.safetensors")
    assert errors(workshop, swap=('"${out:train.adapter}"', "gone.safetensors")) == [
        f"demo.yaml:17: no such file (got {gone!r})"
    ]
    found = errors(workshop, swap=("gone.safetensors", "a.ckpt"))
    assert found == [
        f"demo.yaml:17: an adapter must be a .safetensors file (got {str(workshop.folder / 'a.ckpt')!r})\n"
        "  hint: Draft never loads pickles"
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "demo.yaml: the file is empty\n  hint: a pipeline has name, seed, vars and stages"),
        ("- a\n", "demo.yaml:1: a pipeline must be a mapping (got a list)"),
        ("name: demo\nstages: {}\n", "demo.yaml:2: stages is empty\n  hint: give at least 1"),
        ("name: demo\n", "demo.yaml: missing key 'stages'\n  hint: add 'stages:'"),
        ("name: demo\nstages: {a: 3}\n", "demo.yaml:2: stages.a must be a mapping (got 3)"),
        ("name: 7\nstages: {a: {kind: mix, adapters: {x: {from: m}}}}\n", "demo.yaml:1: name must be text (got 7)"),
    ],
)
def test_a_file_that_is_no_pipeline_is_told(workshop, content: str, text: str) -> None:
    (workshop.folder / "m").mkdir()
    assert errors(workshop, text=content) == [text]


def test_a_missing_file_is_told_with_the_shipped_ones(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DraftError) as caught:
        load_pipeline("quikstart")
    assert str(caught.value) == "no such pipeline file (got 'quikstart')\n  hint: did you mean 'quickstart'?"
    with pytest.raises(DraftError, match="a pipeline is a file, not a folder"):
        load_pipeline(Path("model"))


def test_words_that_the_embedded_model_never_met_are_told_once_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "name: p\nstages:\n  a:\n    kind: generate\n    model: emoji\n    prompts: [a zebr on the moon]\n"
        "  b:\n    kind: generate\n    model: emoji\n    prompts: [a cat and a zebr]\n"
    )
    with pytest.warns(DraftWarning) as told:
        load_pipeline(file)
    assert len(told) == 1
    text = str(told[0].message)
    assert text.startswith(f"{file}:6: the emoji model does not know 'zebr' (nearest: zebra")
    assert "'moon'" in text

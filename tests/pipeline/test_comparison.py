"""A stage that compares: its mistakes with their lines, what its result depends on, and its rehearsal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from draft.errors import ConfigErrors, DraftError
from draft.pipeline.identity import differences, identity
from draft.pipeline.kinds.compare import HELD_OUT, MEASURED
from draft.pipeline.load import load_pipeline

PIPELINE = """\
name: demo
stages:
  compare:
    kind: compare
    model: model
    prompts: [a cat, a dog]
    sampler: {num_inference_steps: 8}
    rewards:
      jpeg: {quality: 50}
    methods:
      lv: {method: {kind: draft_lv}}
      k: {method: {kind: draft_k, k: 5}, sampler: {eta: 1}, learning_rates: [1e-3]}
    measure:
      prompts: {file: held.txt}
      rewards:
        kb: {use: jpeg_size}
"""


@pytest.fixture(autouse=True)
def _here(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop.folder)
    workshop.file.write_text(PIPELINE)


def stage(workshop, *swaps: tuple[str, str]):
    text = PIPELINE
    for before, after in swaps:
        assert before in text
        text = text.replace(before, after)
    workshop.file.write_text(text)
    return load_pipeline("demo.yaml").stages["compare"]


CASES = {
    "no methods": (
        (PIPELINE[PIPELINE.index("    methods:") : PIPELINE.index("    measure:")], "    methods: {}\n"),
        "demo.yaml:10: stages.compare.methods is empty\n  hint: give at least 1",
    ),
    "a method without a method": (
        ("lv: {method: {kind: draft_lv}}", "lv: {learning_rates: [1e-3]}"),
        "demo.yaml:11: missing key 'stages.compare.methods.lv.method'\n  hint: add 'method:'",
    ),
    "an unknown method": (
        ("kind: draft_lv", "kind: draft_vl"),
        "demo.yaml:11: unknown method 'draft_vl'\n  hint: did you mean 'draft_lv'?",
    ),
    "an unknown setting of a method": (
        ("sampler: {eta: 1}", "smapler: {eta: 1}"),
        "demo.yaml:12: unknown key 'stages.compare.methods.k.smapler'\n  hint: did you mean 'sampler'?",
    ),
    "an unknown setting inside one": (
        ("sampler: {eta: 1}", "sampler: {eat: 1}"),
        "demo.yaml:12: unknown key 'stages.compare.methods.k.sampler.eat'\n  hint: did you mean 'eta'?",
    ),
    "a learning rate outside the search": (
        ("learning_rates: [1e-3]", "learning_rate: 1e-3"),
        "demo.yaml:12: stages.compare.methods.k.learning_rate cannot be set for one method\n"
        "  hint: a method's learning rates are its `learning_rates`",
    ),
    "a length of its own": (
        ("learning_rates: [1e-3]", "max_steps: 3"),
        "demo.yaml:12: stages.compare.methods.k.max_steps cannot be set for one method",
    ),
    "more recorded than sampled steps": (
        ("k: 5", "k: 9"),
        "demo.yaml:12: stages.compare.methods.k.method.k must be at most sampler.num_inference_steps, 8 (got 9)",
    ),
    "a sampler that the method cannot have": (
        ("kind: draft_k, k: 5", "kind: drtune"),
        "demo.yaml:12: stages.compare.methods.k.sampler.eta must be 0 for drtune: "
        "it follows the deterministic sampler's straight path (got 1)",
    ),
    "a learning rate that is none": (
        ("learning_rates: [1e-3]", "learning_rates: [0]"),
        "demo.yaml:12: stages.compare.methods.k.learning_rates.0 must be greater than 0 (got 0)",
    ),
    "no measure": (
        ("    measure:\n      prompts: {file: held.txt}\n      rewards:\n        kb: {use: jpeg_size}\n", ""),
        "demo.yaml:3: missing key 'stages.compare.measure'\n  hint: add 'measure:'",
    ),
    "missing held-out prompts": (
        ("held.txt", "lost.txt"),
        "demo.yaml:14: the prompt file does not exist (got ",
    ),
    "an unknown reward among the measures": (
        ("use: jpeg_size", "use: jpeg_sizes"),
        "demo.yaml:16: unknown reward (got 'jpeg_sizes')\n  hint: did you mean 'jpeg_size'?",
    ),
    "a column that only training prompts have": (
        ("kb: {use: jpeg_size}", "fit: {use: clip_score, text: '{target}'}"),
        "demo.yaml:16: stages.compare.measure.rewards.fit.text names the column 'target', "
        "which the prompts do not have (columns: none)",
    ),
    "a label twice": (
        ("kb: {use: jpeg_size}", "jpeg: {quality: 20}"),
        "demo.yaml:16: stages.compare.measure.rewards.jpeg has the label of a reward that is trained for\n"
        "  hint: what is trained for is measured anyway; for another reward choose another label and add `use`",
    ),
    "the label of the sum": (
        ("kb: {use: jpeg_size}", "reward: {use: jpeg_size}"),
        "demo.yaml:16: stages.compare.measure.rewards.reward has the label of the weighted sum\n"
        "  hint: choose another label and add `use`",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_told_with_its_line(workshop, case: str) -> None:
    swap, message = CASES[case]
    with pytest.raises(DraftError) as caught:
        stage(workshop, swap)
    assert message in str(caught.value)
    assert not isinstance(caught.value, ConfigErrors), "and once"


def test_a_reward_without_gradient_names_the_methods_that_need_one(workshop) -> None:
    with pytest.raises(ConfigErrors) as caught:
        stage(workshop, ("jpeg: {quality: 50}", "size: {use: jpeg_size}"))
    said = [str(error) for error in caught.value.errors]
    assert [text.splitlines()[0] for text in said] == [
        "demo.yaml:11: reward 'jpeg_size' has no gradient, so draft_lv cannot train for it",
        "demo.yaml:12: reward 'jpeg_size' has no gradient, so draft_k cannot train for it",
    ]


def test_a_method_has_the_stages_settings_but_for_its_own(workshop) -> None:
    found = stage(workshop, ("    sampler:", "    batch_size: 3\n    learning_rates: [1e-2, 1e-1]\n    sampler:"))
    lv, k = found.config.methods["lv"], found.config.methods["k"]
    assert (lv.batch_size, k.batch_size) == (3, 3)
    assert (lv.learning_rates, k.learning_rates) == ((1e-2, 1e-1), (1e-3,))
    assert [(one.sampler.num_inference_steps, one.sampler.eta) for one in (lv, k)] == [(8, 0.0), (8, 1.0)]
    assert list(found.inputs.prompts[HELD_OUT]) == ["a fox", "a cow"]


@pytest.mark.parametrize(
    ("swap", "reason"),
    [
        (("k: 5", "k: 4"), "config changed: methods.k.method.k 5 -> 4"),
        (("eta: 1", "eta: 0.5"), "config changed: methods.k.sampler.eta 1.0 -> 0.5"),
        (("    methods:", "    budget: {updates: 3}\n    methods:"), "config changed: budget.updates 200 -> 3"),
        (("use: jpeg_size}", "use: jpeg_size, quality: 3}"), "rewards changed: kb.options.quality 75 -> 3"),
        (("prompts: {file: held.txt}", "prompts: [a hen]"), "measure.prompts changed"),
        (("    methods:", "    checkpoint: {every: 3}\n    methods:"), ""),
    ],
)
def test_a_comparison_runs_again_where_its_result_would_be_another(workshop, swap, reason: str) -> None:
    before, after = identity(stage(workshop), {}), identity(stage(workshop, swap), {})
    found = differences(before, after)
    assert [text.partition(" ")[0] for text in found] == ([reason.partition(" ")[0]] if reason else [])
    if reason and "quality" not in reason:
        assert found == [reason]


def test_its_resolved_file_is_the_same_pipeline_from_anywhere(workshop) -> None:
    from draft.pipeline.document import dump_yaml
    from draft.pipeline.run import resolved

    first = stage(workshop, ("file: held.txt", "file: held.txt"))
    written = dump_yaml(resolved(load_pipeline("demo.yaml")))
    (workshop.folder / "elsewhere").mkdir()
    os.chdir(workshop.folder / "elsewhere")
    Path("demo.yaml").write_text(written)
    assert identity(load_pipeline("demo.yaml").stages["compare"], {}) == identity(first, {})


def test_prompts_of_the_measures_are_taken_as_they_are_written(workshop) -> None:
    found = stage(workshop, ("prompts: {file: held.txt}", "prompts: ['a ${vars.cat}']"))
    assert list(found.inputs.prompts[HELD_OUT]) == ["a ${vars.cat}"]


SMALL = """\
name: small
stages:
  compare:
    kind: compare
    model: CompVis/stable-diffusion-v1-4
    prompts: [a cat, a dog]
    mixed_precision: bf16
    rewards:
      fit: {use: clip_score}
    methods:
      lv: {method: {kind: draft_lv}}
      k: {method: {kind: draft_k, k: 20}}
    learning_rates: [1e-3]
    seeds: [0]
    measure:
      prompts: [a fox]
      images_per_prompt: 9
      rewards:
        judge: {use: emoji_judge}
        liked: {use: pickscore}
rehearsal:
  stages.compare.sampler.num_inference_steps: 2
  stages.compare.batch_size: 1
  stages.compare.budget: {updates: 2, evaluations: 2, seconds: 0.1}
  stages.compare.curve: {every: 1, prompts: 1}
"""


def test_options_that_a_compared_method_leaves_out_become_small_as_well(workshop) -> None:
    k = "      k: {method: {kind: draft_k, k: 20}}\n"
    refl = "      refl: {method: {kind: refl}}\n"
    long = "      long: {method: {kind: refl}, sampler: {num_inference_steps: 100}}\n"
    text = SMALL.replace(k, k + refl + long)
    workshop.file.write_text(text.replace("num_inference_steps: 2\n", "num_inference_steps: 10\n"))
    methods = load_pipeline("demo.yaml", rehearse=True).stages["compare"].config.methods
    assert (methods["refl"].sampler.num_inference_steps, methods["refl"].method.window) == (10, 2)
    assert (methods["long"].sampler.num_inference_steps, methods["long"].method.window) == (10, 1)
    assert methods["k"].method.k == 10 and methods["lv"].method.copies == 2


def test_a_full_size_comparison_rehearses_to_the_end_offline(workshop) -> None:
    workshop.file.write_text(SMALL)
    result = workshop.run(rehearse=True, executors={})
    found = load_pipeline("demo.yaml", rehearse=True).stages["compare"]
    assert found.config.methods["k"].method.k == 2
    assert found.inputs.terms[MEASURED][1].reward.model == "emoji/preference"  # type: ignore[attr-defined]
    assert found.terms[0].reward.model == "emoji/clip"  # type: ignore[attr-defined]
    report = json.loads((result.folder / "compare" / "compare.json").read_text())
    assert list(report["methods"]) == ["lv", "k"]
    assert set(report["base"]) == {"reward", "fit", "judge", "liked"}
    assert report["images"] == 2
    assert set(result["compare"].metrics) == {
        f"{label}.{axis}" for label in ("lv", "k") for axis in report["budget"]
    } - {f"{label}.cap" for label in ("lv", "k")}
    assert [path.name for path in result["compare"].outputs.values()] == [
        "compare.html", "compare.json", "compare.md", "compare.png",
    ]  # fmt: skip

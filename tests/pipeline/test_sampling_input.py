"""What is wrong with how a stage samples is said with its line, what was given and a way out; what fits is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from draft.errors import ConfigErrors, DraftError
from draft.pipeline.load import load_pipeline

GENERATE = """\
name: demo
stages:
  generate:
    kind: generate
    model: model
    prompts: [a cat]
    sampler: {num_inference_steps: 20, guidance_scale: 7}
"""
EVALUATE = """\
name: demo
stages:
  evaluate:
    kind: evaluate
    model: model
    prompts: [a cat]
    sampler: {num_inference_steps: 20}
    rewards: {jpeg: {quality: 50}}
"""
MIX = """\
name: demo
stages:
  mix:
    kind: mix
    adapters:
      a:
        from: a.safetensors
        weight: 0.5
"""
JPEG = "    rewards: {jpeg: {quality: 50}}\n"


@pytest.fixture
def told(workshop, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What is wrong with a file; nothing if it is right."""
    monkeypatch.chdir(workshop.folder)
    (workshop.folder / "a.safetensors").write_text("")

    def told(text: str, *overrides: str) -> list[str]:
        workshop.file.write_text(text)
        try:
            load_pipeline("demo.yaml", overrides)
        except DraftError as error:
            return [str(each) for each in (error.errors if isinstance(error, ConfigErrors) else [error])]
        return []

    return told


def adapter(schedule: str) -> str:
    return f"    adapters:\n      a:\n        from: a.safetensors\n        schedule: {{{schedule}}}\n"


def method(options: str) -> str:
    return f"    method: {{{options}}}\n"


# --- schedules of adapters ---

SCHEDULES = {
    "kind: last_steps, steps: 21": (
        "adapters.a.schedule.steps must be at most sampler.num_inference_steps, 20 (got 21)"
    ),
    "kind: combined, base_steps: 21": (
        "adapters.a.schedule.base_steps must be at most sampler.num_inference_steps, 20 (got 21)"
    ),
    "kind: annealed": ("adapters.a.schedule must have either power or threshold (got neither)\n  hint: power: 2"),
    "kind: annealed, power: 1, threshold: 0.5": (
        "adapters.a.schedule must have either power or threshold (got both)\n  hint: power: 2"
    ),
    "kind: last_steps, steps: 0": "adapters.a.schedule.steps must be at least 1 (got 0)",
    "kind: annealed, threshold: 0": "adapters.a.schedule.threshold must be greater than 0 (got 0)",
}


@pytest.mark.parametrize(("stage", "line"), [(GENERATE, 11), (EVALUATE, 12)], ids=["generate", "evaluate"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_that_does_not_fit_the_sampler_is_told(told, stage: str, line: int, schedule: str) -> None:
    name = stage.split("kind: ")[1].split()[0]
    assert told(stage + adapter(schedule)) == [f"demo.yaml:{line}: stages.{name}.{SCHEDULES[schedule]}"]


@pytest.mark.parametrize("stage", [GENERATE, EVALUATE], ids=["generate", "evaluate"])
@pytest.mark.parametrize(
    "schedule",
    [
        "kind: constant",
        "kind: last_steps, steps: 20",
        "kind: combined, base_steps: 0",
        "kind: combined, base_steps: 20",
        "kind: annealed, power: 0",
        "kind: annealed, threshold: 1",
    ],
)
def test_a_schedule_at_its_bounds_fits(told, stage: str, schedule: str) -> None:
    assert told(stage + adapter(schedule)) == []


def test_a_schedule_in_a_mix_is_refused_with_where_it_belongs_whatever_it_says(told) -> None:
    for schedule in ("kind: last_steps, steps: 2", "kind: constant"):
        assert told(MIX + f"        schedule: {{{schedule}}}\n") == [
            "demo.yaml:9: stages.mix.adapters.a.schedule has no place in a mix, whose result is one adapter for all "
            "steps\n  hint: give it to the adapter in the evaluate or generate stage that draws with it"
        ]
    assert told(MIX) == []


def test_a_value_from_the_command_line_is_told_as_such(told) -> None:
    text = GENERATE + adapter("kind: last_steps, steps: 20")
    assert told(text, "stages.generate.adapters.a.schedule.steps=30") == [
        "command line, 'stages.generate.adapters.a.schedule.steps=30': "
        "stages.generate.adapters.a.schedule.steps must be at most sampler.num_inference_steps, 20 (got 30)"
    ]


# --- methods that raise a reward ---

METHODS = {
    "noise_opt that records more steps than there are": (
        method("kind: noise_opt, recorded: 21") + JPEG,
        "demo.yaml:8: stages.generate.method.recorded must be at most sampler.num_inference_steps, 20 (got 21)",
    ),
    "guidance that ends before it begins": (
        method("kind: guided, start: 0.75, stop: 0.5") + JPEG,
        "demo.yaml:8: stages.generate.method.start must be less than method.stop, 0.5 (got 0.75)",
    ),
    "guidance that ends where it begins": (
        method("kind: guided, start: 0.5, stop: 0.5") + JPEG,
        "demo.yaml:8: stages.generate.method.start must be less than method.stop, 0.5 (got 0.5)",
    ),
    "fewer pictures than ways to say it": (
        method("kind: prompt_search, modifiers: [old, red], budget: 2") + JPEG,
        "demo.yaml:8: stages.generate.method.budget must be at least 3, the prompt and each modifier once (got 2)",
    ),
    "a reward without gradient": (
        method("kind: noise_opt") + "    rewards:\n      kb: {use: jpeg_size, quality: 50}\n",
        "demo.yaml:10: stages.generate.rewards.kb: reward 'jpeg_size' has no gradient, so noise_opt cannot raise it\n"
        "  hint: prompt_search takes any reward; weight: 0 measures it only",
    ),
    "a part of a reward without gradient": (
        method("kind: guided") + "    rewards:\n      sum:\n        use: expression\n        formula: 2 * kb\n"
        "        of:\n          kb: {use: jpeg_size}\n",
        "demo.yaml:14: stages.generate.rewards.sum.of.kb: reward 'jpeg_size' has no gradient, so guided cannot "
        "raise it\n  hint: prompt_search takes any reward; weight: 0 measures it only",
    ),
    "a reward of the whole batch": (
        method("kind: guided") + "    rewards:\n      diversity: {features: pixels}\n",
        "demo.yaml:10: stages.generate.rewards.diversity gives scores that depend on the batch, but each image is "
        "made for itself\n  hint: measure it in an evaluate stage instead",
    ),
    "a label that is taken": (
        method("kind: guided") + "    rewards:\n      reward: {use: jpeg}\n",
        "demo.yaml:10: stages.generate.rewards.reward has the label of the weighted sum\n"
        "  hint: choose another label and add `use`",
    ),
    "no reward": (
        method("kind: prompt_search"),
        "demo.yaml:8: stages.generate.method prompt_search needs at least one reward with a weight other than 0\n"
        "  hint: name what it should raise under `rewards:`",
    ),
    "rewards without a weight": (
        method("kind: guided") + "    rewards: {jpeg: {weight: 0}}\n",
        "demo.yaml:9: stages.generate.method guided needs at least one reward with a weight other than 0\n"
        "  hint: name what it should raise under `rewards:`",
    ),
    "rewards without a method": (
        JPEG,
        "demo.yaml:8: stages.generate.rewards have no effect without a method that raises them\n"
        "  hint: add a method, or measure images in an evaluate stage",
    ),
    "an unknown method": (
        method("kind: guidet") + JPEG,
        "demo.yaml:8: unknown method 'guidet'\n  hint: did you mean 'guided'?",
    ),
    "an option of another method": (
        method("kind: guided, iterations: 3") + JPEG,
        "demo.yaml:8: unknown key 'stages.generate.method.iterations'\n"
        "  hint: the keys here are micro_batch_size, kind, weight, scale, jacobian, recurrence, start, stop",
    ),
}


@pytest.mark.parametrize("case", METHODS)
def test_a_method_that_cannot_do_what_it_is_asked_is_told(told, case: str) -> None:
    rest, text = METHODS[case]
    assert told(GENERATE + rest) == [text]


@pytest.mark.parametrize(
    "rest",
    [
        method("kind: noise_opt, recorded: 20") + JPEG,
        method("kind: noise_opt, recorded: 0") + JPEG,
        method("kind: guided, start: 0.0, stop: 0.05") + JPEG,
        method("kind: prompt_search, modifiers: [old, red], budget: 3") + JPEG,
        method("kind: prompt_search, budget: 1") + JPEG,
        method("kind: prompt_search") + "    rewards: {kb: {use: jpeg_size}}\n",
        method("kind: guided") + "    rewards: {jpeg: {}, kb: {use: jpeg_size, weight: 0}}\n",
        "",
    ],
)
def test_a_method_at_its_bounds_fits(told, rest: str) -> None:
    assert told(GENERATE + rest) == []


def test_everything_that_is_wrong_with_a_stage_comes_at_once(told) -> None:
    rewards = "    rewards:\n      kb: {use: jpeg_size}\n      diversity: {features: pixels}\n"
    found = told(GENERATE + adapter("kind: last_steps, steps: 40") + method("kind: noise_opt, recorded: 40") + rewards)
    assert [each.partition(": ")[0] for each in found] == [f"demo.yaml:{line}" for line in (11, 12, 14, 15)]


# --- rehearsals ---

SMALL = """\
name: demo
stages:
  generate:
    kind: generate
    model: emoji
    prompts: [a cat]
"""


def replaced(workshop, text: str, *overrides: str) -> dict[str, tuple[object, object]]:
    workshop.file.write_text(text)
    found = {
        each.key: (each.before, each.after)
        for each in load_pipeline(workshop.file, overrides, rehearse=True).replacements
    }
    assert found.pop("name") == ("demo", "demo-rehearsal")
    return {key.removeprefix("stages.generate."): values for key, values in found.items()}


def sampler(steps: int) -> str:
    return f"    sampler: {{num_inference_steps: {steps}, guidance_scale: 1.0}}\n"


SCALED = {
    "kind: last_steps, steps: 10": ("steps", 10, 5),
    "kind: last_steps, steps: 1": None,
    "kind: last_steps, steps: 20": ("steps", 20, 10),
    "kind: combined, base_steps: 5": ("base_steps", 5, 2),
    "kind: combined, base_steps: 20": ("base_steps", 20, 10),
    "kind: combined, base_steps: 0": None,
    "kind: combined, base_steps: 0, guidance_scale: 7.0": ("guidance_scale", 7.0, 2.0),
    "kind: annealed, power: 2": None,
}


@pytest.mark.parametrize("schedule", SCALED)
def test_a_rehearsal_keeps_a_schedules_share_of_the_steps(workshop, schedule: str) -> None:
    own = "    adapters: {a: {from: a.safetensors, schedule: {" + schedule + "}}}\n"
    (workshop.folder / "a.safetensors").write_text("")
    found = replaced(workshop, SMALL + sampler(20) + own)
    wanted = {"sampler.num_inference_steps": (20, 10)}
    if SCALED[schedule] is not None:
        key, before, after = SCALED[schedule]
        wanted[f"adapters.a.schedule.{key}"] = (before, after)
    assert found == wanted


def test_a_schedule_follows_the_steps_that_somebody_chose_for_the_rehearsal_and_stays_where_it_was_chosen_itself(
    workshop,
) -> None:
    text = SMALL + sampler(20) + "    adapters: {a: {from: a.safetensors, schedule: {kind: last_steps, steps: 10}}}\n"
    (workshop.folder / "a.safetensors").write_text("")
    key = "adapters.a.schedule.steps"
    assert replaced(workshop, text, "stages.generate.sampler.num_inference_steps=20") == {}
    chosen = text + f"rehearsal: {{stages.generate.sampler.num_inference_steps: 4, stages.generate.{key}: 3}}\n"
    assert replaced(workshop, chosen) == {"sampler.num_inference_steps": (20, 4), key: (10, 3)}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("kind: noise_opt", {"method.iterations": (50, 10)}),
        ("kind: noise_opt, iterations: 10, recorded: 10", {}),
        ("kind: noise_opt, iterations: 4, recorded: 12", {"method.recorded": (12, 10)}),
        ("kind: guided", {}),
        ("kind: prompt_search", {"method.budget": (16, 8)}),
        ("kind: prompt_search, budget: 5", {}),
        ("kind: prompt_search, budget: 30, modifiers: [a, b, c, d, e, f, g, h, i]", {"method.budget": (30, 10)}),
    ],
)
def test_a_rehearsal_takes_fewer_samples_and_records_no_more_steps_than_it_has(workshop, options, wanted) -> None:
    text = SMALL + sampler(20) + method(options) + JPEG
    assert replaced(workshop, text) == {"sampler.num_inference_steps": (20, 10)} | wanted

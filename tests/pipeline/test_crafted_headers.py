"""The header of a stranger's adapter: `draft reproduce` makes a pipeline of it or refuses, and lets it run nothing."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from draft.errors import DraftError
from draft.pipeline.document import parse_document
from draft.pipeline.reproduce import reproduce
from draft.rewards import discovery
from draft_cli.reproduce import compare, write_pipeline

TRAIN: dict[str, Any] = {
    "kind": "train",
    "stage": "train",
    "draft": "1",
    "settings": {
        "learning_rate": 1e-4,
        "max_steps": 1,
        "lora": {"rank": 4},
        "method": {"kind": "draft_lv"},
        "base_adapters": [{"weight": 1.0}],
        "sampler": {"num_inference_steps": 4},
    },
    "seed": 1,
    "model": {"name": "emoji"},
    "prompts": ["a cat", "a dog"],
    "columns": {"thing": ["cat", "dog"]},
    "rewards": {"jpeg": {"use": "jpeg", "quality": 50}},
    "packages": {"jpeg": {"name": "draft-diffusion", "version": "1"}},
    "inputs": [{"key": ["base_adapters", 0, "from"], "sha256": "ab" * 32}],
}
MIX: dict[str, Any] = {
    "kind": "mix",
    "draft": "1",
    "inputs": [
        {"name": "a", "sha256": "cd" * 32, "weight": 1.0, "pipeline": {**TRAIN, "inputs": [], "columns": {}}},
        {"name": "b", "sha256": "ef" * 32, "weight": 0.5},
    ],
    "method": "exact",
    "rank": 8,
    "energy": None,
    "components": {},
    "blocks": {},
    "normalize": False,
    "density": 0.5,
    "seed": None,
    "dtype": "fp16",
    "format": "kohya",
}
CONFIG = {"kind": "train", "version": 1, "settings": TRAIN["settings"], "rewards": {"jpeg": {"use": "jpeg"}}, "seed": 1}
ODD: list[Any] = [
    *(None, True, 5, -1, 1e400, 10**30, "", "x", "???", "\n", "\x1b[31m", "${oc.env:HOME}", "${out:a.b}", "a" * 5000),
    *(
        "mix",
        "train",
        "\ud800",
        "\0",
        "../../x",
        [],
        {},
        [1],
        {"a": 1},
        [[]],
        ["a", None],
        {"kind": "mix"},
        {"kind": []},
    ),
    *({"sha256": 5}, {"isolated": {"python": "/bin/sh"}}, [{"key": ["rewards"]}], [{"key": []}], TRAIN, MIX),
]
KEYS = [
    "kind",
    "seed",
    "inputs",
    "key",
    "isolated",
    "\n",
    "columns",
    "settings",
    "sha256",
    "recipe",
    "pipeline",
    "rewards",
]


def places(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if keys:
        yield keys
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*keys, key))


def crafted(value: Any, dice: random.Random) -> str:
    value = copy.deepcopy(value)
    for _ in range(dice.choice([1, 1, 2, 3])):
        if not (choices := list(places(value))):  # everything has been deleted
            break
        *way, last = dice.choice(choices)
        node = value
        for key in way:
            node = node[key]
        match dice.randrange(5):
            case 0:
                del node[last]
            case 1 if isinstance(node, dict):
                node[dice.choice(KEYS)] = copy.deepcopy(dice.choice(ODD))
            case _:
                node[last] = copy.deepcopy(dice.choice(ODD))
    text = json.dumps(value)
    return text[: dice.randrange(len(text))] if dice.random() < 0.02 else text


def attempt(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    metadata = {"draft.fingerprint": "x"}
    entries = {"pipeline": TRAIN, "recipe": MIX, "config": CONFIG, "continued": [{"branch": "x", "update": 3}]}
    for (name, value), share in zip(entries.items(), (0.6, 0.6, 0.5, 0.1), strict=True):
        if dice.random() < share:
            metadata[f"draft.{name}"] = crafted(value, dice)
    try:
        reproduction = reproduce(metadata, name="n-again")
        write_pipeline(reproduction, folder / "again.yaml", force=True)
        assert "python: /bin/sh" not in reproduction.text()
        compare(reproduction, metadata, folder / "again.yaml")
    except DraftError as error:
        str(error).encode()


UNLIMITED: Any = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.reuse, Phase.generate],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        # Which packages are installed is looked up for each reward; here it does not change between two files.
        patch.setattr(discovery, "all_entries", functools.cache(discovery.all_entries))
        yield tmp_path_factory.mktemp("again")


@settings(max_examples=150, **UNLIMITED)
@given(seed=st.integers(0, 2**32))
def test_a_crafted_header_is_a_pipeline_or_an_error(folder: Path, seed: int) -> None:
    attempt(folder, seed)


@pytest.mark.slow
@settings(max_examples=1000, **UNLIMITED)
@given(seed=st.integers(0, 2**32))
def test_a_thousand_crafted_headers_are_pipelines_or_errors(folder: Path, seed: int) -> None:
    attempt(folder, seed)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "entries",
    [
        {"pipeline": {**TRAIN, "kind": []}},
        {"pipeline": {**TRAIN, "kind": {"a": 1}}},
        {"pipeline": {**TRAIN, "model": None}},
        {"pipeline": {**TRAIN, "prompts": 5}},
        {"pipeline": {**TRAIN, "columns": {"thing": ["cat"]}}},
        {"pipeline": {**TRAIN, "columns": [1]}},
        {"pipeline": {**TRAIN, "inputs": [{"key": []}]}},
        {"pipeline": {**TRAIN, "inputs": [5]}},
        {"pipeline": {**TRAIN, "rewards": {"jpeg": {"use": "\ud800"}}}},
        {"recipe": {**MIX, "inputs": [None]}},
        {"recipe": {**MIX, "kind": ["mix"]}},
        {"recipe": {**MIX, "inputs": [{"pipeline": TRAIN, "sha256": {}}]}},
    ],
)
def test_what_does_not_add_up_is_refused(entries: dict[str, Any]) -> None:
    metadata = {f"draft.{name}": json.dumps(value) for name, value in entries.items()}
    with pytest.raises(DraftError, match="damaged|does not say how it was made"):
        reproduce(metadata, name="again")


@pytest.mark.parametrize("text", [DEEP, "9" * 5000, '{"kind": "train"'])
def test_json_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DraftError, match="does not say how it was made"):
        reproduce({"draft.pipeline": text, "draft.recipe": text}, name="again")


def test_what_would_run_or_install_something_is_left_to_the_reader() -> None:
    rewards = {
        "a": {"isolated": {"python": "/home/stranger/python", "timeout": 5}},
        "b": {"isolated": {"requirements": ["evil @ https://host/evil.tar.gz"]}},
        "c": {"isolated": "python"},
        "d": {"isolated": {}},
    }
    made = reproduce({"draft.pipeline": json.dumps({**TRAIN, "columns": {}, "rewards": rewards})}, name="again")
    stage = made.stages["train"]
    assert stage["rewards"] == {
        "a": {"isolated": {"python": "???", "timeout": 5}},
        "b": {"isolated": {"requirements": "???"}},
        "c": {"isolated": "???"},
        "d": {"isolated": {"python": "???"}},
    }
    assert "stranger" not in made.text() and "evil" not in made.text()
    assert made.missing["stages.train.rewards.a.isolated.python"] == (
        "what runs or installs code, which you must choose yourself"
    )
    # The same by another way: as a setting.
    settings = {**TRAIN["settings"], "rewards": rewards}
    made = reproduce({"draft.pipeline": json.dumps({**TRAIN, "columns": {}, "settings": settings})}, name="again")
    assert "stranger" not in made.text() and "evil" not in made.text()


def test_a_name_in_the_header_cannot_end_the_comment_that_it_stands_in() -> None:
    pipeline = {**TRAIN, "columns": {}, "model": {"name": "x\nseed: 99\n", "sha256": "0" * 64}}
    text = reproduce({"draft.pipeline": json.dumps(pipeline)}, name="again").text()
    assert "seed" not in parse_document(text, "x.yaml")[0].data

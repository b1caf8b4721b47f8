"""Whatever is written into a pipeline file, the answer is a pipeline or an error, not a traceback or a long wait."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from draft.errors import LONGEST, DraftError
from draft.pipeline.document import dump_yaml, parse_document
from draft.pipeline.load import load_pipeline
from draft.rewards import discovery

SMALL = """\
name: small
seed: 3
vars: {model: model, rate: 1e-4, word: cat}
stages:
  train:
    kind: train
    model: ${vars.model}
    prompts: [a cat, "a ${vars.word}"]
    learning_rate: ${vars.rate}
    rewards:
      jpeg: {quality: 50}
      text: {use: expression, formula: a + b, of: {a: {use: jpeg}, b: {use: symmetry}}, weight: -0.5}
    method: {kind: draft_lv, copies: 2}
    sampler: {num_inference_steps: 5}
  mix:
    kind: mix
    adapters: {a: {from: "${out:train.adapter}", weight: 0.7}}
  evaluate:
    kind: evaluate
    model: ${vars.model}
    prompts: {file: held.txt}
    adapters: {mix: {from: "${out:mix.adapter}"}}
    rewards: {kb: {use: jpeg_size, quality: 50}}
    curves: {train: "${out:train.metrics}"}
rehearsal:
  stages.train.max_steps: 2
"""
DEEP = 300


def nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + closing * depth


TWELVE = {
    "half a character": 'prompts: ["a \\uD800 cat"]',
    "half a character in a key": 'rewards: {"\\uD800": {}}',
    "binary": "model: !!binary aGVsbG8=",
    "a binary key": "rewards: {!!binary aGVsbG8= : {}}",
    "no boolean": "model: !!bool maybe",
    "no integer": "model: !!int maybe",
    "a date": "model: !!timestamp 2001-01-01",
    "no date": "model: !!timestamp maybe",
    "a set": "rewards: !!set {jpeg}",
    "no such user": "model: ~no-such-user/model",
    "prompts of no such user": "prompts: {file: ~no-such-user/x.txt}",
    "an adapter of no such user": "init_adapter: ~no-such-user/x.safetensors",
    "a Python of no such user": "rewards: {jpeg: {isolated: {python: ~no-such-user/python}}}",
    "requirements of no such user": "rewards: {jpeg: {isolated: {requirements: [~no-such-user/x]}}}",
    "a long name": f"model: ./{'a' * 5000}",
    "a long prompt file": f"prompts: {{file: {'a' * 5000}}}",
    "a long adapter": f"init_adapter: {'a' * 5000}.safetensors",
    "a long Python": f"rewards: {{jpeg: {{isolated: {{python: {'a' * 5000}}}}}}}",
    "NUL": 'model: "a\\0b"',
    "no such variable": "model: ${oc.env:NO_SUCH_VARIABLE}",
    "a resolver that imports": "model: ${oc.coerce:antigravity.x,1}",
    "lists in lists": f"model: {nested('[', ']', DEEP)}",
    "mappings in mappings": f"model: {nested('{a: ', '}', DEEP)}",
    "interpolations in interpolations": f"model: {nested('${', '}', DEEP)}",
    "names in names": f"model: {nested('${vars.', '}', DEEP)}",
    "a hexadecimal number": f"max_steps: 0x{'f' * 6000}",
    "a decimal number": f"max_steps: {'9' * 6000}",
    "a number beyond floats": f"learning_rate: 1{'0' * 390}",
    "the file in itself": "model: ${stages}",
    "a value in itself": "model: ${.model}",
    "a kind that is a mapping": "kind: {a: b}",
    "control characters": 'model: "\\e[31mred\\a\\u202e"',
    "20 kB of text": f"model: {'a b' * 7000}",
    "a mapping as a key": "rewards: {? {a: 1} : {}}",
}
"""Each of the kinds of input that once gave a traceback, with its siblings: a line of a training."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_module) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_module.save_outline(folder / "model")
    (folder / "held.txt").write_text("a fox\n")
    with pytest.MonkeyPatch.context() as patch:
        # Which packages are installed is looked up for each reward; here it does not change between two files.
        patch.setattr(discovery, "all_entries", functools.cache(discovery.all_entries))
        yield folder


def answer(folder: Path, text: str, *overrides: str, rehearse: bool = False) -> str:
    """The error of a file, checked to be fit for a terminal; empty where there is none."""
    file = folder / "small.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_pipeline(file, overrides, rehearse=rehearse)
    except DraftError as error:
        message = str(error)
        message.encode()
        assert all(line.isprintable() and len(line) <= 2 * LONGEST for line in message.replace("\t", "").split("\n"))
        return message
    return ""


def with_line(line: str) -> str:
    key = line.partition(":")[0]
    lines = SMALL.split("\n")
    start, end = lines.index("  train:") + 1, lines.index("  mix:")
    keep: list[str] = []
    for each in lines[start:end]:
        if each.startswith("    ") and not each.startswith("     "):
            skipped = each.strip().startswith(f"{key}:")
        if not skipped:
            keep.append(each)
    return "\n".join([*lines[:start], f"    {line}", *keep, *lines[end:]])


def test_the_file_that_is_changed_is_right(folder: Path) -> None:
    assert answer(folder, SMALL) == "" and answer(folder, SMALL, rehearse=True) == ""


@pytest.mark.parametrize("case", TWELVE)
def test_each_kind_of_input_that_gave_a_traceback_is_an_error_with_its_place(folder: Path, case: str) -> None:
    message = answer(folder, with_line(TWELVE[case]))
    assert "small.yaml:" in message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("stages.train.learning_rate.x=1", "cannot set 'stages.train.learning_rate.x'"),
        ("seed.x=1", "cannot set 'seed.x': seed is no mapping (got 3)"),
        ("vars=5", "vars must be a mapping (got 5)"),
        ("stages.train.prompts.x=1", "a list has no key 'x'"),
        ("stages.train.\ud800=1", "an override must be UTF-8 text"),
        ("seed=0x" + "f" * 6000, "a number of 6002 characters"),
        ("seed=" + "[" * 300 + "]" * 300, "levels inside each other"),
        ("seed=&a [*a]", "an anchor contains itself"),
        ("seed=!!bool maybe", "not of the kind !!bool"),
    ],
)
def test_an_override_that_cannot_be_is_an_error(folder: Path, override: str, part: str) -> None:
    assert part in answer(folder, SMALL, override)


@pytest.mark.parametrize(
    "doubling",
    [
        lambda i: f'v{i + 1}: "${{vars.v{i}}}${{vars.v{i}}}${{vars.v{i}}}${{vars.v{i}}}"',
        lambda i: f"v{i + 1}: [" + ", ".join([f"'${{vars.v{i}}}'"] * 8) + "]",
        lambda i: f'v{i + 1}: "${{oc.select:vars.v{i}}}${{vars.${{vars.n{i}}}}}${{vars.v{i}}}"\n  n{i}: v{i}',
    ],
    ids=["texts", "lists", "other ways"],
)
def test_what_variables_make_of_each_other_has_a_limit(folder: Path, doubling: Callable[[int], str]) -> None:
    lines = "\n  ".join(["v0: aaaaaaaaaaaaaaaa", *map(doubling, range(20)), "model: ${vars.v20}"])
    head, _, stages = SMALL.partition("vars:")
    message = answer(folder, f"{head}vars:\n  {lines}\nstages:{stages.partition('stages:')[2]}")
    assert "the interpolations of the file make more than 20 MB" in message


def test_what_anchors_make_of_each_other_has_a_limit() -> None:
    rows = [f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * 9 if i else ['x'])}]" for i in range(9)]
    with pytest.raises(DraftError, match="anchors make too much of the file"):
        parse_document("\n".join(rows), "x.yaml")


def test_a_pair_of_halves_as_json_writes_it_is_one_character() -> None:
    document, _ = parse_document('a: "\\ud83d\\ude00"', "x.yaml")
    assert document.data == {"a": "😀"}


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e400,
    float("nan"),
    10**300,
    "",
    " ",
    "x",
    "???",
    "~",
    "~nobody/x",
    "a" * 5000,
    "\x1b[31m",
    "\u202e",
    "${",
    "${vars}",
    "${vars.model}",
    "${stages.train}",
    "${.}",
    "${..}",
    "${oc.env:NO_SUCH}",
    "${oc.env:HOME}",
    "${out:x.y}",
    "${out:train.adapter}",
    "${out:",
    "${vars.${vars.word}}",
    "\\${x}",
    "/",
    "..",
    ".",
    "held.txt",
    "model",
    "emoji",
    "a/b",
    "a.ckpt",
    "x.safetensors",
    "{thing}",
    "train",
    "draft_lv",
    "jpeg",
    "emoji-judge",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"a": None},
    {"kind": "x"},
    {"kind": []},
    {"file": "held.txt"},
    {"file": 5},
    {"from": "${out:train.adapter}"},
    {"use": "jpeg"},
    {"use": 5},
    {"python": "/bin/false"},
    {"isolated": {"requirements": []}},
    ["a cat"] * 3,
    "0x10",
    "1e-3",
]
TEXTS = [
    "!!binary ",
    "!!bool ",
    "!!python/name:os.system ",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "- ",
    "{",
    "[",
    "}",
    "]",
    "'",
    '"',
    "|\n",
    ">",
    "%",
    "@",
    "`",
    "#",
    "\t",
    "\n",
    "\r",
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "---\n",
    "...\n",
    ": ",
    ",",
    "\\",
    "${",
    "}",
    "\\uD800",
    "0x",
    "9" * 500,
    "é",
    "~",
    "!",
    "!<x> ",
    "null",
    ".nan",
    "rehearsal:\n  seed: 5\n",
]
KEYS = [
    "",
    "kind",
    "model",
    "prompts",
    "rewards",
    "use",
    "isolated",
    "weight",
    "from",
    "file",
    "x",
    "seed",
    "???",
    "a.b",
    "é",
]


def places(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if keys:
        yield keys
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*keys, key))


def mutant(dice: random.Random) -> str:
    """A pipeline with some values, keys or characters that do not belong there."""
    data = parse_document(SMALL, "x")[0].data
    for _ in range(dice.choice([0, 1, 1, 1, 2, 3])):
        *way, last = dice.choice(list(places(data)))
        node: Any = data
        for key in way:
            node = node[key]
        match dice.randrange(4):
            case 0:
                del node[last]
            case 1 if isinstance(node, dict):
                node[dice.choice(KEYS)] = node.pop(last) if dice.random() < 0.5 else dice.choice(ODD)
            case _:
                node[last] = dice.choice(ODD)
    text = dump_yaml(data)
    for _ in range(dice.choice([0, 0, 0, 1, 2, 4])):
        at = dice.randrange(len(text) + 1)
        text = text[:at] + dice.choice(TEXTS) + text[at + dice.choice([0, 0, 1, 5]) :]
    return text


def overrides(dice: random.Random) -> list[str]:
    keys = [".".join(map(str, keys)) for keys in places(parse_document(SMALL, "x")[0].data)]
    made = []
    for _ in range(dice.choice([0, 0, 1, 2])):
        key = dice.choice(keys) + dice.choice(["", "", ".x", ".0", "[1]", "[99]", ".", "..", "é"])
        made.append(f"{key}={dice.choice(TEXTS + [str(value) for value in ODD])}")
    return made


def attempt(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    start = time.process_time()
    answer(folder, mutant(dice), *overrides(dice), rehearse=dice.random() < 0.2)
    assert time.process_time() - start < 60  # it goes on forever, not somewhat slowly


SEEDS = st.integers(0, 2**32)
UNLIMITED = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.reuse, Phase.generate],  # a seed has no simpler one
}


@settings(max_examples=250, **UNLIMITED)
@given(seed=SEEDS)
def test_a_changed_pipeline_is_a_pipeline_or_an_error(folder: Path, seed: int) -> None:
    attempt(folder, seed)


@pytest.mark.slow
@settings(max_examples=3000, **UNLIMITED)
@given(seed=SEEDS)
def test_some_thousand_changed_pipelines_are_pipelines_or_errors(folder: Path, seed: int) -> None:
    attempt(folder, seed)

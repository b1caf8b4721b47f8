"""The documentation and the JSON Schema say what the schema says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from draft.pipeline.describe import descriptions, json_schema, key_tables
from draft.pipeline.fields import keys_at
from draft.pipeline.inputs import Head
from draft.pipeline.kinds import KINDS
from draft.pipeline.kinds.train import TrainStage
from draft.pipeline.load import load_pipeline

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "pipelines.md"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current() -> None:
    reference = generator()
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run `python docs/make_reference.py`"


def test_the_reference_holds_every_table_of_keys() -> None:
    page = generator().page()
    assert all(line in page for line in key_tables().splitlines() if line.startswith("|"))
    assert all(f"\n## `kind: {name}`\n" in page for name in KINDS)


def test_the_reference_describes_every_key() -> None:
    for line in key_tables().splitlines():
        if line.startswith("| `"):
            assert re.fullmatch(r"\| `[^|]*\| .*\| ([^|]|\\\|)+ \|", line), line


def test_the_example_of_the_guide_is_a_pipeline(tmp_path: Path) -> None:
    example = GUIDE.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "emoji").mkdir()
    (tmp_path / "demo.yaml").write_text(example)
    assert list(load_pipeline(tmp_path / "demo.yaml").stages) == ["train", "mix", "evaluate"]


@pytest.mark.parametrize("option", ["--dry-run", "--from", "--only", "--force", "--fresh", "--rehearse", "--runs-dir"])
def test_the_guide_names_every_option(option: str) -> None:
    assert option in GUIDE.read_text(encoding="utf-8")


def test_every_kind_has_outputs_a_version_and_described_keys() -> None:
    assert all(kind.name == name and kind.outputs and kind.version for name, kind in KINDS.items())
    for cls in (Head, *(kind.settings for kind in KINDS.values())):
        described = descriptions(cls)
        for key in keys_at(cls, (), {}):
            assert described.get(key), f"{cls.__name__}.{key}"


def test_keys_are_found_inside_mappings_and_alternatives() -> None:
    assert keys_at(TrainStage, ("method",), {"method": {"kind": "draft_k"}}) == ["kind", "k"]
    assert keys_at(TrainStage, ("lora",), {}) == ["rank", "targets"]
    assert keys_at(KINDS["mix"].settings, ("adapters", "a"), {}) == ["from", "weight", "text_encoder", "blocks"]
    assert keys_at(KINDS["evaluate"].settings, ("adapters", "a"), {}) == ["from", "weight", "schedule"]
    assert keys_at(KINDS["compare"].settings, ("methods", "a", "lora"), {}) == ["rank", "targets"]


def test_the_json_schema_is_strict_and_knows_installed_rewards() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
        assert definition["description"], name
    rewards = schema["$defs"]["TrainStage"]["properties"]["rewards"]
    _, _, jpeg = rewards["properties"]["jpeg"]["anyOf"]
    assert {"use", "weight", "device", "quality"} <= set(jpeg["properties"])
    assert schema["$defs"]["AdapterInput"]["required"] == ["from"]

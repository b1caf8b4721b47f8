"""A kind of stage is one file: nothing else in `draft/pipeline` knows one by name."""

from __future__ import annotations

import ast
from pathlib import Path

from draft.pipeline.kinds import KINDS

FOLDER = Path(__file__).parents[2] / "draft" / "pipeline"


def names_of_kinds(source: str, classes: set[str]) -> list[str]:
    """What in a file names a kind: its name as a text, its module, a class of it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)) if text in KINDS:
                found.append(text)
            case ast.ImportFrom(module=str(module)) if module.startswith("draft.pipeline.kinds."):
                found += [module] if module.rpartition(".")[2] in KINDS else []
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) if name in classes:
                found.append(name)
    return found


def classes_of_kinds() -> set[str]:
    return {
        node.name
        for name in KINDS
        for node in ast.parse((FOLDER / "kinds" / f"{name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


def test_no_file_but_its_own_names_a_kind_of_stage() -> None:
    classes = classes_of_kinds()
    assert {"TrainStage", "StripAdapter"} <= classes
    generic = [*FOLDER.glob("*.py"), FOLDER / "kinds" / "kind.py"]
    named = {file.name: names_of_kinds(file.read_text(encoding="utf-8"), classes) for file in generic}
    assert {name: found for name, found in named.items() if found} == {}


def test_a_name_is_found_however_it_is_written() -> None:
    for line in (
        'if stage.kind == "train": pass', 'x = {"mix": 1}', "from draft.pipeline.kinds.probe import run",
        "isinstance(stage, TrainStage)", "from x import StripAdapter", "kinds.EvaluateStage",
    ):  # fmt: skip
        assert names_of_kinds(line, classes_of_kinds() | {"EvaluateStage"}), line
    assert not names_of_kinds("text.strip(); names_of_train = 'a training'", classes_of_kinds())

"""What a field says about itself is read where it stands, and nowhere listed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import pytest
from annotated_types import Ge

from draft.evaluation.settings import EvaluateSettings
from draft.marks import Holds, Inert, Layout, hints, marks, plain
from draft.methods.values import DraftK
from draft.training.identity import identity
from draft.training.settings import CheckpointSettings, PreviewSettings, TrainSettings
from draft.types import Prompts


@dataclass(frozen=True)
class Inner:
    kept: int = 1
    gone: Annotated[int, Ge(0), Inert()] = 2


@dataclass(frozen=True)
class Outer:
    from_: Annotated[str, Holds("adapter")] = "a"
    either: Annotated[int, Inert(rounding=True)] | None = None
    inner: Inner = field(default_factory=Inner)
    several: tuple[Inner, ...] = (Inner(kept=3),)
    labelled: dict[str, Inner] = field(default_factory=lambda: {"x": Inner(kept=4)})


def test_a_field_is_left_out_by_its_mark_wherever_it_is() -> None:
    assert plain(Outer(), lambda mark: isinstance(mark, Inert)) == {
        "from": "a", "inner": {"kept": 1}, "several": [{"kept": 3}], "labelled": {"x": {"kept": 4}},
    }  # fmt: skip
    assert "from" not in plain(Outer(), lambda mark: isinstance(mark, Holds))


def test_marks_of_an_alternative_count() -> None:
    assert marks(hints(Outer)["either"]) == (Inert(rounding=True),)
    assert marks(hints(Inner)["gone"]) == (Ge(0), Inert())


def named(cls: type, mark: type) -> set[str]:
    return {key for key, hint in hints(cls).items() if any(isinstance(each, mark) for each in marks(hint))}


def test_these_settings_have_no_effect_on_a_result_and_no_others() -> None:
    assert named(TrainSettings, Inert) == {
        "gradient_checkpointing", "compile", "micro_batch_size", "device", "checkpoint", "preview", "report_to",
        "text_encoder",
    }  # fmt: skip
    assert named(EvaluateSettings, Inert) == {"batch_size", "device"}
    assert named(EvaluateSettings, Layout) == {"shown"}


INERT = {
    "device": "cuda:1", "compile": True, "gradient_checkpointing": True, "micro_batch_size": 2,
    "checkpoint": CheckpointSettings(every=7), "preview": PreviewSettings(every=3), "report_to": ("tensorboard",),
    "text_encoder": "resident",
}  # fmt: skip
DECISIVE = {"learning_rate": 1e-5, "mixed_precision": "bf16", "method": DraftK(), "batch_size": 3, "resolution": 64}


@pytest.mark.parametrize("key", [*INERT, *DECISIVE])
def test_a_training_is_another_one_where_a_setting_decides_its_result(key: str) -> None:
    def name(settings: TrainSettings) -> Mapping[str, str]:
        return identity(settings, model="m", prompts=Prompts(["a cat"]), terms=[], seed=0).decisive

    changed = replace(TrainSettings(), **{key: (INERT | DECISIVE)[key]})
    assert (name(changed) == name(TrainSettings())) is (key in INERT)

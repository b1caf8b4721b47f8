"""Settings that a method cannot go with are found before anything is loaded, each with its reason."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from draft.diffusion.settings import SamplerSettings
from draft.errors import StageError
from draft.methods.modules import mathematics
from draft.methods.values import DDPO, METHODS, AlignProp, ReFL
from draft.methods.values.problems import method_problems
from draft.progress import Silent
from draft.scoring.objective import HingeLoss, PenaltySettings, RobustSettings
from draft.training.settings import TrainSettings
from draft.training.train import train
from draft.types import Prompts

ROOT = Path(__file__).parents[2]
DEFAULTS = {"draft/training/settings.py": {"DraftLV"}}
"""Where a method is made, not asked for: the default one."""


def _problems(method: Any, *, eta: float = 0.0, steps: int = 10, **settings: Any) -> list[str]:
    sampler = SamplerSettings(num_inference_steps=steps, eta=eta)
    return [each.what for each in method_problems(TrainSettings(method=method, sampler=sampler, **settings))]


def _right_eta(kind: type[Any]) -> float:
    return 1.0 if kind.traits.eta in ("one", "positive") else 0.0


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.kind)
def test_a_method_with_its_own_defaults_has_no_problem(kind: type[Any]) -> None:
    assert _problems(kind(), eta=_right_eta(kind), batch_size=4) == []


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.kind)
def test_an_eta_that_a_method_cannot_have_is_refused_with_the_reason(kind: type[Any]) -> None:
    wrong = {"zero": [0.5, 1.0], "one": [0.0, 0.5], "positive": [0.0], "any": []}[kind.traits.eta]
    for eta in wrong:
        (what,) = _problems(kind(), eta=eta, batch_size=4)
        assert what.startswith("sampler.eta must be ") and kind.traits.eta_reason in what and f"(got {eta:g})" in what
    assert (kind.traits.eta == "any") == (not kind.traits.eta_reason)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.kind)
def test_an_option_without_effect_is_refused(kind: type[Any]) -> None:
    options: dict[str, Any] = {
        "loss": HingeLoss(margin=1.0),
        "penalty": PenaltySettings(epsilon=1.0),
        "robust": RobustSettings(image_radius=0.1),
        "cfg_gradient": "detached",
    }
    for key, value in options.items():
        found = _problems(kind(), eta=_right_eta(kind), batch_size=4, **{key: value})
        assert found == [] if kind.traits.backpropagates else [what.split()[0] for what in found] == [key]
    reused = _problems(kind(), eta=_right_eta(kind), batch_size=4, rollout_reuse=3)
    expected = [] if kind.traits.reuses_rollouts else [f"rollout_reuse must be 1 for {kind.kind} (got 3)"]
    assert reused == expected


def test_more_steps_than_the_sampler_has_are_refused() -> None:
    assert _problems(ReFL(window=20)) == ["method.window must be at most sampler.num_inference_steps, 10 (got 20)"]
    fixed = AlignProp(truncation="fixed", k=20)
    assert _problems(fixed) == ["method.k must be at most sampler.num_inference_steps, 10 (got 20)"]
    assert _problems(AlignProp(k=20)) == []  # `k` belongs to `fixed` alone


def test_a_training_from_python_refuses_what_a_pipeline_would(tmp_path: Path) -> None:
    sampler, loss = SamplerSettings(num_inference_steps=10, eta=1.0), HingeLoss(margin=1.0)
    settings = TrainSettings(method=DDPO(minibatches=9), sampler=sampler, loss=loss, batch_size=8)
    with pytest.raises(StageError) as caught:
        train(settings, model="?", prompts=Prompts(["x"]), terms=[], seed=0, folder=tmp_path, progress=Silent())
    assert caught.value.what == (
        "loss has no effect with ddpo, which does not backpropagate one reward per sample; "
        "method.minibatches must be at most the images of an update, 8 (got 9)"
    )
    assert "leave loss out" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.kind)
def test_a_methods_module_defines_one_of_three_things(kind: type[Any]) -> None:
    module = mathematics(kind())
    assert module.__name__ == f"draft.methods.{kind.kind}"
    assert len([name for name in ("plan", "surrogate", "Rule") if hasattr(module, name)]) == 1
    assert hasattr(module, "surrogate") == kind.traits.reuses_rollouts
    assert hasattr(module, "Rule") == (not kind.traits.backpropagates)


def test_no_file_but_a_methods_own_module_names_its_value() -> None:
    names = {kind.__name__: f"draft/methods/{kind.kind}.py" for kind in METHODS}
    for path in (ROOT / "draft").rglob("*.py"):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith("draft/methods/values/"):
            continue
        imports = [
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
        ]
        imported = {
            name.name
            for node in imports
            if (node.module or "").startswith("draft.methods.values")
            for name in node.names
        }
        found = {name for name in imported & set(names) if names[name] != place}
        assert found == DEFAULTS.get(place, set()), place

"""Which settings a training's method cannot go with, and why: known before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from draft.errors import Problem, StageError
from draft.methods.values.protocol import TrainingSettings
from draft.scoring.objective import LinearLoss, PenaltySettings, RobustSettings


def method_problems(settings: TrainingSettings) -> Iterator[Problem]:
    """Find the settings that a training's method cannot go with: what its traits forbid, and what itself does.

    Args:
        settings: The training's.

    Yields:
        One problem each.
    """
    method, traits, eta = settings.method, settings.method.traits, settings.sampler.eta
    if traits.eta == "zero" and eta:
        what = f"sampler.eta must be 0 for {method.kind}: {traits.eta_reason} (got {eta:g})"
        yield Problem(("sampler", "eta"), what, "draft, draft_k, draft_lv, refl and alignprop can have eta > 0")
    if traits.eta == "positive" and not eta:
        what = f"sampler.eta must be more than 0 for {method.kind}: {traits.eta_reason} (got {eta:g})"
        yield Problem(("sampler", "eta"), what, "sampler: {eta: 1}")
    if traits.eta == "one" and eta != 1:
        what = f"sampler.eta must be 1 for {method.kind}: {traits.eta_reason} (got {eta:g})"
        yield Problem(("sampler", "eta"), what, "sampler: {eta: 1}; any sampler can use the adapter afterwards")
    if not traits.backpropagates:
        for key, value, default in (
            ("loss", settings.loss, LinearLoss()),
            ("penalty", settings.penalty, PenaltySettings()),
            ("robust", settings.robust, RobustSettings()),
            ("cfg_gradient", settings.cfg_gradient, "both"),
        ):
            if value != default:
                what = f"{key} has no effect with {method.kind}, which does not backpropagate one reward per sample"
                yield Problem((key,), what, f"leave {key} out, or choose a method such as draft_lv")
    if settings.rollout_reuse > 1 and not traits.reuses_rollouts:
        what = f"rollout_reuse must be 1 for {method.kind} (got {settings.rollout_reuse})"
        yield Problem(("rollout_reuse",), what, "it draws its gradient from the rollout itself, not from a cached one")
    if not traits.reward_gradient and settings.saturation != "clip":
        what = f"saturation has no effect with {method.kind}, which takes no gradient of the images"
        yield Problem(("saturation",), what, "leave saturation out")
    yield from method.problems(settings)


def check_method(settings: TrainingSettings) -> None:
    """Refuse settings that their method cannot go with, or would ignore.

    Args:
        settings: The training's.

    Raises:
        StageError: There are such settings; it names all of them.
    """
    problems = list(method_problems(settings))
    if problems:
        hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
        raise StageError("; ".join(problem.what for problem in problems), hint="; ".join(hints))

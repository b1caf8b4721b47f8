"""Which settings a method cannot go with, and why: found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from draft.diffusion.methods.values import AlignProp
from draft.diffusion.methods.values.leaps import Cached, misfit
from draft.training.objective import LinearLoss, PenaltySettings, RobustSettings
from draft.training.settings import TrainSettings


@dataclass(frozen=True)
class Problem:
    """A setting that its method cannot go with.

    Args:
        keys: Where it is, from the training's settings.
        what: What is wrong, beginning with its key.
        hint: What to do.
    """

    keys: tuple[str, ...]
    what: str
    hint: str = ""


def method_problems(settings: TrainSettings) -> Iterator[Problem]:
    """Find the settings that a training's method cannot go with.

    Args:
        settings: The training's.

    Yields:
        One problem each.
    """
    method, traits, steps = settings.method, settings.method.traits, settings.sampler.num_inference_steps
    for key in ("k", "window"):
        value = getattr(method, key, 1)
        if value > steps and not (isinstance(method, AlignProp) and method.truncation != "fixed"):
            what = f"method.{key} must be at most sampler.num_inference_steps, {steps} (got {value})"
            yield Problem(("method", key), what)
    if isinstance(method, Cached) and getattr(method, "k", 1) <= steps and (found := misfit(method, steps)) is not None:
        yield Problem(("method", found.key), f"method.{found.key} {found.what}", found.hint)
    eta = settings.sampler.eta
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

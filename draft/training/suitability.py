"""Which settings a method cannot go with, and why: found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from draft.errors import Problem, StageError
from draft.methods.values import DDPO, AlignProp, BestOfN
from draft.methods.values.leaps import Cached, misfit
from draft.scoring.objective import LinearLoss, PenaltySettings, RobustSettings
from draft.training.settings import TrainSettings


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
    if not traits.reward_gradient and settings.saturation != "clip":
        what = f"saturation has no effect with {method.kind}, which takes no gradient of the images"
        yield Problem(("saturation",), what, "leave saturation out")
    yield from _round_problems(settings)


def check_method(settings: TrainSettings) -> None:
    """Refuse settings that their method cannot go with, or would ignore.

    Args:
        settings: The training's.

    Raises:
        StageError: There are such settings; it tells all of them.
    """
    problems = list(method_problems(settings))
    if problems:
        hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
        raise StageError("; ".join(problem.what for problem in problems), hint="; ".join(hints))


def _round_problems(settings: TrainSettings) -> Iterator[Problem]:
    """What a round of samples is too small for."""
    method, images = settings.method, settings.batch_size * settings.gradient_accumulation_steps
    if isinstance(method, DDPO):
        if method.minibatches > images:
            what = f"method.minibatches must be at most the images of an update, {images} (got {method.minibatches})"
            yield Problem(("method", "minibatches"), what, "batch_size x gradient_accumulation_steps are collected")
        if method.prompt_buffer and method.prompt_min_count > method.prompt_buffer:
            what = f"method.prompt_min_count must be at most prompt_buffer, {method.prompt_buffer}"
            hint = "prompt_buffer: 0 has no statistics per prompt"
            yield Problem(("method", "prompt_min_count"), f"{what} (got {method.prompt_min_count})", hint)
        if images == 1 and not method.prompt_buffer:
            what = "batch_size must be at least 2 for ddpo without prompt_buffer (got 1)"
            yield Problem(("batch_size",), what, "one image has no better and no worse ones beside it")
    if isinstance(method, BestOfN) and method.selection == "best" and method.samples == 1:
        what = "method.samples must be at least 2 for selection: best (got 1)"
        yield Problem(("method", "samples"), what, "one image of a prompt is always its best")

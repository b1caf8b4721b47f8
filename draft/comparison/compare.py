"""The complete comparison: a learning rate for every method, trainings with every seed, tables, curves and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from draft.comparison.page import write_page
from draft.comparison.plot import save_plot
from draft.comparison.record import TrainingRecord
from draft.comparison.results import Comparison, MethodResult, json_text, spread
from draft.comparison.samples import REWARD, MetricSet, evenly, make_metric_set, measure_metrics
from draft.comparison.search import AXIS, find_rate
from draft.comparison.settings import AXES, ComparisonSettings, MeasureSettings, MethodConfig
from draft.comparison.table import markdown
from draft.comparison.training import EvaluationPlan, TrainingInputs, run_training
from draft.diffusion.device import choose_device
from draft.diffusion.families import load_text_to_image
from draft.diffusion.families.problems import require_family_settings
from draft.diffusion.memory import explain_out_of_memory, require_memory
from draft.errors import DraftError
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.rewards import load_rewards
from draft.types import Prompts

_STEPS = 100
"""The progress counter's steps for one training."""


def compare(
    settings: ComparisonSettings,
    methods: Mapping[str, MethodConfig],
    *,
    inputs: TrainingInputs,
    measure: MeasureSettings,
    held_out: Prompts,
    measures: Sequence[Term],
    seed: int,
    folder: Path,
    progress: Progress,
    title: str = "",
    model_name: str = "",
    config_text: str = "",
) -> dict[str, float]:
    """Train with every method under the same budget and measure all of them alike; goes on where it was interrupted.

    Every method first tries its learning rates, each for the same seconds, and takes the one whose samples of training
    prompts score best. With it, it trains once for every seed until all budgets are spent. Where one is, samples of the
    held-out prompts are scored.

    Args:
        settings: Budgets, search, seeds, and what all trainings have in common.
        methods: The methods by label.
        inputs: Model, training prompts, and the rewards with their weights.
        measure: How the held-out prompts are sampled.
        held_out: Prompts that no training sees.
        measures: What is measured besides the rewards; weights play no part.
        seed: Seed of the first image of every measurement.
        folder: Gets `compare.html`, `compare.json`, `compare.md`, `compare.png`, and every training under `search/` and
            `trainings/`.
        progress: The reporter.
        title: The page's heading.
        model_name: What the page calls the model; empty: as `inputs.model`.
        config_text: The configuration, for the page.

    Returns:
        `{"<method>.<axis>": the reward when that budget is spent, mean over seeds}`.

    Raises:
        DraftError: The model, the prompts or a reward cannot be used, or a training cannot begin. One that breaks off
            later is a result, not an error.
    """
    with explain_out_of_memory():
        (curve, start), (final, base) = _measure_base(settings, inputs, measure, held_out, measures, seed)
    progress.say(f"base: reward {base[REWARD]:.4g} on held-out prompts")
    budget = {axis: float(getattr(settings.budget, axis)) for axis in AXES}
    full = EvaluationPlan(
        budget=budget, cap=budget[AXIS] * settings.budget.cap, every=settings.curve.every, curve=curve, final=final
    )
    short = settings.search.share * budget[AXIS]
    search = EvaluationPlan(budget={AXIS: short}, cap=short, every=0, curve=curve, final=curve)
    searches = sum(len(set(one.learning_rates)) for one in methods.values() if len(one.learning_rates) > 1)
    progress.start("compare", _STEPS * (searches + len(methods) * len(settings.seeds)))

    def run(label: str, plan: EvaluationPlan, *, rate: float, seed: int, place: str) -> TrainingRecord:
        counted = 0

        def report(share: float, row: Mapping[str, float]) -> None:
            nonlocal counted
            if (steps := int(share * _STEPS) - counted) > 0:
                progress.advance(steps, {"reward": row["reward"]})
                counted += steps

        try:
            training = run_training(
                methods[label], inputs, plan, rate=rate, seed=seed, folder=folder / place, report=report
            )
        except DraftError as error:
            error.where = error.where or f"method {label!r}"
            raise
        if training.failure:
            progress.say(f"{label} with learning rate {rate:g} and seed {seed} failed: {training.failure}")
        progress.advance(_STEPS - counted)
        return training

    rates, searched = {}, {}
    for label, method in methods.items():
        rates[label], searched[label] = find_rate(
            method.learning_rates,
            lambda rate, label=label: run(
                label, search, rate=rate, seed=settings.search.seed, place=f"search/{label}/{rate:g}"
            ),
        )
        chosen = rates[label]
        progress.say(f"{label}: every learning rate failed" if chosen is None else f"{label}: learning rate {chosen:g}")
    runs: dict[str, list[TrainingRecord]] = {label: [] for label in methods}
    for one in settings.seeds:  # seed by seed, so that a machine that slows down does so for all methods
        for label, rate in rates.items():
            if rate is None:
                progress.advance(_STEPS)
            else:
                runs[label].append(run(label, full, rate=rate, seed=one, place=f"trainings/{label}/{one}"))
    progress.stop()
    comparison = Comparison(
        title=title,
        model=model_name or inputs.model,
        settings=settings,
        weights=final.weights,
        images=len(final.seeded.seeds),
        start=start,
        base=base,
        methods={
            label: MethodResult(config=one, rate=rates[label], tried=searched[label], runs=runs[label])
            for label, one in methods.items()
        },
    )
    (folder / "compare.json").write_text(json_text(comparison, config_text=config_text), encoding="utf-8")
    (folder / "compare.md").write_text(markdown(comparison), encoding="utf-8")
    save_plot(comparison, folder / "compare.png")
    write_page(comparison, folder / "compare.png", folder / "compare.html", config_text=config_text)
    return {
        f"{label}.{axis}": spread(method, axis, REWARD).mean
        for label, method in comparison.methods.items()
        for axis in AXES
    }


def _measure_base(
    settings: ComparisonSettings,
    inputs: TrainingInputs,
    measure: MeasureSettings,
    held_out: Prompts,
    measures: Sequence[Term],
    seed: int,
) -> tuple[tuple[MetricSet, dict[str, float]], tuple[MetricSet, dict[str, float]]]:
    """The metric sets of the curves and of the held-out prompts, each with what the base model scores there."""
    device = choose_device(settings.device)
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    require_memory(inputs.model, settings.device, dtype)
    model = load_text_to_image(inputs.model, device=device, dtype=dtype)
    require_family_settings(model.family, settings.sampler, cfg_gradient=settings.cfg_gradient)
    trained, extra = (
        load_rewards(inputs.terms, device, check_images=True),
        load_rewards(measures, device, check_images=True),
    )
    weights = {term.label: term.weight for term in inputs.terms}
    single = replace(measure, images_per_prompt=1)
    shown = evenly(inputs.prompts, settings.curve.prompts)
    metric_sets = [
        make_metric_set(model, shown, trained, weights=weights, settings=settings, measure=single, seed=seed),
        make_metric_set(
            model, held_out, [*trained, *extra], weights=weights, settings=settings, measure=measure, seed=seed
        ),
    ]
    model.drop_encoders()
    curve, final = ((metric_set, measure_metrics(model, metric_set)) for metric_set in metric_sets)
    return curve, final

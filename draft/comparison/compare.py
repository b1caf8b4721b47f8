"""The whole comparison: a learning rate for every method, trainings with every seed, tables, curves and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from draft.comparison.attempt import Ground, Inspection, attempt
from draft.comparison.page import write_page
from draft.comparison.plot import save_plot
from draft.comparison.record import Attempt
from draft.comparison.results import Comparison, Entrant, as_json, spread
from draft.comparison.samples import REWARD, Panel, evenly, make_panel, measure_panel
from draft.comparison.search import AXIS, find_rate
from draft.comparison.settings import AXES, ComparisonSettings, Contender, MeasureSettings
from draft.comparison.table import markdown
from draft.diffusion.device import choose_device
from draft.diffusion.families import load_text_to_image
from draft.diffusion.memory import check_fits, told_memory
from draft.errors import DraftError
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.measuring import load_metrics
from draft.types import Prompts

_STEPS = 100
"""The progress counter's steps for one training."""


def compare(
    settings: ComparisonSettings,
    contenders: Mapping[str, Contender],
    *,
    ground: Ground,
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
        contenders: The methods by label.
        ground: Model, training prompts, and the rewards with their weights.
        measure: How the held-out prompts are sampled.
        held_out: Prompts that no training sees.
        measures: What is measured besides the rewards; weights play no part.
        seed: Seed of the first image of every measurement.
        folder: Gets `compare.html`, `compare.json`, `compare.md`, `compare.png`, and every training under `search/` and
            `trainings/`.
        progress: Told what happens.
        title: The page's heading.
        model_name: How the page calls the model; empty: as `ground.model`.
        config_text: The configuration, for the page.

    Returns:
        `{"<method>.<axis>": the reward when that budget is spent, mean over seeds}`.

    Raises:
        DraftError: The model, the prompts or a reward cannot be used, or a training cannot begin. One that breaks off
            later is a result, not an error.
    """
    with told_memory():
        (curve, start), (final, base) = _look_at_base(settings, ground, measure, held_out, measures, seed)
    progress.say(f"base: reward {base[REWARD]:.4g} on held-out prompts")
    budget = {axis: float(getattr(settings.budget, axis)) for axis in AXES}
    shown = Inspection(
        budget=budget, cap=budget[AXIS] * settings.budget.cap, every=settings.curve.every, curve=curve, final=final
    )
    short = settings.search.share * budget[AXIS]
    tried = Inspection(budget={AXIS: short}, cap=short, every=0, curve=curve, final=curve)
    searches = sum(len(set(one.learning_rates)) for one in contenders.values() if len(one.learning_rates) > 1)
    progress.start("compare", _STEPS * (searches + len(contenders) * len(settings.seeds)))

    def run(label: str, inspection: Inspection, *, rate: float, seed: int, place: str) -> Attempt:
        counted = 0

        def tell(share: float, row: Mapping[str, float]) -> None:
            nonlocal counted
            if (steps := int(share * _STEPS) - counted) > 0:
                progress.advance(steps, {"reward": row["reward"]})
                counted += steps

        try:
            made = attempt(
                contenders[label], ground, inspection, rate=rate, seed=seed, folder=folder / place, tell=tell
            )
        except DraftError as error:
            error.where = error.where or f"method {label!r}"
            raise
        if made.failure:
            progress.say(f"{label} with learning rate {rate:g} and seed {seed} failed: {made.failure}")
        progress.advance(_STEPS - counted)
        return made

    rates, searched = {}, {}
    for label, contender in contenders.items():
        rates[label], searched[label] = find_rate(
            contender.learning_rates,
            lambda rate, label=label: run(
                label, tried, rate=rate, seed=settings.search.seed, place=f"search/{label}/{rate:g}"
            ),
        )
        chosen = rates[label]
        progress.say(f"{label}: every learning rate failed" if chosen is None else f"{label}: learning rate {chosen:g}")
    attempts: dict[str, list[Attempt]] = {label: [] for label in contenders}
    for one in settings.seeds:  # seed by seed, so that a machine that slows down does so for all methods
        for label, rate in rates.items():
            if rate is None:
                progress.advance(_STEPS)
            else:
                attempts[label].append(run(label, shown, rate=rate, seed=one, place=f"trainings/{label}/{one}"))
    progress.stop()
    found = Comparison(
        title=title,
        model=model_name or ground.model,
        settings=settings,
        weights=final.weights,
        images=len(final.shots.seeds),
        start=start,
        base=base,
        entrants={
            label: Entrant(contender=one, rate=rates[label], tried=searched[label], attempts=attempts[label])
            for label, one in contenders.items()
        },
    )
    (folder / "compare.json").write_text(as_json(found, config_text=config_text), encoding="utf-8")
    (folder / "compare.md").write_text(markdown(found), encoding="utf-8")
    save_plot(found, folder / "compare.png")
    write_page(found, folder / "compare.png", folder / "compare.html", config_text=config_text)
    return {
        f"{label}.{axis}": spread(entrant, axis, REWARD).mean
        for label, entrant in found.entrants.items()
        for axis in AXES
    }


def _look_at_base(
    settings: ComparisonSettings,
    ground: Ground,
    measure: MeasureSettings,
    held_out: Prompts,
    measures: Sequence[Term],
    seed: int,
) -> tuple[tuple[Panel, dict[str, float]], tuple[Panel, dict[str, float]]]:
    """The panels of the curves and of the held-out prompts, each with what the base model scores there."""
    device = choose_device(settings.device)
    check_fits(ground.model, settings.device)
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    model = load_text_to_image(ground.model, device=device, dtype=dtype)
    trained, others = load_metrics(ground.terms, device), load_metrics(measures, device)
    weights = {term.label: term.weight for term in ground.terms}
    single = replace(measure, images_per_prompt=1)
    shown = evenly(ground.prompts, settings.curve.prompts)
    panels = [
        make_panel(model, shown, trained, weights=weights, settings=settings, measure=single, seed=seed),
        make_panel(
            model, held_out, [*trained, *others], weights=weights, settings=settings, measure=measure, seed=seed
        ),
    ]
    curve, final = ((panel, measure_panel(model, panel)) for panel in panels)
    return curve, final

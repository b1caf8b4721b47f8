"""Base against adapters on the same prompts and seeds, measured by every reward, shown on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from draft.diffusion.control.schedules import AdapterSchedule
from draft.errors import ConfigError
from draft.evaluation.arms import BASE, draw, keep_pictures, load_arms, plan_shots, switch
from draft.evaluation.generate import safe_name
from draft.evaluation.page import write_page
from draft.evaluation.results import Results, as_csv, as_json, compare
from draft.evaluation.settings import EvaluateSettings
from draft.evaluation.stamp import write_stamped
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.measuring import load_metrics, score_all
from draft.types import Prompts


def evaluate(
    settings: EvaluateSettings,
    *,
    model: str,
    adapters: Mapping[str, tuple[Path, float]],
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    folder: Path,
    progress: Progress,
    schedules: Mapping[str, AdapterSchedule] | None = None,
    curves: Mapping[str, Path] | None = None,
    title: str = "",
    model_name: str = "",
    config_text: str = "",
) -> dict[str, float]:
    """Compare adapters with the base model and write the images, the numbers and the page.

    Args:
        settings: Sampler, seeds per prompt, resamples, device.
        model: Folder, hub id or single file.
        adapters: Adapter file and weight by label; the base model is always there too, as `base`.
        prompts: Held-out prompts.
        terms: What is measured; rewards without a gradient are metrics like the others, weights play no part.
        seed: The first image's seed, and that of the bootstrap.
        folder: Receives `report.html`, `report.json`, `scores.csv`, `images/<arm>/0000.png ...` and, of every adapter,
            a copy with its figures in the header, `adapters/<label>.safetensors`.
        progress: The reporter.
        schedules: In which steps an adapter takes part, by label; those that are not there: in all.
        curves: `metrics.jsonl` of trainings by label, for the page.
        title: The page's heading.
        model_name: How the page calls the model; empty: as `model`.
        config_text: The pipeline's configuration, for the page.

    Returns:
        `{"<arm>.<label>": mean, "<arm>.<label>.gain": gain over the base}`.

    Raises:
        DraftError: The model, an adapter, the prompts or a reward cannot be used.
    """
    if not terms:
        raise ConfigError("nothing to measure (got 0 rewards)", hint="name at least one reward")
    shots = plan_shots(prompts, images_per_prompt=settings.images_per_prompt, seed=seed)
    pipeline = load_arms(model, adapters, settings, progress)
    metrics = load_metrics(terms, pipeline.device)
    arms, schedules = [BASE, *adapters], schedules or {}
    pictures: dict[str, list[Path]] = {arm: [] for arm in arms}
    scores: dict[str, dict[str, list[float]]] = {}
    progress.start("evaluate", len(arms) * len(shots.seeds))
    for arm in arms:
        switch(pipeline, arm, adapters)
        target = folder / "images" / safe_name(arm)
        drawn = keep_pictures(draw(pipeline, shots, settings, schedules.get(arm)), target, pictures[arm], progress)
        scores[arm] = score_all(metrics, drawn, shots.prompts)
    progress.stop()

    results = Results(
        title=title,
        model=model_name or model,
        weights={label: weight for label, (_, weight) in adapters.items()},
        schedules={label: each for label, each in schedules.items() if each.kind != "constant"},
        prompts=tuple(shots.prompts),
        seeds=shots.seeds,
        groups=shots.groups,
        cells=compare(scores, shots.groups, samples=settings.bootstrap_samples, seed=seed),
        settings=settings,
        descriptions={term.label: _first_line(term) for term in terms},
    )
    (folder / "report.json").write_text(as_json(results, config_text=config_text), encoding="utf-8")
    (folder / "scores.csv").write_text(as_csv(results), encoding="utf-8")
    write_stamped(results, adapters, terms, folder / "adapters")
    write_page(results, pictures, folder / "report.html", curves=curves or {}, config_text=config_text)
    return _figures(results)


def _first_line(term: Term) -> str:
    return (type(term.reward).__doc__ or "").strip().partition("\n")[0]


def _figures(results: Results) -> dict[str, float]:
    figures: dict[str, float] = {}
    for arm, by_label in results.cells.items():
        for label, cell in by_label.items():
            figures[f"{arm}.{label}"] = cell.mean.mean
            if cell.gain is not None:
                figures[f"{arm}.{label}.gain"] = cell.gain.mean
    return figures

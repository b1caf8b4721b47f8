"""Base against adapters on the same prompts and seeds, measured by every reward, shown on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from draft.diffusion.control.schedules import AdapterSchedule
from draft.errors import ConfigError
from draft.evaluation.page import write_page
from draft.evaluation.results import Results, compare, csv_text, json_text
from draft.evaluation.settings import EvaluateSettings
from draft.evaluation.stamp import write_stamped
from draft.evaluation.variants import BASE, draw, keep_pictures, load_variants, seed_prompts
from draft.files import safe_name
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.prompt_use import warn_of_cut_prompts
from draft.scoring.rewards import load_rewards, score_batches
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
        folder: Receives `report.html`, `report.json`, `scores.csv`, `images/<variant>/0000.png ...` and, of every
            adapter, a copy with its figures in the header, `adapters/<label>.safetensors`.
        progress: The reporter.
        schedules: In which steps an adapter takes part, by label; those that are not there: in all.
        curves: `metrics.jsonl` of trainings by label, for the page.
        title: The page's heading.
        model_name: What the page calls the model; empty: as `model`.
        config_text: The pipeline's configuration, for the page.

    Returns:
        `{"<variant>.<label>": mean, "<variant>.<label>.gain": gain over the base}`.

    Raises:
        DraftError: The model, an adapter, the prompts or a reward cannot be used.
    """
    if not terms:
        raise ConfigError("nothing to measure (got 0 rewards)", hint="name at least one reward")
    seeded = seed_prompts(prompts, images_per_prompt=settings.images_per_prompt, seed=seed)
    files = {label: file for label, (file, _) in adapters.items()}
    weights = {label: weight for label, (_, weight) in adapters.items()}
    blends = [{}, *({label: weight} for label, weight in weights.items())]
    loaded = load_variants(model, files, blends, list(prompts), settings, progress)
    rewards = load_rewards(terms, loaded.model.device, check_images=True)
    warn_of_cut_prompts(rewards, prompts)
    variants, schedules = [BASE, *adapters], schedules or {}
    pictures: dict[str, list[Path]] = {variant: [] for variant in variants}
    scores: dict[str, dict[str, list[float]]] = {}
    progress.start("evaluate", len(variants) * len(seeded.seeds))
    for number, variant in enumerate(variants):
        target = folder / "images" / safe_name(variant)
        images = draw(loaded, number, seeded, settings, schedules.get(variant))
        drawn = keep_pictures(images, target, pictures[variant], progress)
        scores[variant] = score_batches(rewards, drawn, seeded.prompts)
    progress.stop()

    results = Results(
        title=title,
        model=model_name or model,
        weights=weights,
        schedules={label: one for label, one in schedules.items() if one.kind != "constant"},
        prompts=tuple(seeded.prompts),
        seeds=seeded.seeds,
        groups=seeded.groups,
        cells=compare(scores, seeded.groups, samples=settings.bootstrap_samples, seed=seed),
        settings=settings,
        descriptions={reward.label: reward.summary for reward in rewards},
    )
    (folder / "report.json").write_text(json_text(results, config_text=config_text), encoding="utf-8")
    (folder / "scores.csv").write_text(csv_text(results), encoding="utf-8")
    write_stamped(results, adapters, terms, folder / "adapters")
    write_page(results, pictures, folder / "report.html", curves=curves or {}, config_text=config_text)
    return _figures(results)


def _figures(results: Results) -> dict[str, float]:
    figures: dict[str, float] = {}
    for variant, by_label in results.cells.items():
        for label, cell in by_label.items():
            figures[f"{variant}.{label}"] = cell.mean.mean
            if cell.gain is not None:
                figures[f"{variant}.{label}.gain"] = cell.gain.mean
    return figures

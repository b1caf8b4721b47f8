"""One or two adapters over their scales: the images, the scores, the strip, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from draft.evaluation.variants import PromptSeeds, draw, keep_pictures, load_variants
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.rewards import load_rewards, score_batches
from draft.strips.page import write_page
from draft.strips.results import Strip, cells_of, csv_text, highest, json_text
from draft.strips.settings import StripSettings
from draft.strips.sheet import draw_sheet
from draft.types import Prompts


def draw_strip(
    settings: StripSettings,
    *,
    model: str,
    adapters: Mapping[str, Path],
    prompts: Prompts,
    terms: Sequence[Term],
    folder: Path,
    progress: Progress,
    title: str = "",
    model_name: str = "",
    config_text: str = "",
) -> dict[str, float]:
    """Draw every prompt with each seed at each scale, dW = scale B A, or at each pair of scales of two adapters.

    The images of a row begin with the same noise. A scale of 0 is the base model, bit for bit.

    Args:
        settings: Scales, seeds, sampler, device.
        model: Folder, hub id or single file.
        adapters: Adapter file by label, one or two.
        prompts: What to draw.
        terms: What is measured, perhaps nothing; weights play no part.
        folder: Receives `strip.png`, `strip.html`, `strip.json`, `strip.csv` and `images/<scale>/0000.png ...`, of two
            adapters `images/<scale>_<scale>/...`.
        progress: The reporter.
        title: The page's heading.
        model_name: What the page calls the model; empty: as `model`.
        config_text: The pipeline's configuration, for the page.

    Returns:
        `images`, and for each reward `<label>.highest_at`, the first adapter's scale in the cell with its highest mean.

    Raises:
        DraftError: The model, an adapter, the prompts or a reward cannot be used.
    """
    groups = tuple(index for index in range(len(prompts)) for _ in settings.seeds)
    seeded = PromptSeeds(prompts.take(groups), settings.seeds * len(prompts), groups)
    cells = cells_of(settings, len(adapters))
    blends = [dict(zip(adapters, cell, strict=True)) for cell in cells]
    loaded = load_variants(model, adapters, blends, list(prompts), settings, progress)
    rewards = load_rewards(terms, loaded.model.device, check_images=True)
    pictures: list[list[Path]] = [[] for _ in cells]
    scores: dict[str, list[tuple[float, ...]]] = {term.label: [] for term in terms}
    progress.start("strip", len(cells) * len(seeded.seeds))
    for number, (cell, files) in enumerate(zip(cells, pictures, strict=True)):
        target = folder / "images" / "_".join(f"{scale:g}" for scale in cell)
        drawn = keep_pictures(draw(loaded, number, seeded, settings), target, files, progress)
        for label, values in score_batches(rewards, drawn, seeded.prompts).items():
            scores[label].append(tuple(values))
    progress.stop()
    strip = Strip(
        title=title,
        model=model_name or model,
        labels=tuple(adapters),
        cells=cells,
        prompts=tuple(seeded.prompts),
        seeds=seeded.seeds,
        scores={label: tuple(values) for label, values in scores.items()},
        descriptions={reward.label: reward.summary for reward in rewards},
        settings=settings,
    )
    (folder / "strip.json").write_text(json_text(strip, config_text=config_text), encoding="utf-8")
    (folder / "strip.csv").write_text(csv_text(strip), encoding="utf-8")
    draw_sheet(strip, pictures).save(folder / "strip.png")
    write_page(strip, pictures, folder / "strip.html", config_text=config_text)
    best = {label: where for label in scores if (where := highest(strip, label))}
    return {"images": float(len(cells) * len(seeded.seeds))} | {
        f"{label}.highest_at": cells[cell][0] for label, (cell, _) in best.items()
    }

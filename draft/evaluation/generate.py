"""Pictures from prompts and fixed seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from draft.diffusion.control.schedules import AdapterSchedule
from draft.evaluation.settings import GenerateSettings
from draft.evaluation.variants import BASE, draw, load_variants, seed_prompts
from draft.progress import Progress
from draft.report.pictures import contact_sheet, save_pictures, to_picture
from draft.types import Prompts


def generate(
    settings: GenerateSettings,
    *,
    model: str,
    adapters: Mapping[str, tuple[Path, float]],
    prompts: Prompts,
    seed: int,
    folder: Path,
    progress: Progress,
    schedules: Mapping[str, AdapterSchedule] | None = None,
) -> dict[str, float]:
    """Draw every prompt with each seed, by the base model or, if adapters are given, by each of them.

    Args:
        settings: Sampler, seeds per prompt, device.
        model: Folder, hub id or single file.
        adapters: Adapter file and weight by label; empty: the base model.
        prompts: What to draw.
        seed: The first image's seed; image i has `seed + i`.
        folder: Receives `images/<variant>/0000.png ...`, `images/grid.png` and `images/images.jsonl`.
        progress: The reporter.
        schedules: In which steps an adapter takes part, by label; those that are not there: in all.

    Returns:
        `{"images": N}`.

    Raises:
        DraftError: The model, an adapter or the prompts cannot be used.
    """
    seeded = seed_prompts(prompts, images_per_prompt=settings.images_per_prompt, seed=seed)
    files = {label: path for label, (path, _) in adapters.items()}
    blends: list[dict[str, float]] = [{label: weight} for label, (_, weight) in adapters.items()] or [{}]
    loaded = load_variants(model, files, blends, list(prompts), settings, progress)
    variants = list(adapters) or [BASE]
    target = folder / "images"
    rows: list[list[Image.Image]] = []
    lines: list[str] = []
    progress.start("generate", len(variants) * len(seeded.seeds))
    for number, variant in enumerate(variants):
        pictures: list[Image.Image] = []
        for batch, images in draw(loaded, number, seeded, settings, (schedules or {}).get(variant)):
            start = len(pictures)
            pictures += [to_picture(image) for image in images]
            files = save_pictures(pictures[start:], target / safe_name(variant), start=start)
            for i, file in enumerate(files):
                entry = {"file": file.relative_to(target).as_posix(), "arm": variant, "prompt": batch[i]}
                lines.append(json.dumps({**entry, "seed": seeded.seeds[start + i]}, ensure_ascii=False))
            progress.advance(len(images))
        rows.append(pictures)
    progress.stop()
    (target / "images.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    contact_sheet(rows).save(target / "grid.png")
    return {"images": float(len(lines))}


def safe_name(label: str) -> str:
    """A label as a folder name: other characters than letters, digits, `.`, `-`, `_` become `_`.

    Args:
        label: Any label.

    Returns:
        A name that every file system takes.
    """
    return re.sub(r"[^\w.-]", "_", label).strip(".") or "_"

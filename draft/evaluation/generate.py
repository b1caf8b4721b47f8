"""Pictures from prompts and fixed seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from draft.diffusion.control.schedules import AdapterSchedule
from draft.evaluation.arms import BASE, draw, load_arms, plan_shots, save_pictures, switch, to_picture
from draft.evaluation.settings import GenerateSettings
from draft.progress import Progress
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
        folder: Receives `images/<arm>/0000.png ...`, `images/grid.png` and `images/images.jsonl`.
        progress: The reporter.
        schedules: In which steps an adapter takes part, by label; those that are not there: in all.

    Returns:
        `{"images": N}`.

    Raises:
        DraftError: The model, an adapter or the prompts cannot be used.
    """
    shots = plan_shots(prompts, images_per_prompt=settings.images_per_prompt, seed=seed)
    pipeline = load_arms(model, adapters, settings, progress)
    arms = list(adapters) or [BASE]
    target = folder / "images"
    rows: list[list[Image.Image]] = []
    lines: list[str] = []
    progress.start("generate", len(arms) * len(shots.seeds))
    for arm in arms:
        switch(pipeline, arm, adapters)
        pictures: list[Image.Image] = []
        for batch, images in draw(pipeline, shots, settings, (schedules or {}).get(arm)):
            start = len(pictures)
            pictures += [to_picture(image) for image in images]
            files = save_pictures(pictures[start:], target / safe_name(arm), start=start)
            for i, file in enumerate(files):
                entry = {"file": file.relative_to(target).as_posix(), "arm": arm, "prompt": batch[i]}
                lines.append(json.dumps({**entry, "seed": shots.seeds[start + i]}, ensure_ascii=False))
            progress.advance(len(images))
        rows.append(pictures)
    progress.stop()
    (target / "images.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    grid(rows).save(target / "grid.png")
    return {"images": float(len(lines))}


def grid(rows: Sequence[Sequence[Image.Image]], *, gap: int = 4, widest: int = 16) -> Image.Image:
    """Lay pictures out: one row per arm, or, where there is one arm alone, a block as square as it goes.

    Args:
        rows: Pictures of one size, one list per arm.
        gap: White pixels between and around them.
        widest: Most pictures in a row; longer ones wrap.

    Returns:
        The grid.
    """
    if len(rows) == 1:
        widest = min(widest, max(1, round(len(rows[0]) ** 0.5 + 0.499)))
    lines = [row[i : i + widest] for row in rows for i in range(0, len(row), widest)]
    width, height = lines[0][0].size
    columns = max(len(line) for line in lines)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + len(lines) * (height + gap)), "white")
    for y, line in enumerate(lines):
        for x, picture in enumerate(line):
            sheet.paste(picture, (gap + x * (width + gap), gap + y * (height + gap)))
    return sheet


def safe_name(label: str) -> str:
    """A label as a folder name: other characters than letters, digits, `.`, `-`, `_` become `_`.

    Args:
        label: Any label.

    Returns:
        A name that every file system takes.
    """
    return re.sub(r"[^\w.-]", "_", label).strip(".") or "_"

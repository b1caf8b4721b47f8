"""Pictures from prompts and fixed seeds by a method that raises a reward, beside those without it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from draft.diffusion.control.schedules import AdapterSchedule, Constant
from draft.diffusion.control.values import SamplingMethod
from draft.diffusion.schedule import make_grid
from draft.evaluation.generate import safe_name
from draft.evaluation.settings import GenerateSettings
from draft.evaluation.variants import BASE, PromptSeeds, load_variants, seed_prompts
from draft.generation.cost import Cost
from draft.generation.methods import SamplingContext, draw_plain, draw_with, texts_of
from draft.progress import Progress
from draft.report.pictures import contact_sheet, save_pictures, to_picture
from draft.rewards.reward import Term
from draft.scoring.backward import Scorer
from draft.scoring.guards import check_terms
from draft.scoring.rewards import finite_mean, load_rewards, numbers
from draft.types import Prompts

REWARD = "reward"
"""The weighted sum of all rewards, among the scores of an image."""


@dataclass
class Record:
    """The images drawn so far, and their scores.

    Args:
        images: One entry per image: file, variant, prompt, seed.
        rewards: One entry per image: the file, scores before and after, cost, details.
        rows: Pictures, a variant's plain ones and then those of the method.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    rewards: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[Image.Image]] = field(default_factory=list)


def generate_by_reward(
    settings: GenerateSettings,
    *,
    method: SamplingMethod,
    model: str,
    adapters: Mapping[str, tuple[Path, float]],
    prompts: Prompts,
    terms: Sequence[Term],
    seed: int,
    folder: Path,
    progress: Progress,
    schedules: Mapping[str, AdapterSchedule] | None = None,
) -> dict[str, float]:
    """Draw every prompt with each seed by a method, with the base model or, if adapters are given, with each of them.

    Each image is drawn without the method too, from the same noise; that is for comparison and no part of the cost.

    Args:
        settings: Sampler, seeds per prompt, device.
        method: The method.
        model: Folder, hub id or single file.
        adapters: Adapter file and weight by label; empty: the base model.
        prompts: What to draw.
        terms: What is raised; those of weight 0 are measured only.
        seed: The first image's seed; image i has `seed + i`.
        folder: Receives `images/<variant>/0000.png ...`, `images/grid.png` (of each variant the plain
            pictures, and below them those of the method), `images/images.jsonl` and `images/rewards.jsonl`.
        progress: The reporter.
        schedules: In which steps an adapter takes part, by label; those that are not there: in all.

    Returns:
        `{"images": N, "<variant>.<label>": mean, "<variant>.<label>.gain": gain over plain sampling,
        "network_calls": ...}`;
        the weighted sum has the label `reward`, and costs are per image.

    Raises:
        DraftError: The model, an adapter, the prompts or a reward cannot be used.
    """
    check_terms(terms, gradient=method.reward_gradient)
    seeded = seed_prompts(prompts, images_per_prompt=settings.images_per_prompt, seed=seed)
    files = {label: path for label, (path, _) in adapters.items()}
    blends: list[dict[str, float]] = [{label: weight} for label, (_, weight) in adapters.items()] or [{}]
    loaded = load_variants(model, files, blends, texts_of(method, prompts), settings, progress)
    drawer, size = loaded.model, loaded.size
    scorer = Scorer(drawer.decode, load_rewards(terms, drawer.device), method.micro_batch_size)
    variants = list(adapters) or [BASE]
    record, target = Record(), folder / "images"
    progress.start("generate", len(variants) * len(seeded.seeds))
    for number, variant in enumerate(variants):
        context = SamplingContext(
            model=drawer,
            scorer=scorer,
            grid=make_grid(drawer.schedule(size, settings.sampler.num_inference_steps), settings.sampler),
            sampler=settings.sampler,
            schedule=(schedules or {}).get(variant, Constant()),
            embedded=loaded.switch(number),
            size=size,
        )
        _draw_variant(variant, method, context, seeded, settings.batch_size, target, record, progress)
    progress.stop()
    for name, entries in (("images", record.images), ("rewards", record.rewards)):
        lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
        (target / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    contact_sheet(record.rows).save(target / "grid.png")
    return _figures(record, variants)


def _draw_variant(
    variant: str,
    method: SamplingMethod,
    context: SamplingContext,
    seeded: PromptSeeds,
    batch_size: int,
    target: Path,
    record: Record,
    progress: Progress,
) -> None:
    plain: list[Image.Image] = []
    pictures: list[Image.Image] = []
    for start in range(0, len(seeded.seeds), batch_size):
        chosen = slice(start, start + batch_size)
        prompts, seeds = seeded.prompts[chosen], seeded.seeds[chosen]
        before, old = _look(context, draw_plain(context, prompts, seeds), prompts)
        drawn = draw_with(method, context, prompts, seeds)
        after, new = _look(context, drawn.latents, prompts)
        plain += old
        pictures += new
        files = save_pictures(new, target / safe_name(variant), start=start)
        share = {name: value / len(seeds) for name, value in asdict(drawn.cost).items()}
        for i, file in enumerate(files):
            name = {"file": file.relative_to(target).as_posix(), "arm": variant}
            record.images.append({**name, "prompt": prompts[i], "seed": seeds[i]})
            record.rewards.append({**name, "before": before[i], "after": after[i], "cost": share, **drawn.details[i]})
        gain = [a[REWARD] - b[REWARD] for a, b in zip(after, before, strict=True)]
        progress.advance(len(seeds), {"gain": float(np.mean(gain))})
    record.rows += [plain, pictures]


def _look(
    context: SamplingContext, latents: Tensor, prompts: Prompts
) -> tuple[list[dict[str, float]], list[Image.Image]]:
    """Every image's scores by label, with their weighted sum, and its picture."""
    with torch.no_grad():
        images = context.model.decode(latents).float()
    rewards = context.scorer.rewards
    scored = []
    for values in zip(*(numbers(reward.scores(images, prompts)) for reward in rewards), strict=True):
        by_label = {reward.label: value for reward, value in zip(rewards, values, strict=True)}
        total = sum(reward.term.weight * by_label[reward.label] for reward in rewards if reward.term.weight)
        scored.append({REWARD: total, **by_label})
    return scored, [to_picture(image) for image in images]


def _figures(record: Record, variants: Sequence[str]) -> dict[str, float]:
    figures = {"images": float(len(record.images))}
    for variant in variants:
        entries = [entry for entry in record.rewards if entry["arm"] == variant]
        for label in entries[0]["after"]:
            after = [entry["after"][label] for entry in entries]
            gains = [entry["after"][label] - entry["before"][label] for entry in entries]
            figures[f"{variant}.{label}"], figures[f"{variant}.{label}.gain"] = finite_mean(after), finite_mean(gains)
    for name in asdict(Cost()):
        figures[name] = finite_mean([entry["cost"][name] for entry in record.rewards])
    return figures

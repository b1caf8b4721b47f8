"""Pictures from prompts and fixed seeds, with or without a method that raises rewards while sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from draft.diffusion.control.schedules import AdapterSchedule, Constant
from draft.diffusion.control.values import SamplingMethod
from draft.diffusion.schedule import make_grid
from draft.evaluation.settings import GenerateSettings
from draft.evaluation.variants import BASE, PromptSeeds, load_variants, seed_prompts
from draft.files import safe_name
from draft.generation.cost import Cost
from draft.generation.methods import SamplingContext, draw_plain, draw_with, texts_of
from draft.progress import Progress
from draft.report.pictures import contact_sheet, save_pictures, to_picture
from draft.rewards.reward import Term
from draft.scoring.backward import Scorer
from draft.scoring.guards import check_terms
from draft.scoring.rewards import finite_mean, load_rewards, numbers
from draft.training.broken import saving_images
from draft.types import Prompts

REWARD = "reward"
"""The weighted sum of all rewards, among the scores of an image."""


@dataclass
class Record:
    """The images drawn so far, and their scores.

    Args:
        images: One entry per image: file, variant, prompt, seed.
        rewards: With a method, one entry per image: the file, scores before and after, cost, details.
        rows: Rows of pictures: each variant's plain ones, and with a method below them the method's.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    rewards: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[Image.Image]] = field(default_factory=list)


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
    method: SamplingMethod | None = None,
    terms: Sequence[Term] = (),
) -> dict[str, float]:
    """Draw every prompt with each seed, with the base model or, if adapters are given, with each of them.

    By a method, each image is drawn without it too, from the same noise; that is for comparison and no part of the
    cost.

    Args:
        settings: Sampler, seeds per prompt, device.
        model: Folder, hub id or single file.
        adapters: Adapter file and weight by label; empty: the base model.
        prompts: What to draw.
        seed: The first image's seed; image i has `seed + i`.
        folder: Receives `images/<variant>/0000.png ...`, `images/grid.png` and `images/images.jsonl`, and with a method
            `images/rewards.jsonl`; the grid then has the plain pictures above those of the method.
        progress: The reporter.
        schedules: In which steps an adapter takes part, by label; those that are not there: in all.
        method: How rewards are raised while sampling; None: images as the model makes them.
        terms: What the method raises; those of weight 0 are measured only.

    Returns:
        `{"images": N}`, with a method also `"<variant>.<label>": mean`, `"<variant>.<label>.gain": gain over plain
        sampling` and the mean costs per image (`"network_calls": ...`); the weighted sum has the label `reward`.

    Raises:
        DraftError: The model, an adapter, the prompts or a reward cannot be used.
    """
    if method is not None:
        check_terms(terms, gradient=method.reward_gradient)
    seeded = seed_prompts(prompts, images_per_prompt=settings.images_per_prompt, seed=seed)
    paths = {label: path for label, (path, _) in adapters.items()}
    blends: list[dict[str, float]] = [{label: weight} for label, (_, weight) in adapters.items()] or [{}]
    loaded = load_variants(model, paths, blends, texts_of(method, prompts), settings, progress)
    rewards = [] if method is None else load_rewards(terms, loaded.model.device)
    scorer = Scorer(loaded.model.decode, rewards, 0 if method is None else method.micro_batch_size)
    schedule, size = loaded.model.schedule(loaded.size, settings.sampler.num_inference_steps), loaded.size
    variants = list(adapters) or [BASE]
    record, target = Record(), folder / "images"
    progress.start("generate", len(variants) * len(seeded.seeds))
    for number, variant in enumerate(variants):
        context = SamplingContext(
            model=loaded.model,
            scorer=scorer,
            grid=make_grid(schedule, settings.sampler),
            sampler=settings.sampler,
            schedule=(schedules or {}).get(variant, Constant()),
            embedded=loaded.switch(number),
            size=size,
        )
        with saving_images(folder):
            _draw_variant(variant, method, context, seeded, settings.batch_size, target, record, progress)
    progress.stop()
    _write_lines(target / "images.jsonl", record.images)
    if method is not None:
        _write_lines(target / "rewards.jsonl", record.rewards)
    contact_sheet(record.rows).save(target / "grid.png")
    figures = {} if method is None else _figures(record, variants)
    return {"images": float(len(record.images)), **figures}


def _write_lines(file: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw_variant(
    variant: str,
    method: SamplingMethod | None,
    context: SamplingContext,
    seeded: PromptSeeds,
    batch_size: int,
    target: Path,
    record: Record,
    progress: Progress,
) -> None:
    plain: list[Image.Image] = []
    raised: list[Image.Image] = []
    for start in range(0, len(seeded.seeds), batch_size):
        chosen = slice(start, start + batch_size)
        prompts, seeds = seeded.prompts[chosen], seeded.seeds[chosen]
        before, pictures = _look(context, draw_plain(context, prompts, seeds), prompts)
        plain += pictures
        entries = []
        if method is not None:
            drawn = draw_with(method, context, prompts, seeds)
            after, pictures = _look(context, drawn.latents, prompts)
            raised += pictures
            share = {name: value / len(seeds) for name, value in asdict(drawn.cost).items()}
            entries = [
                {"before": before[i], "after": after[i], "cost": share, **drawn.details[i]} for i in range(len(seeds))
            ]
        files = save_pictures(pictures, target / safe_name(variant), start=start)
        names = [{"file": file.relative_to(target).as_posix(), "arm": variant} for file in files]
        record.images += [{**name, "prompt": prompts[i], "seed": seeds[i]} for i, name in enumerate(names)]
        record.rewards += [{**names[i], **entry} for i, entry in enumerate(entries)]
        progress.advance(len(seeds), {"gain": _gain(record.rewards, REWARD)} if record.rewards else None)
    record.rows += [plain] if method is None else [plain, raised]


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


def _gain(entries: Sequence[Mapping[str, Any]], label: str) -> float:
    """Mean gain of a score over plain sampling, of the images that have one."""
    return finite_mean([entry["after"][label] - entry["before"][label] for entry in entries])


def _figures(record: Record, variants: Sequence[str]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for variant in variants:
        entries = [entry for entry in record.rewards if entry["arm"] == variant]
        for label in entries[0]["after"]:
            figures[f"{variant}.{label}"] = finite_mean([entry["after"][label] for entry in entries])
            figures[f"{variant}.{label}.gain"] = _gain(entries, label)
    for name in asdict(Cost()):
        figures[name] = finite_mean([entry["cost"][name] for entry in record.rewards])
    return figures

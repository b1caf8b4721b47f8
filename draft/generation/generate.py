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
from draft.diffusion.device import choose_device
from draft.diffusion.families import TextToImage
from draft.diffusion.schedule import make_grid
from draft.evaluation.arms import BASE, Shots, load_arms, plan_shots, save_pictures, switch, to_picture
from draft.evaluation.generate import grid, safe_name
from draft.evaluation.settings import GenerateSettings
from draft.generation.cost import Cost
from draft.generation.methods import Studio, draw_plain, draw_with
from draft.progress import Progress
from draft.rewards.reward import Term
from draft.scoring.backward import Loaded, Scorer
from draft.scoring.guards import check_scores, check_terms
from draft.types import Prompts, size_of

REWARD = "reward"
"""The weighted sum of all rewards, among the scores of an image."""


@dataclass
class Record:
    """What is known of the images drawn so far.

    Args:
        images: One entry per image: file, arm, prompt, seed.
        rewards: One entry per image: the file, scores before and after, cost, details.
        rows: Pictures, an arm's plain ones and then those of the method.
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
        folder: Receives `images/<arm>/0000.png ...`, `images/grid.png` (of each arm the plain pictures, and below those
            of the method), `images/images.jsonl` and `images/rewards.jsonl`.
        progress: The reporter.
        schedules: In which steps an adapter takes part, by label; those that are not there: in all.

    Returns:
        `{"images": N, "<arm>.<label>": mean, "<arm>.<label>.gain": gain over plain sampling, "network_calls": ...}`;
        the weighted sum has the label `reward`, and costs are per image.

    Raises:
        DraftError: The model, an adapter, the prompts or a reward cannot be used.
    """
    check_terms(terms, gradient=method.reward_gradient)
    shots = plan_shots(prompts, images_per_prompt=settings.images_per_prompt, seed=seed)
    pipeline = load_arms(model, adapters, settings, progress)
    scorer = Scorer(pipeline.decode, _load(terms, pipeline), method.micro_batch_size)
    arms = list(adapters) or [BASE]
    record, target = Record(), folder / "images"
    size = size_of(settings.resolution, pipeline.default_size)
    progress.start("generate", len(arms) * len(shots.seeds))
    for arm in arms:
        switch(pipeline, arm, adapters)
        studio = Studio(
            model=pipeline,
            scorer=scorer,
            grid=make_grid(pipeline.schedule(size, settings.sampler.num_inference_steps), settings.sampler),
            sampler=settings.sampler,
            schedule=(schedules or {}).get(arm, Constant()),
            unconditional=pipeline.unconditional(settings.sampler.negative_prompt, size),
            size=size,
        )
        _draw_arm(arm, method, studio, shots, settings.batch_size, target, record, progress)
    progress.stop()
    for name, entries in (("images", record.images), ("rewards", record.rewards)):
        lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
        (target / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    grid(record.rows).save(target / "grid.png")
    return _figures(record, arms)


def _draw_arm(
    arm: str,
    method: SamplingMethod,
    studio: Studio,
    shots: Shots,
    batch_size: int,
    target: Path,
    record: Record,
    progress: Progress,
) -> None:
    plain: list[Image.Image] = []
    pictures: list[Image.Image] = []
    for start in range(0, len(shots.seeds), batch_size):
        chosen = slice(start, start + batch_size)
        prompts, seeds = shots.prompts[chosen], shots.seeds[chosen]
        before, old = _look(studio, draw_plain(studio, prompts, seeds), prompts)
        drawn = draw_with(method, studio, prompts, seeds)
        after, new = _look(studio, drawn.latents, prompts)
        plain += old
        pictures += new
        files = save_pictures(new, target / safe_name(arm), start=start)
        share = {name: value / len(seeds) for name, value in asdict(drawn.cost).items()}
        for i, file in enumerate(files):
            name = {"file": file.relative_to(target).as_posix(), "arm": arm}
            record.images.append({**name, "prompt": prompts[i], "seed": seeds[i]})
            record.rewards.append({**name, "before": before[i], "after": after[i], "cost": share, **drawn.details[i]})
        gain = [a[REWARD] - b[REWARD] for a, b in zip(after, before, strict=True)]
        progress.advance(len(seeds), {"gain": float(np.mean(gain))})
    record.rows += [plain, pictures]


def _load(terms: Sequence[Term], model: TextToImage) -> list[Loaded]:
    places = [choose_device(term.device) if term.device else model.device for term in terms]
    return [Loaded(term, term.reward.load(place), place) for term, place in zip(terms, places, strict=True)]


def _look(studio: Studio, latents: Tensor, prompts: Prompts) -> tuple[list[dict[str, float]], list[Image.Image]]:
    """Every image's scores by label, with their weighted sum, and its picture."""
    with torch.no_grad():
        images = studio.model.decode(latents).float()
        scores = [
            check_scores(each.term.label, each.score(images.to(each.device), prompts), len(prompts), gradient=False)
            .double()
            .tolist()
            for each in studio.scorer.terms
        ]
    terms = [each.term for each in studio.scorer.terms]
    found = []
    for values in zip(*scores, strict=True):
        total = sum(term.weight * value for term, value in zip(terms, values, strict=True) if term.weight)
        found.append({REWARD: total, **{term.label: value for term, value in zip(terms, values, strict=True)}})
    return found, [to_picture(image) for image in images]


def _figures(record: Record, arms: Sequence[str]) -> dict[str, float]:
    figures = {"images": float(len(record.images))}
    for arm in arms:
        entries = [entry for entry in record.rewards if entry["arm"] == arm]
        for label in entries[0]["after"]:
            after = [entry["after"][label] for entry in entries]
            gains = [entry["after"][label] - entry["before"][label] for entry in entries]
            figures[f"{arm}.{label}"], figures[f"{arm}.{label}.gain"] = _mean(after), _mean(gains)
    for name in asdict(Cost()):
        figures[name] = _mean([entry["cost"][name] for entry in record.rewards])
    return figures


def _mean(values: Sequence[float]) -> float:
    """The mean of those that are numbers; a reward that is measured only may have none for an image."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")

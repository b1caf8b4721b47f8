"""The figures of the shipped folders: what the model draws, and how much the others know of unseen scenes."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from draft_emoji.recipe.judge import accuracy, both_found, load_judge, rank
from draft_emoji.recipe.measures import reward_figures, write_figures
from draft_emoji.recipe.sheet import contact_sheet
from draft_emoji.recipe.vae import pictures, psnr
from draft_emoji.scenes import Composer
from draft_emoji.vocabulary import colours, concepts, entries


def load_pipeline(weights: Path, device: str = "cpu") -> StableDiffusionPipeline:
    """The shipped text-to-image folder in float32, without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(weights / "text_to_image", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@torch.no_grad()
def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    guidance: float,
    batch: int = 32,
) -> torch.Tensor:
    """Generate one picture for each prompt and seed, each from its own generator.

    Returns:
        Float32 in [-1, 1], shape (B, 3, 64, 64).
    """
    parts = []
    for start in range(0, len(prompts), batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        images = pipeline(
            prompts[start : start + batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
            height=64,
            width=64,
        ).images
        parts.append(images.cpu().float() * 2 - 1)
    return torch.cat(parts)


def single_prompts(seeds: int) -> tuple[list[str], list[int], torch.Tensor]:
    """Every concept, `seeds` times each, on backgrounds in turn: the prompts, the seeds and the concepts' indices."""
    hues = list(colours())
    prompts, numbers, indices = [], [], []
    for seed in range(seeds):
        for index, entry in enumerate(entries()):
            prompts.append(f"{entry.phrase()} on a {hues[(index + 3 * seed) % len(hues)]} background")
            numbers.append(10_000 * (seed + 1) + index)
            indices.append(index)
    return prompts, numbers, torch.tensor(indices)


def pair_prompts(count: int) -> tuple[list[str], list[int], torch.Tensor]:
    """Pairs of concepts drawn from a fixed seed, as `single_prompts`; the indices have shape (count, 2)."""
    rng, things, hues = np.random.default_rng(99), entries(), list(colours())
    pairs = [rng.choice(len(things), 2, replace=False) for _ in range(count)]
    prompts = [
        f"{things[a].phrase()} and {things[b].phrase()} on a {hues[rng.integers(len(hues))]} background"
        for a, b in pairs
    ]
    return prompts, [70_000 + number for number in range(count)], torch.from_numpy(np.stack(pairs))


def named(indices: torch.Tensor) -> list[tuple[str, ...]]:
    """Names of the concepts in each row of indices, shape (B, n)."""
    names = concepts()
    return [tuple(names[i] for i in row) for row in indices.tolist()]


def background_share(images: torch.Tensor, prompts: list[str]) -> float:
    """Share of pictures whose rim is nearest to the colour the prompt names."""
    table = torch.tensor(list(colours().values()), dtype=torch.float32) / 127.5 - 1
    names = list(colours())
    rim = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], 2).median(2).values
    nearest = torch.cdist(rim, table).argmin(1)
    prompted = torch.tensor([names.index(prompt.split(" on a ")[1].removesuffix(" background")) for prompt in prompts])
    return float((nearest == prompted).float().mean())


def evaluate(
    weights: Path, sheet: Path | None, steps: int, guidances: list[float], seeds: int, device: str = "cpu"
) -> dict[str, object]:
    """Measure everything, print it, and write ``figures.json`` and a contact sheet of 64 prompts.

    Args:
        weights: The package's folder of weights; judge and CLIP must be there.
        sheet: The picture to write; none if None.
        steps: DDIM steps.
        guidances: Guidance scales to try on one seed a concept; the best one is used for the rest.
        seeds: Pictures of each concept in the main figure.
        device: Where the pipeline runs.

    Returns:
        The figures, as written.
    """
    pipeline = load_pipeline(weights, device)
    figures = drawing_figures(weights, pipeline, steps, guidances, seeds) | reward_figures(weights)
    write_figures(weights, figures)
    print(json.dumps(figures, indent=2))
    if sheet is not None:
        write_sheet(pipeline, sheet, steps, float(str(figures["guidance_scale"])))
    return figures


def drawing_figures(
    weights: Path, pipeline: StableDiffusionPipeline, steps: int, guidances: list[float], seeds: int
) -> dict[str, object]:
    """What the model draws, in the eyes of the judge, and what the judge makes of real renders."""
    judge = load_judge(weights / "judge")
    tried = {}
    for guidance in guidances:
        prompts, numbers, indices = single_prompts(1)
        tried[guidance] = rank(judge, draw(pipeline, prompts, numbers, steps, guidance), indices)
        print(f"guidance {guidance}: top-1 and top-5 {tried[guidance]}", flush=True)
    guidance = max(tried, key=lambda value: tried[value])
    prompts, numbers, indices = single_prompts(seeds)
    images = draw(pipeline, prompts, numbers, steps, guidance)
    top1, top5 = rank(judge, images, indices)
    pairs, pair_seeds, both = pair_prompts(len(entries()))
    pair_images = draw(pipeline, pairs, pair_seeds, steps, guidance)
    found2, found5 = (both_found(judge, pair_images, both, first) for first in (2, 5))
    real_pairs = pictures([Composer().scene(np.random.default_rng((7, i)), pair) for i, pair in enumerate(named(both))])
    real = accuracy(judge, "cpu")
    vae = AutoencoderKL.from_pretrained(weights / "text_to_image" / "vae", torch_dtype=torch.float32).eval()
    hits = (torch.cat([judge(part).logits.argmax(-1) for part in images.split(128)]) == indices).detach()
    missed = [name for index, name in enumerate(concepts()) if not hits[indices == index].any()]
    return {
        "concepts": len(entries()),
        "pictures": len(prompts),
        "steps": steps,
        "guidance_scale": guidance,
        "generated_top1": round(top1, 4),
        "generated_top5": round(top5, 4),
        "generated_background_right": round(background_share(images, prompts), 4),
        "pairs_both_in_first_2": round(found2, 4),
        "pairs_both_in_first_5": round(found5, 4),
        "judge_real_top1": round(real[0], 4),
        "judge_real_top5": round(real[1], 4),
        "judge_real_pairs_both_in_first_2": round(both_found(judge, real_pairs, both, 2), 4),
        "vae_psnr_db": round(psnr(vae, "cpu"), 2),
        "never_recognised": missed,
        "guidance_tried": {str(scale): [round(share, 4) for share in both_tops] for scale, both_tops in tried.items()},
    }


def write_sheet(pipeline: StableDiffusionPipeline, target: Path, steps: int, guidance: float) -> None:
    """Draw 48 single objects spread over the vocabulary and 16 pairs, and write them as a contact sheet."""
    prompts, numbers, _ = single_prompts(1)
    spread = [round(i * (len(prompts) - 1) / 47) for i in range(48)]
    pairs, pair_seeds, _ = pair_prompts(16)
    captions = [prompts[i] for i in spread] + pairs
    images = draw(pipeline, captions, [numbers[i] for i in spread] + pair_seeds, steps, guidance)
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    # The captions are shortened to fit beneath: "a cat, red" was prompted as "a cat on a red background".
    contact_sheet(pixels, [text.removesuffix(" background").replace(" on a ", ", ") for text in captions], target)
    print(f"{target.stat().st_size / 1e3:.0f} kB: {target}")

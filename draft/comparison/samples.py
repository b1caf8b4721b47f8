"""How every method is measured: proper samples from the same prompts and seeds, scored by the same rewards.

A method's own training reward will not do. ReFL scores one-step predictions, methods with eta = 1 score noisy rollouts,
and each has seen other prompts by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from draft.comparison.settings import ComparisonSettings, MeasureSettings
from draft.diffusion.conditioning import Conditioning
from draft.diffusion.embedding import embed_texts
from draft.diffusion.families import TextToImage
from draft.diffusion.generate import sample_images, seeded_noise
from draft.diffusion.settings import SamplerSettings
from draft.errors import StageError
from draft.evaluation.variants import PromptSeeds, seed_prompts
from draft.scoring.rewards import LoadedReward, finite_mean, score_batches
from draft.types import Images, Prompts, Size, size_of

REWARD = "reward"
"""The weighted sum of the training's rewards, among the figures of a measurement."""


@dataclass(frozen=True)
class MetricSet:
    """Prompts with their seeds, ready for a model without its text encoders, and the rewards that score the images.

    Args:
        seeded: One prompt and seed per image.
        conditioning: Each image's prompt's, of length N, on the CPU.
        unconditional: The negative prompt's, of length 1.
        noise: Each image's start, (N, C, ...) on the CPU.
        sampler: How they are sampled: the comparison's sampler without noise.
        size: The images' size.
        batch_size: Images sampled at once.
        metrics: The loaded rewards.
        weights: Label to weight in the sum, of those that are trained for.
    """

    seeded: PromptSeeds
    conditioning: Conditioning
    unconditional: Conditioning
    noise: Tensor
    sampler: SamplerSettings
    size: Size
    batch_size: int
    metrics: Sequence[LoadedReward]
    weights: Mapping[str, float]


def make_metric_set(
    model: TextToImage,
    prompts: Prompts,
    metrics: Sequence[LoadedReward],
    *,
    weights: Mapping[str, float],
    settings: ComparisonSettings,
    measure: MeasureSettings,
    seed: int,
) -> MetricSet:
    """Embed prompts and draw the noise.

    Args:
        model: The base model, with its text encoders.
        prompts: The prompts.
        metrics: The loaded rewards that score.
        weights: Label to weight, of the rewards that are trained for.
        settings: The comparison.
        measure: Images per prompt and images at once.
        seed: The first image's seed.

    Returns:
        The metric set.
    """
    seeded = seed_prompts(prompts, images_per_prompt=measure.images_per_prompt, seed=seed)
    size = size_of(settings.resolution, model.default_size)
    return MetricSet(
        seeded=seeded,
        conditioning=embed_texts(model, list(prompts), size)[list(seeded.groups)],
        unconditional=model.unconditional(settings.sampler.negative_prompt, size),
        noise=seeded_noise(seeded.seeds, model.latent_shape(size)),
        sampler=replace(settings.sampler, eta=0.0),
        size=size,
        batch_size=measure.batch_size,
        metrics=metrics,
        weights=weights,
    )


def measure_metrics(model: TextToImage, metric_set: MetricSet) -> dict[str, float]:
    """Sample a metric set with the model as it is, and score the images.

    Args:
        model: The model, with whichever adapter is on.
        metric_set: What to sample, and what scores.

    Returns:
        Mean score by label, and under `reward` the weighted sum of those that are trained for; NaN where a reward gave
        no score at all.
    """
    scores = score_batches(metric_set.metrics, _draw(model, metric_set), metric_set.seeded.prompts)
    figures = {label: finite_mean(values) for label, values in scores.items()}
    return {REWARD: sum(weight * figures[label] for label, weight in metric_set.weights.items()), **figures}


def evenly(prompts: Prompts, count: int) -> Prompts:
    """`count` prompts at equal distances, for files that have what belongs together one after another.

    Args:
        prompts: All prompts.
        count: How many; all where there are fewer.

    Returns:
        The chosen ones, in their order.

    Example:
        >>> list(evenly(Prompts(["a", "b", "c", "d"]), 2))
        ['a', 'c']
    """
    count = min(count, len(prompts))
    return prompts.take(k * len(prompts) // count for k in range(count))


def _draw(model: TextToImage, metric_set: MetricSet) -> Iterator[tuple[Prompts, Images]]:
    for start in range(0, len(metric_set.noise), metric_set.batch_size):
        chosen = slice(start, start + metric_set.batch_size)
        conditioning, noise = metric_set.conditioning[chosen].to(model.device), metric_set.noise[chosen]
        images = sample_images(
            model, conditioning, metric_set.unconditional, noise, metric_set.sampler, metric_set.size
        )
        if not bool(images.isfinite().all()):
            raise StageError("its samples are not finite")
        yield metric_set.seeded.prompts[chosen], images

"""The split backward pass: pixels in micro-batches, then the network once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draft.registry.reward import Score, Term
from draft.training.watch import check_connected, check_scores
from draft.types import Images, Latents, Prompts


@dataclass(frozen=True)
class Loaded:
    """A reward term ready to score.

    Args:
        term: The term.
        score: Its loaded function.
        device: Where it was loaded.
    """

    term: Term
    score: Score
    device: torch.device


@dataclass(frozen=True)
class Figures:
    """What one backward pass saw; tensors stay on the device so that nothing waits.

    Args:
        scores: Mean raw score of each term, shape (terms,).
        gradients: Norm of each term's gradient with respect to the images, not finite where a reward broke, (terms,).
        saturated: Share of pixel values at 0 or 1, which the decoder puts there or beyond; scalar. Their gradient is
            0 unless `saturation` lets it straight through.
    """

    scores: Tensor
    gradients: Tensor
    saturated: Tensor

    def flat(self) -> Tensor:
        """All in one tensor, in the order above, so that they cross from the device at once."""
        return torch.cat([self.scores, self.gradients, self.saturated.reshape(1)])


def split_backward(
    latents: Latents,
    decode: Callable[[Latents], Images],
    terms: Sequence[Loaded],
    prompts: Prompts,
    *,
    micro_batch_size: int = 0,
    scale: float = 1.0,
) -> Figures:
    """Backpropagate loss = -scale * mean_n sum_k w_k r_k(decode(latents_n)) into whatever made the latents.

    The latents become a leaf; a micro-batch is decoded, each reward gives its gradient with respect to the images
    and is freed, and the decoder's backward pass collects dr/dlatents. One backward pass through the network's graph
    ends it. The gradient is that of the plain loss; the memory of decoder and rewards is that of one micro-batch.

    Args:
        latents: N = copies' factor times B final latents, with the network's graph, (N, C, ...).
        decode: Latents to images in [0, 1], differentiable.
        terms: The loaded rewards.
        prompts: B prompts; group m of B latents (DRaFT-LV's copies) uses them again.
        micro_batch_size: Images at once; 0: each group of B as a whole. A reward whose scores depend on the rest of
            the batch (`per_image = False`) turns micro-batching off, so that it sees each group whole.
        scale: Factor of the loss; 1 / accumulation steps.

    Returns:
        The figures.

    Raises:
        StageError: A reward's result is no differentiable tensor of one score per image.
    """
    count, batch = latents.shape[0], len(prompts)
    whole = micro_batch_size == 0 or any(not loaded.term.reward.per_image for loaded in terms)
    size = batch if whole else min(micro_batch_size, batch)
    leaf = latents.detach().requires_grad_()
    scores = torch.zeros(len(terms), device=latents.device)
    gradients = torch.zeros(len(terms), device=latents.device)
    saturated = torch.zeros((), device=latents.device)
    for start in _starts(count, batch, size):
        stop = min(start + size, (start // batch + 1) * batch)
        images = decode(leaf[start:stop])
        pixels = images.detach()
        saturated += ((pixels <= 0) | (pixels >= 1)).float().mean() * ((stop - start) / count)
        chosen = prompts[start % batch : start % batch + stop - start]
        total = torch.zeros_like(pixels)
        for k, loaded in enumerate(terms):
            raw, gradient = _score(loaded, pixels, chosen)
            scores[k] += raw.to(scores) / count
            if gradient is not None:
                gradients[k] += gradient.norm()
                total += gradient * (-scale * loaded.term.weight / count)
        images.backward(total)
    assert leaf.grad is not None
    latents.backward(leaf.grad)
    return Figures(scores, gradients, saturated)


def _starts(count: int, batch: int, size: int) -> list[int]:
    """Starts of the micro-batches; none crosses from one group of `batch` into the next."""
    return [group + offset for group in range(0, count, batch) for offset in range(0, batch, size)]


def _score(loaded: Loaded, pixels: Images, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
    """The sum of a micro-batch's raw scores and its gradient with respect to the pixels, None for weight 0."""
    label, batch = loaded.term.label, pixels.shape[0]
    images = pixels.to(loaded.device)
    if not loaded.term.weight:
        with torch.no_grad():
            return check_scores(label, loaded.score(images, prompts), batch, gradient=False).sum(), None
    images = images.detach().requires_grad_()
    raw = check_scores(label, loaded.score(images, prompts), batch, gradient=True)
    total = raw.sum()
    (gradient,) = torch.autograd.grad(total, images, allow_unused=True)
    return total.detach(), check_connected(label, gradient).to(pixels)

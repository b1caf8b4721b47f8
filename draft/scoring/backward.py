"""The rewards' side of the gradient: from latents to scores, and back to the latents in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from draft.diffusion.surrogate import Group
from draft.rewards.reward import Score, Term
from draft.scoring.guards import check_connected, check_scores
from draft.scoring.loss import loss_slope, loss_value
from draft.scoring.objective import LinearLoss, Loss, RobustSettings
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
    """What one pass over images saw; tensors stay on the device so that nothing waits.

    Args:
        scores: Mean raw score of each term, shape (terms,).
        gradients: Norm of each term's gradient with respect to the images, not finite where a reward broke, (terms,);
            None where no gradient was asked for.
        saturated: Share of pixel values at 0 or 1, which the decoder puts there or beyond; scalar. Their gradient is
            0 unless `saturation` lets it straight through.
        loss: Mean loss of the images; scalar.
        evaluations: Images scored.
        drop: How far R falls where the images are moved against it, their mean, scalar (RSA-FT's S1); None: they stay.
    """

    scores: Tensor
    gradients: Tensor | None
    saturated: Tensor
    loss: Tensor
    evaluations: int
    drop: Tensor | None = None

    def flat(self) -> Tensor:
        """All that is always there in one tensor, in the order above, so that it crosses from the device at once."""
        gradients = torch.ones_like(self.scores) if self.gradients is None else self.gradients
        return torch.cat([self.scores, gradients, self.saturated.reshape(1), self.loss.reshape(1)])


def mean_drop(figures: Sequence[Figures]) -> Tensor | None:
    """The mean of `drop` over those in which images were moved; None: in none."""
    drops = [each.drop for each in figures if each.drop is not None]
    return torch.stack(drops).mean() if drops else None


@dataclass(frozen=True)
class Scored:
    """Latents' rewards.

    Args:
        rewards: R = sum_k w_k r_k of each sample, (N,).
        gradient: Of what was asked for, with respect to the latents, (N, C, ...); None where it was not.
        figures: Means over the samples.
    """

    rewards: Tensor
    gradient: Tensor | None
    figures: Figures


@dataclass(frozen=True)
class Scorer:
    """A decoder and a weighted sum of rewards as functions of latents.

    Args:
        decode: Latents to images in [0, 1], differentiable.
        terms: The loaded rewards.
        micro_batch_size: Images at once; 0: each group of B as a whole. A reward whose scores depend on the rest of the
            batch (`per_image = False`) turns micro-batching off, so that it sees each group whole.
        robust: Steps against the reward in the images, before what counts is scored.
    """

    decode: Callable[[Latents], Images]
    terms: Sequence[Loaded]
    micro_batch_size: int = 0
    robust: RobustSettings = field(default_factory=RobustSettings)

    def score(self, latents: Latents, prompts: Prompts) -> Scored:
        """Score latents without gradient; the rewards need none.

        Args:
            latents: N latents, (N, C, ...), N a multiple of B.
            prompts: B prompts; each group of B latents uses them again.

        Returns:
            The rewards and figures.
        """
        return self._over(latents, prompts, None, None, gradient=False)

    def reward_gradient(self, latents: Latents, prompts: Prompts) -> Scored:
        """Each sample's reward and its gradient dR_n / dlatents_n, images moved against the reward or not.

        Args:
            latents: N latents, (N, C, ...), N a multiple of B.
            prompts: B prompts; each group of B latents uses them again.

        Returns:
            Rewards, gradient and figures. With a batch-level reward it is the gradient of the sum of all R.

        Raises:
            StageError: A reward's result is no differentiable tensor of one score per image.
        """
        return self._over(latents, prompts, None, None, gradient=True)

    def loss_gradient(
        self, latents: Latents, prompts: Prompts, *, loss: Loss, groups: Sequence[Group] | None = None
    ) -> Scored:
        """The gradient of sum_n weight_n loss(R_n) with respect to the latents.

        The latents are a leaf; a micro-batch is decoded, each reward gives its gradient with respect to the images and
        is freed, and the decoder's backward pass collects the latents' gradient. The memory of decoder and rewards is
        that of one micro-batch.

        Args:
            latents: N latents, groups' factor times B, (N, C, ...).
            prompts: B prompts.
            loss: The loss as a function of R.
            groups: How each B latents are scored; None: all alike.

        Returns:
            Rewards, gradient and figures.

        Raises:
            StageError: A reward's result is no differentiable tensor of one score per image.
        """
        return self._over(latents, prompts, loss, groups, gradient=True)

    def _over(
        self, latents: Latents, prompts: Prompts, loss: Loss | None, groups: Sequence[Group] | None, *, gradient: bool
    ) -> Scored:
        count, batch = latents.shape[0], len(prompts)
        whole = self.micro_batch_size == 0 or any(not each.term.reward.per_image for each in self.terms)
        size = batch if whole else min(self.micro_batch_size, batch)
        leaf = latents.detach().requires_grad_(gradient)
        chosen_groups = groups or [Group()] * (count // batch)
        sums = torch.zeros(2, len(self.terms), device=latents.device)
        saturated, mean_loss, drop = torch.zeros(3, device=latents.device)
        rewards = torch.zeros(count, device=latents.device)
        scored, moved = 0, gradient and self.robust.image_radius > 0
        for start in _starts(count, batch, size):
            stop = min(start + size, (start // batch + 1) * batch)
            group = chosen_groups[start // batch]
            inside = slice(start % batch, start % batch + stop - start)
            with torch.set_grad_enabled(gradient):
                images = self.decode(leaf[start:stop])
            pixels = images.detach()
            saturated = saturated + ((pixels <= 0) | (pixels >= 1)).float().mean() * ((stop - start) / count)
            if moved:
                unmoved, against = self._pixels(pixels, prompts[inside], group, None, gradient=True)
                pixels = pixels - _ball(against, self.robust)
                scored += (stop - start) * len(group.views)
            totals, slope = self._pixels(pixels, prompts[inside], group, sums, gradient=gradient)
            scored += (stop - start) * len(group.views)
            if moved:
                drop = drop + (unmoved - totals).sum() / count
            rewards[start:stop] = totals
            weights = torch.ones_like(totals) if group.weights is None else group.weights[inside].to(totals)
            shape = loss or LinearLoss()
            mean_loss = mean_loss + (weights * loss_value(shape, totals)).sum() / count
            if gradient:
                factors = weights * loss_slope(shape, totals) if loss is not None else weights
                images.backward(slope * factors.to(slope).reshape(-1, *[1] * (slope.dim() - 1)))
        figures = Figures(
            scores=sums[0] / count,
            gradients=sums[1] if gradient else None,
            saturated=saturated,
            loss=mean_loss,
            evaluations=scored,
            drop=drop if moved else None,
        )
        return Scored(rewards, leaf.grad, figures)

    def _pixels(
        self, pixels: Images, prompts: Prompts, group: Group, sums: Tensor | None, *, gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Rewards of a micro-batch, (b,), and the gradient of their sum; adds up the terms' scores and norms."""
        totals, slope = torch.zeros(len(pixels), device=pixels.device), torch.zeros_like(pixels)
        for k, loaded in enumerate(self.terms):
            term_slope = None
            for prefix, coefficient in group.views:
                raw, found = _score(loaded, pixels, prompts.prefixed(prefix), gradient=gradient)
                totals += (coefficient * loaded.term.weight * raw).to(totals)
                if sums is not None and prefix == group.views[0][0]:
                    sums[0, k] += raw.sum().to(sums)
                if found is not None:
                    found = found * coefficient
                    term_slope = found if term_slope is None else term_slope + found
            if term_slope is not None:
                slope += term_slope * loaded.term.weight
                if sums is not None:
                    sums[1, k] += term_slope.norm().to(sums)
        return totals, slope


def split_backward(
    latents: Latents,
    scorer: Scorer,
    prompts: Prompts,
    *,
    loss: Loss,
    groups: Sequence[Group] | None = None,
    penalty: Tensor | None = None,
    scale: float = 1.0,
) -> Figures:
    """Backpropagate scale * (mean_n weight_n loss(R_n) + penalty) into whatever made the latents.

    One backward pass through the network's graph, after the decoder's and the rewards' in micro-batches. The gradient
    is that of the plain loss.

    Args:
        latents: N = groups' factor times B latents, with the network's graph, (N, C, ...).
        scorer: Decoder and rewards.
        prompts: B prompts; each group of B latents (DRaFT-LV's copies) uses them again.
        loss: The loss as a function of R.
        groups: How each B latents are scored; None: all alike.
        penalty: A scalar with the same graph; None: none.
        scale: Factor of it all; 1 / accumulation steps.

    Returns:
        The figures.
    """
    scored = scorer.loss_gradient(latents, prompts, loss=loss, groups=groups)
    assert scored.gradient is not None
    outputs, gradients = [latents], [scored.gradient * (scale / latents.shape[0])]
    if penalty is not None:
        outputs, gradients = [*outputs, penalty], [*gradients, torch.full_like(penalty, scale)]
    torch.autograd.backward(outputs, gradients)
    return scored.figures


def _starts(count: int, batch: int, size: int) -> list[int]:
    """Starts of the micro-batches; none crosses from one group of `batch` into the next."""
    return [group + offset for group in range(0, count, batch) for offset in range(0, batch, size)]


def _score(loaded: Loaded, pixels: Images, prompts: Prompts, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """A micro-batch's raw scores, and the gradient of their sum with respect to the pixels unless the weight is 0."""
    label, batch = loaded.term.label, pixels.shape[0]
    images = pixels.to(loaded.device)
    if not (gradient and loaded.term.weight):
        with torch.no_grad():
            raw = check_scores(label, loaded.score(images, prompts), batch, gradient=False)
            return raw.to(pixels.device), None
    images = images.detach().requires_grad_()
    raw = check_scores(label, loaded.score(images, prompts), batch, gradient=True)
    (slope,) = torch.autograd.grad(raw.sum(), images, allow_unused=True)
    return raw.detach().to(pixels.device), check_connected(label, slope).to(pixels)


def _ball(gradient: Images, robust: RobustSettings) -> Images:
    """The step of the given length along a gradient, per image; where the gradient is 0, none."""
    flat = gradient.flatten(1)
    length: Literal["rms", "total"] = robust.image_norm
    norm = flat.square().mean(1).sqrt() if length == "rms" else flat.norm(dim=1)
    unit = torch.where(norm[:, None] > 0, flat / norm[:, None].clamp(min=torch.finfo(flat.dtype).tiny), 0.0)
    return robust.image_radius * unit.reshape(gradient.shape)

"""The rewards' side of the gradient: from latents to scores, and back to the latents in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from draft.diffusion.surrogate import Group
from draft.scoring.evidence import Evidence
from draft.scoring.figures import Figures
from draft.scoring.objective import LinearLoss, Loss, RobustSettings
from draft.scoring.rewards import LoadedReward
from draft.types import Images, Latents, Prompts


@dataclass(frozen=True)
class ScoredLatents:
    """The rewards of latents, and their gradient where it was asked for.

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
        rewards: The loaded rewards.
        micro_batch_size: Images at once; 0: each group of B at once. A reward whose scores depend on the rest of the
            batch (`per_image = False`) turns micro-batching off, so that it sees each complete group.
        robust: Steps against the reward in the images, before what counts is scored.
    """

    decode: Callable[[Latents], Images]
    rewards: Sequence[LoadedReward]
    micro_batch_size: int = 0
    robust: RobustSettings = field(default_factory=RobustSettings)

    def score(self, latents: Latents, prompts: Prompts) -> ScoredLatents:
        """Score latents without gradient; the rewards need none.

        Args:
            latents: N latents, (N, C, ...), N a multiple of B.
            prompts: B prompts; each group of B latents uses them again.

        Returns:
            The rewards and figures.
        """
        return self._over(latents, prompts, None, None, gradient=False)

    def reward_gradient(self, latents: Latents, prompts: Prompts) -> ScoredLatents:
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
    ) -> ScoredLatents:
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
    ) -> ScoredLatents:
        count, batch = latents.shape[0], len(prompts)
        undivided = self.micro_batch_size == 0 or any(not reward.term.reward.per_image for reward in self.rewards)
        size = batch if undivided else min(self.micro_batch_size, batch)
        leaf = latents.detach().requires_grad_(gradient)
        chosen_groups = groups or [Group()] * (count // batch)
        sums = torch.zeros(2, len(self.rewards), device=latents.device)
        saturated, mean_loss, drop = torch.zeros(3, device=latents.device)
        rewards = torch.zeros(count, device=latents.device)
        evidence: list[Evidence] = []
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
                unmoved, against, _, _ = self._pixels(pixels, prompts[inside], group, None, gradient=True)
                pixels = pixels - _ball(against, self.robust)
                scored += (stop - start) * len(group.views)
            totals, slope, raw, lengths = self._pixels(pixels, prompts[inside], group, sums, gradient=gradient)
            evidence.append(Evidence(self.decode, leaf[start:stop].detach(), prompts[inside], raw, lengths))
            scored += (stop - start) * len(group.views)
            if moved:
                drop = drop + (unmoved - totals).sum() / count
            rewards[start:stop] = totals
            weights = torch.ones_like(totals) if group.weights is None else group.weights[inside].to(totals)
            shape = loss or LinearLoss()
            mean_loss = mean_loss + (weights * shape.value(totals)).sum() / count
            if gradient:
                factors = weights * loss.slope(totals) if loss is not None else weights
                images.backward(slope * factors.to(slope).reshape(-1, *[1] * (slope.dim() - 1)))
        figures = Figures(
            scores=sums[0] / count,
            gradients=sums[1] if gradient else None,
            saturated=saturated,
            loss=mean_loss,
            evaluations=scored,
            drop=drop if moved else None,
            evidence=tuple(evidence),
        )
        return ScoredLatents(rewards, leaf.grad, figures)

    def _pixels(
        self, pixels: Images, prompts: Prompts, group: Group, sums: Tensor | None, *, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Rewards of a micro-batch, (b,), the gradient of their sum, and each term's scores and lengths of gradients.

        Adds up the terms' scores and norms.
        """
        totals, slope = torch.zeros(len(pixels), device=pixels.device), torch.zeros_like(pixels)
        scores = torch.zeros(len(self.rewards), len(pixels), device=pixels.device)
        lengths = torch.zeros_like(scores) if gradient else None
        for k, reward in enumerate(self.rewards):
            weight, term_slope = reward.term.weight, None
            for prefix, coefficient in group.views:
                raw, view_slope = _score(reward, pixels, prompts.prefixed(prefix), gradient=gradient)
                scores[k] += raw.to(scores)
                if weight:  # what is only measured may be no number
                    totals += (coefficient * weight * raw).to(totals)
                if sums is not None and prefix == group.views[0][0]:
                    sums[0, k] += raw.sum().to(sums)
                if view_slope is not None:
                    view_slope = view_slope * coefficient
                    term_slope = view_slope if term_slope is None else term_slope + view_slope
            if term_slope is not None:
                slope += term_slope * weight
                if lengths is not None:
                    lengths[k] = term_slope.flatten(1).norm(dim=1)
                if sums is not None:
                    sums[1, k] += term_slope.norm().to(sums)
        return totals, slope, scores, lengths


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


def _score(reward: LoadedReward, pixels: Images, prompts: Prompts, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """A micro-batch's raw scores, and the gradient of their sum with respect to the pixels unless the weight is 0."""
    if gradient and reward.term.weight:
        return reward.scores_and_gradient(pixels, prompts)
    return reward.scores(pixels, prompts).to(pixels.device), None


def _ball(gradient: Images, robust: RobustSettings) -> Images:
    """The step of the given length along a gradient, per image; where the gradient is 0, none."""
    flat = gradient.flatten(1)
    length: Literal["rms", "total"] = robust.image_norm
    norm = flat.square().mean(1).sqrt() if length == "rms" else flat.norm(dim=1)
    unit = torch.where(norm[:, None] > 0, flat / norm[:, None].clamp(min=torch.finfo(flat.dtype).tiny), 0.0)
    return robust.image_radius * unit.reshape(gradient.shape)

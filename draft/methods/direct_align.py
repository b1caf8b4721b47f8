"""Direct-Align and SRPO: a sample noised with its own noise, one call of the network, the known noise taken off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draft.diffusion.sampling import predict, renoise
from draft.diffusion.schedule import FlowSchedule, Grid, Schedule, make_grid
from draft.diffusion.settings import SamplerSettings
from draft.diffusion.surrogate import Denoisers, Group, Rollout, Surrogate
from draft.methods.values import DirectAlign


@dataclass(frozen=True)
class Levels:
    """Neighbouring noise levels, as indices of a grid of levels, noisier first.

    Args:
        noisy: Where the denoising branch calls the network.
        middle: Where it goes, and where the inversion branch goes.
        clean: Where the inversion branch calls the network.
        share: How noisy `middle` is in the window: 0 at its clean end, 1 at its noisy end.
    """

    noisy: int
    middle: int
    clean: int
    share: float


def call_grid(method: DirectAlign, schedule: Schedule | FlowSchedule, grid: Grid) -> Grid:
    """Levels of its own, whatever the sampler's are."""
    return level_grid(schedule)


def level_grid(schedule: Schedule | FlowSchedule) -> Grid:
    """All noise levels that Direct-Align can take: one per training time, shifted in flow matching."""
    times = schedule.times if isinstance(schedule, FlowSchedule) else len(schedule.alphas_cumprod)
    return make_grid(schedule, SamplerSettings(num_inference_steps=times))


def recorded_calls(method: DirectAlign) -> int:
    """One call in each branch."""
    return 2 if method.branches == "both" else 1


def draw_levels(method: DirectAlign, levels: int, generator: torch.Generator) -> Levels:
    """Draw a middle level uniformly from the window, and its neighbours at the method's distance or the window's end.

    Args:
        method: The method's value.
        levels: Number of levels of the grid, at least 4.
        generator: Of the draws, on the CPU.

    Returns:
        The levels.
    """
    first = min(max(round(method.levels[0] * levels), 1), levels - 3)
    last = min(max(round(method.levels[1] * levels), first + 2), levels - 1)
    middle = int(torch.randint(first + 1, last, (), generator=generator))
    distance = max(1, round(method.distance * (last - first)))
    share = (last - middle) / (last - first)
    return Levels(max(middle - distance, first), middle, min(middle + distance, last), share)


def recover(
    denoisers: Denoisers, grid: Grid, y: Tensor, z: Tensor, a: int, b: int, *, recovery: str = "move"
) -> Tensor:
    """Noise a clean sample with known noise to level a, move it to level b by one call, take the known noise off.

    x_a = alpha_a y + sigma_a z, x_b = alpha_b x0(x_a) + sigma_b e(x_a), and y^ = (x_b - sigma_b z) / alpha_b (the
    published code, Tencent-Hunyuan/SRPO, fastvideo/SRPO.py). `delta`: y^ = (x_a - D e - (sigma_a - D) z) / alpha_a with
    D = sigma_a - sigma_b (arXiv 2509.06942, equation 5). Both are y where the network returns e = z; with an error de,
    y^ - y is -(rho_a - rho_b) de and -(D / alpha_a) de.

    Args:
        denoisers: The guided network.
        grid: Noise levels.
        y: Clean latents, (B, C, ...), without gradient.
        z: The noise they were made from.
        a: Level of the call.
        b: Level it goes to: cleaner in the denoising branch, noisier in the inversion branch.
        recovery: `move` or `delta`.

    Returns:
        y^, with the call's gradient.
    """
    x = renoise(grid, y, z, a).detach()
    x0, e = predict(grid, x, denoisers.with_grad(x, a), a)
    if recovery == "delta":
        delta = grid.sigma[a] - grid.sigma[b]
        return (x - delta * e - (grid.sigma[a] - delta) * z) / grid.alpha[a]
    return (renoise(grid, x0, e, b) - grid.sigma[b] * z) / grid.alpha[b]


def surrogate(
    method: DirectAlign, denoisers: Denoisers, grid: Grid, rollout: Rollout, generator: torch.Generator
) -> Surrogate:
    """Draw levels (and words), and recover the rollout's sample in each branch.

    With words, the denoising branch scores (1 + k_p) r(., "positive. prompt") - r(., "negative. prompt"), the
    inversion branch (1 + k_n) r(., "negative. prompt") - r(., "positive. prompt"); k_p and k_n are linear in the middle
    level. Without, they score lambda r and -lambda r. As dy^/de has opposite signs in the branches, both push the
    network the same way.

    Args:
        method: The method's value.
        denoisers: The guided network on the grid of levels.
        grid: That grid; not the sampler's.
        rollout: Whose last state is the sample and whose first its noise.
        generator: Of the draws, on the CPU.

    Returns:
        The branches' samples, one group each.

    Note:
        Words are drawn; the published code cycles through them. For a reward that is a cosine with the text the
        relative reward is theirs; for others it is the same formula on scores.
    """
    at = draw_levels(method, grid.steps, generator)
    y, z = rollout.states[-1], rollout.states[0]
    positive, negative = (
        f"{_one_of(words, generator)}. " if words else "" for words in (method.positive, method.negative)
    )
    weights = None
    if not method.positive:
        weights = torch.full((y.shape[0],), method.discount + (1 - method.discount) * at.share, device=y.device)
    latents, groups = [], []
    for branch, a, b, sign in (("denoise", at.noisy, at.middle, 1.0), ("inversion", at.clean, at.middle, -1.0)):
        if method.branches not in (branch, "both"):
            continue
        latents.append(recover(denoisers, grid, y, z, a, b, recovery=method.recovery))
        if weights is not None:
            groups.append(Group((("", sign),), weights))
        elif branch == "denoise":
            groups.append(Group(((positive, 1 + _between(method.positive_bonus, at.share)), (negative, -1.0))))
        else:
            groups.append(Group(((negative, 1 + _between(method.negative_bonus, at.share)), (positive, -1.0))))
    return Surrogate(torch.cat(latents), tuple(groups))


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _one_of(words: tuple[str, ...], generator: torch.Generator) -> str:
    return words[int(torch.randint(len(words), (), generator=generator))]

"""The check of a reward on another device than the CPU, which every machine can make. Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor

from draft.isolation.reward import IsolatedReward
from draft.rewards.parts import walk_reward
from draft.rewards.reward import Score
from draft.testing.pretended import pretended_accelerator
from draft.testing.pretended.pretence import DeviceMismatch
from draft.testing.pretended.tensor import DEVICE, NotPretended
from draft.testing.subject import CheckFailed, CheckSkipped, Subject, require
from draft.types import Images, Scores


def check_another_device(subject: Subject) -> str:
    """Loaded onto a GPU, which is pretended, it scores images there as on the CPU, and their gradient is the same."""
    if subject.device != "cpu":
        raise CheckSkipped(f"every check ran on {subject.device} itself")
    if any(isinstance(reward, IsolatedReward) for _, reward in walk_reward(subject.reward)):
        raise CheckSkipped("it runs in a process of its own, where no accelerator is pretended")
    images = subject.images()
    wanted, wanted_slope = _with_slope(subject, subject.score, images)
    try:
        with pretended_accelerator() as counts:
            score, moved = subject.load(DEVICE), images.to(DEVICE)
            loaded = counts.copy()
            scores, slope = _with_slope(subject, score, moved)
            waits = (counts - loaded).reads
            require(scores.device == DEVICE, f"scores are on {scores.device}, images on {DEVICE}")
            scores, slope = scores.cpu(), None if slope is None else slope.cpu()
    except DeviceMismatch as error:
        raise CheckFailed(str(error)) from error
    except NotPretended as error:
        raise CheckSkipped(str(error)) from error
    require(subject.close(wanted, scores, 1e-4), f"{wanted.tolist()} on the CPU, {scores.tolist()} on {DEVICE}")
    require((slope is None) == (wanted_slope is None), f"the gradient is lost on one of the CPU and {DEVICE}")
    if slope is not None and wanted_slope is not None:
        require(subject.close(wanted_slope, slope, 1e-3), f"the gradient differs on {DEVICE}")
    if not waits:
        return ""
    place, _ = waits.most_common(1)[0]
    return f"reads by the host: {waits.total()} a batch, most at {place.line.partition(' ')[0]}"


def _with_slope(subject: Subject, score: Score, images: Images) -> tuple[Scores, Tensor | None]:
    """Scores, and the gradient of their sum where there is one; on the images' device."""
    pixels = images.detach().requires_grad_(subject.reward.differentiable)
    scores = score(pixels, subject.prompts)
    if not scores.requires_grad:
        return scores, None
    return scores.detach(), torch.autograd.grad(scores.sum(), pixels, allow_unused=True)[0]

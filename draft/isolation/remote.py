"""The score of an isolated reward as a function of tensors here: values and gradients come from its process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from draft.errors import StageError
from draft.isolation.process import Doing, Worker
from draft.isolation.tensors import pack, unpack
from draft.rewards.reading import Reading, ReadingScore
from draft.rewards.reward import Reward, Score
from draft.types import Images, Prompts, Scores

Values: TypeAlias = tuple[Tensor, Tensor | None, bool]
"""Scores, their gradient with respect to the images, and whether there was one to take."""


def remote_score(worker: Worker, reward: Reward, device: torch.device, *, use: str, where: str) -> Score:
    """Load a reward in its process.

    Args:
        worker: The process.
        reward: The reward with its parameters.
        device: Where to load it there.
        use: What it is called there.
        where: Its place in the pipeline.

    Returns:
        The scoring function. Where a gradient is wanted it is computed at once, while the process has the graph:
        d(sum_i r_i)/dx, which for a reward per image is dr_i/dx_i of every image, so that the backward pass for any
        cotangent is a product; a batch-level reward is asked again for a cotangent that is not constant.

    Raises:
        DraftError: It cannot be loaded.
    """
    request = {
        "ask": "load",
        "use": use,
        "options": reward.model_dump(mode="json"),
        "where": where,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    try:
        answer, _ = worker.ask("loading", request)
    except BaseException:
        worker.end()
        raise

    def score(images: Images, prompts: Sequence[str]) -> Scores:
        ask = partial(_ask, worker, prompts=prompts)
        if torch.is_grad_enabled() and images.requires_grad:
            return _Isolated.apply(images, ask, reward, where)  # type: ignore[return-value]
        scores, _, _ = ask("scoring", {"images": images}, gradient=False)
        return scores

    def lengths(index: int, prompts: Sequence[str]) -> list[int]:
        answer, _ = worker.ask("measuring prompts", {"ask": "lengths", "reading": index, **_texts(prompts)})
        return answer["lengths"]

    # An older Draft there says nothing of how its rewards read.
    readings = tuple(Reading(limit, partial(lengths, index)) for index, limit in enumerate(answer.get("reads", ())))
    return ReadingScore(score, readings)


def _texts(prompts: Sequence[str]) -> dict[str, Any]:
    columns = {name: prompts.column(name) for name in prompts.columns} if isinstance(prompts, Prompts) else None
    return {"prompts": list(prompts), "columns": columns}


def _ask(
    worker: Worker, doing: Doing, tensors: Mapping[str, Tensor], *, prompts: Sequence[str], gradient: bool
) -> Values:
    images = tensors["images"]
    described, body = pack(tensors)
    request = {"ask": "score", "gradient": gradient, **_texts(prompts)}
    answer, payload = worker.ask(doing, {**request, "tensors": described}, body)
    unpacked = unpack(answer["tensors"], payload)
    scores, slope = unpacked["scores"].to(images.device), unpacked.get("gradient")
    if tuple(scores.shape) != (len(images),):
        raise StageError(
            f"reward {worker.name!r} must return one score per image, shape ({len(images)},) "
            f"(got {tuple(scores.shape)})",
            where=worker.where,
        )
    return scores, None if slope is None else slope.to(images.device), answer["connected"]


class _Isolated(torch.autograd.Function):
    """r(x) of another process, with its gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, ask: Any, reward: Reward, where: str) -> Tensor:
        scores, gradient, connected = ask("scoring", {"images": images}, gradient=True)
        if not connected:
            # What says so in this process, too: the trainer knows how to tell it.
            ctx.mark_non_differentiable(scores)
        ctx.save_for_backward(images)
        ctx.gradient, ctx.ask, ctx.reward, ctx.where = gradient, ask, reward, where
        return scores

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, None, None, None]:
        (cotangent,) = cotangents
        (images,) = ctx.saved_tensors
        gradient = ctx.gradient
        if gradient is None:
            return None, None, None, None
        named = ctx.reward.name, ctx.where
        factors = cotangent.to(gradient.dtype).reshape(-1, 1, 1, 1)
        if not ctx.reward.per_image and bool((cotangent != cotangent[0]).any()):
            inputs = {"images": images.detach(), "cotangent": cotangent.detach()}
            _, gradient, _ = ctx.ask("computing a gradient", inputs, gradient=True)
            return _Once.apply(gradient, *named, images, cotangent), None, None, None  # type: ignore[return-value]
        return _Once.apply(gradient, *named, images) * factors, None, None, None


class _Once(torch.autograd.Function):
    """A gradient as a constant that says so when somebody differentiates it again."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, name: str, where: str, *of: Tensor) -> Tensor:
        ctx.name, ctx.where = name, where  # type: ignore[attr-defined]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise StageError(
            f"the gradient of isolated reward {ctx.name!r} cannot be differentiated again",
            where=ctx.where,
            hint="run it in this environment, without `isolated`",
        )

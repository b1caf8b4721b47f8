"""The checks behind `draft.testing`: each a function from a subject to a word on what it saw. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from draft.rewards.reward import RESERVED
from draft.testing.elsewhere import check_another_device
from draft.testing.prompts import check_prompt_matters
from draft.testing.side_effects import (
    check_inputs_untouched,
    check_randomness_untouched,
    check_surroundings_untouched,
    check_threads,
)
from draft.testing.subject import CheckSkipped, Subject, require

LARGEST = 1e9
"""How large a score may be: next to a larger one a sum of rewards in single precision keeps nothing of the others."""


def check_documented(subject: Subject) -> str:
    """The class has a docstring of its own, a name, and a description for each field; no field is reserved."""
    kind = type(subject.reward)
    require(bool((kind.__dict__.get("__doc__") or "").strip()), f"{kind.__name__} has no docstring")
    require(isinstance(getattr(kind, "name", None), str), f"{kind.__name__} has no `name`")
    for name, field in kind.model_fields.items():
        require(bool(field.description), f"field {name!r} has no description")
        require(name not in RESERVED, f"field {name!r} is reserved by Draft")
    return ""


def check_round_trip(subject: Subject) -> str:
    """The parameters survive being written as JSON and read again."""
    text = subject.reward.model_dump_json()
    again = type(subject.reward).model_validate_json(text)
    require(again == subject.reward, f"{subject.reward!r} became {again!r}")
    return ""


def check_shape(subject: Subject) -> str:
    """B images and B prompts give B floating-point scores, for a plain list of prompts and for `Prompts`."""
    images = subject.images()
    # A plain list has no columns, so a reward that asks for one cannot do with it.
    forms = [subject.prompts, subject.prompts[:1]]
    forms += [] if subject.prompts.columns else [list(subject.prompts), list(subject.prompts[:1])]
    for prompts in forms:
        scores = subject.score(images[: len(prompts)], prompts)
        require(isinstance(scores, Tensor), f"returned {type(scores).__name__}, not a tensor")
        require(scores.shape == (len(prompts),), f"shape {tuple(scores.shape)} for {len(prompts)} images")
        require(scores.is_floating_point(), f"scores are {scores.dtype}")
        require(scores.device == images.device, f"scores are on {scores.device}, images on {images.device}")
    return ""


def check_finite(subject: Subject) -> str:
    """Black, white, noise and odd sizes have finite scores and, where there is a gradient, a finite one."""
    height, width = subject.size
    images = subject.images()
    cases = {
        "black": torch.zeros_like(images),
        "white": torch.ones_like(images),
        "grey": torch.full_like(images, 0.5),
        "noise": torch.rand(images.shape, generator=torch.Generator().manual_seed(1)).to(images),
        "odd size": subject.images(size=(height + 1, width - 5)),
        "wide": subject.images(size=(height, 2 * width + 3)),
    }
    for name, batch in cases.items():
        pixels = batch.clone().requires_grad_(subject.reward.differentiable)
        scores = subject.score(pixels, subject.prompts)
        require(bool(scores.isfinite().all()), f"{name} scores {scores.tolist()}")
        require(
            bool((scores.abs() <= LARGEST).all()), f"{name} scores {scores.tolist()}, more than {LARGEST:g} in size"
        )
        if scores.requires_grad:
            (slope,) = torch.autograd.grad(scores.sum(), pixels, allow_unused=True)
            require(slope is None or bool(slope.isfinite().all()), f"the gradient at {name} is not finite")
    return ""


def check_deterministic(subject: Subject) -> str:
    """The same images have the same scores, twice and after loading again."""
    images = subject.images()
    first = subject.score(images, subject.prompts).detach()
    second = subject.score(images, subject.prompts).detach()
    require(subject.close(first, second, 1e-6), f"{first.tolist()}, then {second.tolist()}")
    again = subject.load()(images, subject.prompts).detach()
    require(subject.close(first, again, 1e-6), f"{first.tolist()}, loaded again {again.tolist()}")
    return ""


def check_batch(subject: Subject) -> str:
    """A batch scores as its images one by one; a reward with `per_image = False` need only accept a batch of one."""
    images = subject.images()
    if not subject.reward.per_image:
        alone = subject.score(images[:1], subject.prompts[:1])
        require(alone.shape == (1,) and bool(alone.isfinite().all()), f"one image scores {alone.tolist()}")
        return "a batch-level reward: only a batch of one was tried"
    batch = subject.score(images, subject.prompts).detach()
    single = [subject.score(images[i : i + 1], subject.prompts[i : i + 1]).detach() for i in range(len(images))]
    require(subject.close(batch, torch.cat(single), 1e-3), f"{batch.tolist()}, one by one {torch.cat(single).tolist()}")
    return ""


def check_permutation(subject: Subject) -> str:
    """Another order of the batch gives the same scores in that order."""
    images = subject.images()
    order = list(reversed(range(len(images))))
    scores = subject.score(images, subject.prompts).detach()
    moved = subject.score(images[order], subject.prompts.take(order)).detach()
    require(subject.close(scores[order], moved, 1e-3), f"{scores[order].tolist()}, reordered {moved.tolist()}")
    return ""


def check_frozen(subject: Subject) -> str:
    """Nothing but the images gets a gradient: the reward's own parameters are frozen."""
    images = subject.images().requires_grad_(subject.reward.differentiable)
    scores = subject.score(images, subject.prompts)
    leaves = [leaf for leaf in _leaves(scores) if leaf is not images]
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves[:3])
    require(not leaves, f"{len(leaves)} tensors of the reward require a gradient, e.g. {shapes}")
    return ""


def check_dtypes(subject: Subject) -> str:
    """Images in bfloat16 and float64 are scored, too, and alike."""
    # Half precision rounds relative to the numbers on the way, so errors are measured against the score's range.
    images = subject.images()
    extremes = (torch.zeros_like(images), torch.ones_like(images), images)
    # What has no finite score in single precision is the business of `finite`.
    scores = torch.cat([subject.score(batch, subject.prompts).detach().double() for batch in extremes])
    scale = scores[scores.isfinite()].abs().max().item() if scores.isfinite().any() else 0.0
    for dtype, relative in ((torch.bfloat16, 0.05), (torch.float64, 1e-3)):
        images = subject.images(dtype=dtype)
        wanted = subject.score(images.float(), subject.prompts).detach().double()
        scores = subject.score(images, subject.prompts).detach().double()
        comparable = wanted.isfinite()
        if not comparable.any():
            raise CheckSkipped("no score is finite in float32")
        require(bool(scores[comparable].isfinite().all()), f"{dtype} scores {scores.tolist()}")
        error = (wanted - scores)[comparable].abs().max().item()
        require(error <= relative * scale, f"{dtype} scores {scores.tolist()}, float32 {wanted.tolist()}")
    return ""


def check_gradient(subject: Subject) -> str:
    """The gradient reaches the pixels of every image and agrees with a central difference along a random direction."""
    if not subject.reward.differentiable:
        raise CheckSkipped("not differentiable")
    double = _works_in_double(subject)
    # The larger steps in float64 are for scores that were computed in float32 in part.
    dtype, steps, relative = (
        (torch.float64, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 1e-3)
        if double
        else (torch.float32, (1e-1, 3e-2, 1e-2, 3e-3), 5e-2)
    )
    images = subject.images(dtype=dtype).requires_grad_()
    scores = subject.score(images, subject.prompts)
    require(scores.requires_grad, "the scores have no gradient: something on the way detaches the images")
    (slope,) = torch.autograd.grad(scores.sum(), images, allow_unused=True)
    require(slope is not None, "the scores do not depend on the images")
    require(bool(slope.isfinite().all()), "the gradient is not finite")
    lengths = slope.flatten(1).norm(dim=1)
    require(bool((lengths > 0).all()), f"the gradient is zero for images {(lengths == 0).nonzero().flatten().tolist()}")
    # A purely random direction is nearly orthogonal to the gradient in so many dimensions; half of each is telling.
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(slope)
    direction = noise / noise.norm() + slope / slope.norm()
    direction /= direction.norm()
    analytic = (slope * direction).sum().item()
    errors = []
    with torch.no_grad():
        for step in steps:
            ahead = subject.score(images + step * direction, subject.prompts).double().sum()
            behind = subject.score(images - step * direction, subject.prompts).double().sum()
            errors.append(abs((ahead - behind).item() / (2 * step) - analytic) / abs(analytic))
    name = "float64" if double else "float32"
    require(min(errors) <= relative, f"differs by {min(errors):.1%} from a central difference in {name}")
    return f"within {min(errors):.1e} of a central difference in {name}"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "documented": check_documented,
    "round_trip": check_round_trip,
    "shape": check_shape,
    "finite": check_finite,
    "deterministic": check_deterministic,
    "batch": check_batch,
    "permutation": check_permutation,
    "inputs_untouched": check_inputs_untouched,
    "randomness_untouched": check_randomness_untouched,
    "surroundings_untouched": check_surroundings_untouched,
    "threads": check_threads,
    "prompt_matters": check_prompt_matters,
    "frozen": check_frozen,
    "dtypes": check_dtypes,
    "another_device": check_another_device,
    "gradient": check_gradient,
}
"""All checks by name, cheap ones first."""


def _works_in_double(subject: Subject) -> bool:
    scores = subject.score(subject.images(dtype=torch.float64), subject.prompts).detach()
    # A score that was computed in float32 and converted afterwards is exactly a float32 number.
    return scores.dtype == torch.float64 and not torch.equal(scores, scores.float().double())


def _leaves(scores: Tensor) -> list[Tensor]:
    # Walk the graph that autograd recorded: its AccumulateGrad nodes hold the tensors that would get a gradient.
    todo: list[Any] = [scores.grad_fn] if scores.grad_fn is not None else []
    seen, leaves = set(todo), []
    while todo:
        node = todo.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            leaves.append(variable)
        following: Sequence[Any] = [before for before, _ in node.next_functions if before is not None]
        todo += [before for before in following if before not in seen]
        seen.update(following)
    return leaves

"""One step of the optimiser: gradients added up, made robust, clipped, checked, taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from draft.methods.run import TrainingRun, Update
from draft.scoring.figures import Figures, check_figures, check_gradient, mean_figures


def accumulate_and_step(run: TrainingRun, accumulate: Callable[[TrainingRun, float], Figures], step: int) -> Update:
    """Add up the gradients of `gradient_accumulation_steps` batches and take one step.

    With a weight radius rho_w (RSA-FT; sharpness-aware minimisation, arXiv 2010.01412): the gradient G of the mean
    reward alone, whatever the loss and the penalties, gives E = -rho_w G / |G|, one norm over all weights; a second
    pass takes the same batches and draws at theta + E, and its gradient is applied at theta, which comes back bit for
    bit.

    Args:
        run: The training.
        accumulate: Given the training and a factor of its loss, adds one batch's gradient to the parameters'.
        step: Updates made so far.

    Returns:
        What was done; with a weight radius the figures are those of both passes.

    Raises:
        StageError: The gradient is not finite.
    """
    count = run.settings.gradient_accumulation_steps

    def passed(run: TrainingRun) -> list[Figures]:
        run.optimizer.zero_grad(set_to_none=True)
        return [accumulate(run, 1 / count) for _ in range(count)]

    radius = run.settings.robust.weight_radius
    if not radius:
        figures = passed(run)
        return Update(figures, take_step(run, figures, step))
    draws, weights = run.random.state(), [parameter.detach().clone() for parameter in run.parameters]
    first = passed(run.for_reward_alone())
    norm = nn.utils.get_total_norm([p.grad for p in run.parameters if p.grad is not None])
    _check(float(norm), run, first, step)
    with torch.no_grad():
        for parameter in run.parameters:
            if parameter.grad is not None and norm > 0:
                parameter.add_(parameter.grad * (radius / norm))
    run.random.restore(draws)
    second = passed(run)
    with torch.no_grad():
        for parameter, weight in zip(run.parameters, weights, strict=True):
            parameter.copy_(weight)
    return Update([*first, *second], take_step(run, second, step))


def take_step(run: TrainingRun, figures: Sequence[Figures], step: int) -> float:
    """Clip the gradients that are there, check them, and take one step of the optimiser.

    Args:
        run: The training, gradients in its parameters.
        figures: Of the batches they come from, to name a reward that broke.
        step: Updates made so far.

    Returns:
        The gradient's norm before clipping.

    Raises:
        StageError: A score or the norm is not finite, or a reward's first gradient is zero.
    """
    norm = float(nn.utils.clip_grad_norm_(run.parameters, run.settings.max_grad_norm or float("inf")))
    _check(norm, run, figures, step)
    run.optimizer.step()
    return norm


def _check(norm: float, run: TrainingRun, figures: Sequence[Figures], step: int) -> None:
    means = mean_figures(run.rewards, figures)
    check_figures(run.rewards, means, step, figures)
    check_gradient(norm, run.rewards, means, step, figures)

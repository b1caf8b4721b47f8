"""A chain taken apart: its terms add up to the gradient, its truncations are DRaFT-K's, its adjoints closed forms."""

from __future__ import annotations

import pytest
import torch

from draft.diffusion.probe import agreement, cosines, decompose_gradient
from draft.diffusion.surrogate import roll_out, sample_with_plan
from draft.methods.modules import draw_plan
from draft.methods.values import Draft, DraftK

GRIDS = ["epsilon", "v_prediction", "flow"]
STEPS = 6


def _flat(gradients, net) -> torch.Tensor:
    parts = zip(gradients, net.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("prediction", GRIDS)
def test_the_last_k_terms_are_the_gradient_of_draft_k_for_every_k(toys, prediction: str, eta: float) -> None:
    grid, net, noise = (
        toys.toy_grid(STEPS, prediction, eta=eta),
        toys.Linear(3, STEPS, nonlinear=True),
        toys.noise(2, 3),
    )
    fresh = list(toys.noise(STEPS, 2, 3, seed=1)) if eta else None
    rollout = roll_out(net, grid, noise, fresh)
    end = rollout.states[-1].requires_grad_()
    (slope,) = torch.autograd.grad(end.sin().sum(), end)
    steps: list[int] = []
    chain = decompose_gradient(
        net, grid, rollout, slope, list(net.parameters()), fresh=fresh, advance=lambda: steps.append(len(steps))
    )
    assert steps == list(range(STEPS)) and chain.truncated.shape == (STEPS, 9 * STEPS)
    for k in range(1, STEPS + 1):
        plan = draw_plan(DraftK(k=k), STEPS, torch.Generator())
        reward = sample_with_plan(toys.both(net), grid, plan, noise, fresh=fresh).sin().sum()
        exact = _flat(torch.autograd.grad(reward, list(net.parameters()), allow_unused=True), net)
        torch.testing.assert_close(chain.truncated[k - 1], exact, rtol=1e-10, atol=1e-14)
        before = chain.truncated[k - 2] if k > 1 else torch.zeros_like(exact)
        torch.testing.assert_close(chain.terms[STEPS - k], (exact - before).norm(), rtol=1e-9, atol=1e-14)
    full = sample_with_plan(toys.both(net), grid, draw_plan(Draft(), STEPS, torch.Generator()), noise, fresh=fresh)
    plain = _flat(torch.autograd.grad(full.sin().sum(), list(net.parameters())), net)
    torch.testing.assert_close(chain.truncated[-1], plain, rtol=1e-10, atol=1e-14)


def test_the_adjoints_of_linear_steps_have_their_closed_form(toys) -> None:
    """x' = p x + q W_i x, so lam_i = (p I + q W_i)^T lam_{i+1}."""
    grid, net, noise = toys.toy_grid(4), toys.Linear(3, 4), toys.noise(1, 3)
    w = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    chain = decompose_gradient(net, grid, roll_out(net, grid, noise), w, list(net.parameters()))
    lam, expected = w[0], [w.norm()]
    for i in reversed(range(4)):
        p = grid.next_alpha[i] / grid.alpha[i]
        q = grid.next_sigma[i] - p * grid.sigma[i]
        lam = p * lam + q * net.weights[i].detach().T @ lam
        expected.insert(0, lam.norm())
    torch.testing.assert_close(chain.adjoints, torch.stack(expected), rtol=1e-10, atol=1e-14)


def test_directions_are_compared_with_the_full_gradient_and_over_batches() -> None:
    truncated = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    torch.testing.assert_close(cosines(truncated), torch.tensor([0.0, 0.5**0.5, 1.0]))
    same = torch.tensor([[3.0, 4.0]])
    assert float(agreement(same, torch.tensor([[5.0], [5.0]]))) == 1
    batches = torch.eye(2)  # two gradients at right angles: 1 / sqrt(2)
    assert float(agreement(batches.mean(0, keepdim=True), torch.ones(2, 1))) == pytest.approx(0.5**0.5)

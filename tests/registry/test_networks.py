"""`draft.frozen_network`: a network with its weights, and nobody's random numbers are drawn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import draft
from draft.testing import check_reward


class Net(nn.Module):
    """A small network that draws from two generators and has a dropout and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 1)
        self.register_buffer("mean", torch.full((3, 1, 1), random.random()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.first(images - self.mean).tanh().mean(dim=(2, 3))))[:, 0]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) for name, value in Net().state_dict().items()}


@pytest.mark.parametrize("kind", ["mapping", "safetensors", "pt", "lightning"])
def test_a_network_has_its_weights_and_is_frozen(kind: str, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    source: Any = weights
    if kind == "safetensors":
        save_file(weights, source := tmp_path / "net.safetensors")
    elif kind != "mapping":
        torch.save(weights if kind == "pt" else {"state_dict": weights}, source := tmp_path / "net.pt")
    before = torch.get_rng_state(), random.getstate()
    network = draft.frozen_network(Net, str(source) if kind == "pt" else source, "cpu")
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_of_another_network_are_refused_by_name_and_shape(weights: dict[str, torch.Tensor]) -> None:
    del weights["mean"]
    weights["last.weight"], weights["more"] = torch.zeros(2, 4), torch.zeros(1)
    with pytest.raises(draft.DraftError) as raised:
        draft.frozen_network(Net, weights, "cpu")
    assert str(raised.value) == (
        "the weights are not those of Net: mean is missing, last.weight must be (1, 4) (got (2, 4)), "
        "more is none of its own"
    )


def test_a_file_that_is_missing_broken_or_a_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(draft.DraftError, match=r"is not there \(got '.*none.pt'\)"):
        draft.frozen_network(Net, tmp_path / "none.pt", "cpu")
    for name in ("net.safetensors", "net.pt"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(draft.DraftError, match="cannot be read") as raised:
            draft.frozen_network(Net, tmp_path / name, "cpu")
        assert "save_file" in raised.value.hint
    torch.save(Net(), tmp_path / "whole.pt")
    with pytest.raises(draft.DraftError, match="cannot be read"):
        draft.frozen_network(Net, tmp_path / "whole.pt", "cpu")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(draft.DraftError, match=r"must hold a state dict \(got list\)"):
        draft.frozen_network(Net, tmp_path / "list.pt", "cpu")


def test_a_reward_made_so_keeps_the_contract(weights: dict[str, torch.Tensor]) -> None:
    class Learnt(draft.Reward):
        """What a network makes of an image."""

        name = "learnt"

        def load(self, device: torch.device) -> Any:
            network = draft.frozen_network(Net, weights, device)
            return lambda images, prompts: network(images.float()).to(images.dtype)

    assert all(result.good for result in check_reward(Learnt()))

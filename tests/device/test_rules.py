"""What a pretended accelerator lets pass and refuses, and that a GPU does the same."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from draft.testing import pretended_accelerator

Two = Callable[[Tensor, Tensor], Any]
REFUSED: dict[str, Two] = {
    "add": lambda x, cpu: x + cpu,
    "add in place": lambda x, cpu: cpu.add_(x),
    "add in place to a number": lambda x, cpu: cpu.sum().add_(x.sum()),
    "concatenate": lambda x, cpu: torch.cat([x, cpu]),
    "stack numbers": lambda x, cpu: torch.stack([x.sum(), cpu.sum()]),
    "multiply matrices": lambda x, cpu: x @ cpu.T,
    "convolve": lambda x, cpu: functional.conv1d(x[None], torch.ones(1, 2, 1)),
    "choose": lambda x, cpu: torch.where(x > 1, x, cpu),
    "choose by the host's mask": lambda x, cpu: torch.where(cpu > 1, x, x),
    "look up the host's rows": lambda x, cpu: cpu[(x[:, 0] > 0).long()],
    "look up by the host's ids": lambda x, cpu: functional.embedding(torch.tensor([0]), x),
    "gather by the host's ids": lambda x, cpu: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
    "put rows": lambda x, cpu: x.__setitem__(torch.tensor([0, 1]), cpu),
    "interpolate at a point": lambda x, cpu: torch.lerp(x, cpu, 0.5),
    "write into": lambda x, cpu: torch.add(x, x, out=cpu),
    "to numpy": lambda x, cpu: x.numpy(),
    "to numpy by numpy": lambda x, cpu: __import__("numpy").asarray(x),
    "draw with the host's generator": lambda x, cpu: torch.randn(2, device=x.device, generator=torch.Generator()),
    "draw in place with the host's generator": lambda x, cpu: x.normal_(generator=torch.Generator()),
    "a device that is not there": lambda x, cpu: torch.zeros(1, device="cuda:99"),
    "move to a device that is not there": lambda x, cpu: cpu.to("cuda:99"),
    "put data of the host": lambda x, cpu: torch.nn.functional.linear(x, torch.nn.Linear(3, 2).weight),
    "put a gradient of the host": lambda x, cpu: setattr(x.requires_grad_(), "grad", cpu),
    "pin": lambda x, cpu: x.pin_memory(),
    "quantiles of the host": lambda x, cpu: x.quantile(torch.tensor([0.1, 0.2])),
}
"""What needs tensors of one device, or of this one."""
TAKEN: dict[str, Two] = {
    "add a number": lambda x, cpu: x + cpu[0, 0],
    "add the host's number in place": lambda x, cpu: x.add_(cpu.sum()),
    "choose a number": lambda x, cpu: torch.where(x > 1, x, torch.tensor(0.0)),
    "fill with a number": lambda x, cpu: x.masked_fill(x > 1, torch.tensor(0.0)),
    "put a number where a mask is": lambda x, cpu: x.__setitem__(x > 1, torch.tensor(0.0)) or x,
    "look up by the host's ids": lambda x, cpu: x[torch.tensor([0])],
    "look up by the host's mask": lambda x, cpu: x[torch.tensor([True, False])],
    "copy from the host": lambda x, cpu: x.copy_(cpu),
    "put a slice of the host": lambda x, cpu: x.__setitem__(slice(0, 1), cpu[:1]) or x,
    "one hot": lambda x, cpu: functional.one_hot(x.long()),
    "a quantile": lambda x, cpu: x.quantile(0.5),
    "circular padding": lambda x, cpu: functional.pad(x[None], (1, 1), mode="circular"),
    "causal attention": lambda x, cpu: functional.scaled_dot_product_attention(
        x[None], x[None], x[None], None, 0, True
    ),
    "a new tensor like it": lambda x, cpu: x.new_tensor([1, 2]),
    "new zeros": lambda x, cpu: x.new_zeros(2),
    "numbers": lambda x, cpu: torch.tensor([1.0, 2.0], device=x.device),
    "as a tensor": lambda x, cpu: torch.as_tensor([1.0, 2.0], device=x.device),
    "as a tensor of a tensor": lambda x, cpu: torch.as_tensor(cpu, device=x.device),
    "random numbers": lambda x, cpu: torch.rand_like(x) * torch.rand(3, device=x.device),
    "a saved tensor": lambda x, cpu: _loaded(cpu, x.device),
    "a copy of it": lambda x, cpu: torch.tensor(x),
    "unique values": lambda x, cpu: x.unique(),
    "as a type": lambda x, cpu: cpu.type_as(x),
    "under the device's name": lambda x, cpu: _named(x),
    "a layer that was moved": lambda x, cpu: torch.nn.Linear(3, 2).to(x.device)(x),
}
"""What a device does with what it is given; the result is on it."""
LEFT: dict[str, Two] = {
    "copy to the host": lambda x, cpu: cpu.copy_(x),
    "the host's own": lambda x, cpu: torch.zeros_like(x, device="cpu"),
    "new of the host": lambda x, cpu: x.new_zeros(2, device="cpu"),
    "as a tensor of the host": lambda x, cpu: torch.as_tensor(x, device="cpu"),
    "filled with its number": lambda x, cpu: torch.full((2,), x.sum().item()),
    "moved": lambda x, cpu: x.cpu() + cpu,
    "made of its numbers": lambda x, cpu: torch.tensor([x[0, 0], x[0, 1]]),
}
"""What gives a tensor of the CPU."""


def _named(x: Tensor) -> Tensor:
    with torch.device(x.device):
        return torch.zeros(3)


def _loaded(cpu: Tensor, device: torch.device) -> Tensor:
    file = io.BytesIO()
    torch.save({"a": [cpu]}, file)
    file.seek(0)
    return torch.load(file, map_location=device, weights_only=True)["a"][0]


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Tensor, Tensor]]:
    """A tensor of the device and one of the CPU, both (2, 3)."""
    cpu = torch.arange(6.0).reshape(2, 3)
    if request.param == "real":
        yield cpu.to("cuda:0"), cpu.clone()
        return
    with pretended_accelerator():
        yield cpu.to("cuda:0"), cpu.clone()


@pytest.mark.parametrize("what", REFUSED)
def test_the_device_refuses(pair: tuple[Tensor, Tensor], what: str) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[what](*pair)


@pytest.mark.parametrize("what", TAKEN)
def test_the_device_takes(pair: tuple[Tensor, Tensor], what: str) -> None:
    assert TAKEN[what](*pair).device == torch.device("cuda:0")


@pytest.mark.parametrize("what", LEFT)
def test_the_device_leaves_to_the_host(pair: tuple[Tensor, Tensor], what: str) -> None:
    assert LEFT[what](*pair).device == torch.device("cpu")

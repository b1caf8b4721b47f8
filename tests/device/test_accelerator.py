"""A pretended accelerator: values, gradients, what is counted, and that nothing of it stays."""

from __future__ import annotations

import copy
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from draft import model_path
from draft.testing import pretended_accelerator
from draft.testing.pretended import At, Counts

DEVICE = torch.device("cuda:0")


def test_a_tensor_is_where_it_says_and_holds_its_values(accelerator: Counts) -> None:
    x = torch.arange(6.0, device="cuda").reshape(2, 3)
    assert (x.device, x.is_cuda, x.is_cpu, x.get_device()) == (DEVICE, True, False, 0)
    assert x.cpu().equal(torch.arange(6.0).reshape(2, 3))
    assert x[0].sum().item() == 3
    assert f"{x.sum():.1f}" == "15.0"
    assert repr(x.sum()) == "tensor(15., device='cuda:0')"
    x[0].add_(1)
    assert x.tolist() == [[1, 2, 3], [3, 4, 5]], "a view is of the same values"
    assert x.unsqueeze_(0).shape == (1, 2, 3)
    assert x.to(torch.bfloat16).to("cpu", torch.float64).dtype == torch.float64
    assert x.to(DEVICE) is x
    assert x.to(DEVICE, copy=True) is not x


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.square().sum(),
        lambda x: x[:, [0, 1]].max(dim=1).values.sum(),
        lambda x: x[x > 2].prod(),
        lambda x: x.sort(dim=1, descending=True).values[:, 0].sum(),
        lambda x: x.quantile(0.3),
        lambda x: x.topk(2).values.sum() + x.median() + x.std(),
        lambda x: x.bfloat16().float().pow(2).sum(),
        lambda x: sum(part.sum() * k for k, part in enumerate(x.unbind(1)[:2])),
        lambda x: functional.conv2d(x[None, None], torch.ones(1, 1, 2, 2, device=x.device)).sin().sum(),
        lambda x: functional.interpolate(x[None, None], size=(5, 4), mode="bicubic", antialias=True).sin().sum(),
        lambda x: (
            functional.grid_sample(x[None, None], x[None, :, :2, None].expand(-1, -1, -1, 2), align_corners=True)
            .sin()
            .sum()
        ),
        lambda x: functional.scaled_dot_product_attention(x, x, x).sum(),
        lambda x: functional.cross_entropy(x, torch.tensor([1, 2], device=x.device), label_smoothing=0.1),
        lambda x: torch.linalg.solve(x @ x.T, x).sum(),
        lambda x: torch.fft.rfft2(x).abs().sum(),
        lambda x: (x.cpu() * 2).to(x.device).mul(x).sum(),
        lambda x: torch.utils.checkpoint.checkpoint(
            lambda y: y.sin() * torch.tensor(2.0, device=y.device), x, use_reentrant=False
        ).sum(),
        lambda x: _Halves.apply(x)[0].square().sum(),
    ],
)
def test_gradients_are_those_of_the_cpu(function: Callable[[Tensor], Tensor], accelerator: Counts) -> None:
    pixels = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.5, 6.0]], requires_grad=True)
    (expected,) = torch.autograd.grad(function(pixels), pixels)
    there = pixels.detach().to(DEVICE).requires_grad_()
    function(there).backward()
    assert there.grad is not None
    assert there.grad.device == DEVICE
    assert there.grad.cpu().allclose(expected)
    # A leaf of the CPU gets its gradient there.
    function(pixels.to(DEVICE)).cpu().backward()
    assert pixels.grad is not None
    assert pixels.grad.device.type == "cpu"
    assert pixels.grad.allclose(expected)


class _Halves(torch.autograd.Function):
    """Twice x and thrice x; autograd makes zeros for the one that nobody uses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return 2 * x, 3 * x

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        return 2 * slopes[0] + 3 * slopes[1]


def test_the_second_derivative_goes_through_a_move(accelerator: Counts) -> None:
    x = torch.tensor([2.0], device=DEVICE, requires_grad=True)
    (slope,) = torch.autograd.grad(x.cpu().pow(3).to(DEVICE).sum(), x, create_graph=True)
    slope.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [12.0]


def test_a_backward_function_that_mixes_devices_is_found(accelerator: Counts) -> None:
    class Tabled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *slopes: Any) -> Any:
            return slopes[0] * torch.full((3,), 2.0)

    x = torch.ones(3, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"test_accelerator\.py:\d+ return slopes"):
        Tabled.apply(x).sum().backward()


def test_a_network_moves_trains_and_is_saved(accelerator: Counts) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    twin = copy.deepcopy(network)
    network.to(DEVICE)
    x = torch.rand(5, 3)
    for model, batch, fused in ((twin, x, False), (network, x.to(DEVICE), True)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        for _ in range(2):
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert all(isinstance(p, nn.Parameter) and p.device == DEVICE for p in network.parameters())
    saved = io.BytesIO()
    torch.save(copy.deepcopy(network).state_dict(), saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True, map_location="cpu")
    for name, weight in twin.state_dict().items():
        assert loaded[name].allclose(weight, atol=1e-6), name
        assert loaded[name].device.type == "cpu"
    assert network.half()[0].weight.dtype == torch.float16
    assert network.cpu()[0].weight.device.type == "cpu"


def test_libraries_load_onto_the_device(accelerator: Counts, tmp_path: Path) -> None:
    x = torch.arange(3.0, device=DEVICE)
    save_file({"x": x, "y": x.clone()}, tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors", device="cuda:0")["x"].device == DEVICE
    assert load_file(tmp_path / "x.safetensors")["y"].tolist() == [0, 1, 2]
    # As safetensors before 0.8 does it.
    stored = torch.asarray(torch.ones(2).untyped_storage(), dtype=torch.uint8, device="cuda:0")
    assert stored.device == DEVICE and stored.view(torch.float32).tolist() == [1, 1]
    assert torch.asarray(x, copy=True).equal(x) and torch.asarray([1.0, 2.0]).device.type == "cpu"
    pinned = torch.empty(3, pin_memory=True).copy_(x.cpu()).pin_memory()
    assert pinned.to(DEVICE, non_blocking=True).equal(x)
    clip = AutoModel.from_pretrained(str(model_path("emoji/clip")), device_map="cuda:0")
    assert {weight.device for weight in clip.parameters()} == {DEVICE}
    scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="takes no modules of TorchScript at tests/device/test_accelerator.py:"):
        scripted.to(DEVICE)


def test_what_the_host_reads_is_counted_with_the_line_that_asked(accelerator: Counts) -> None:
    x = torch.arange(3.0, device=DEVICE)
    nothing_read = accelerator.copy()
    y = (x * 2).exp() + 1
    assert (accelerator - nothing_read).reads == {}
    before = accelerator.copy()
    for _ in range(2):
        y.sum().item()
    (at,) = (accelerator - before).reads
    assert (accelerator - before).reads[at] == 2
    assert at.what == "item"
    assert at.line.startswith("tests/device/test_accelerator.py:") and at.line.endswith(" y.sum().item()")
    assert f"     2  item                 {at.line}" in str(accelerator - before)


@pytest.mark.parametrize(
    ("what", "read"),
    [
        ("to(cpu)", lambda x: x.cpu()),
        ("to(cpu)", lambda x: torch.as_tensor(x, device="cpu")),
        ("tolist", lambda x: x.tolist()),
        ("item", lambda x: bool((x > 1).any())),
        ("item", lambda x: float(x[0])),
        ("nonzero", lambda x: x.nonzero()),
        ("index with a mask", lambda x: x[x > 1]),
        ("index_put_ with a mask", lambda x: x.__setitem__(x > 0, x[1:].clone())),
        ("copy_ to cpu", lambda x: torch.zeros(3).copy_(x)),
        ("synchronize", lambda x: torch.cuda.synchronize()),
        ("synchronize", lambda x: torch.accelerator.current_stream().synchronize()),
        ("saved", lambda x: torch.save(x, io.BytesIO())),
        ("", lambda x: x.__setitem__(x > 1, 0.0)),
        ("", lambda x: x.isfinite().all()),
        ("", lambda x: x.add_(1).view(3, 1).expand(3, 2).float().sum()),
        ("", lambda x: nn.utils.clip_grad_norm_([x], 1.0)),
    ],
)
def test_each_way_to_read_is_counted(accelerator: Counts, what: str, read: Callable[[Tensor], Any]) -> None:
    x = torch.arange(3.0, device=DEVICE)
    x.grad = torch.ones(3, device=DEVICE)
    before = accelerator.copy()
    read(x)
    found = {at.what for at in (accelerator - before).reads}
    assert found - ({"index with a mask"} if what == "" else set()) == ({what} if what else set())


def test_copies_to_the_device_and_float64_on_it_are_counted(accelerator: Counts) -> None:
    x = torch.ones(3).to(DEVICE)
    torch.tensor(1.0, device=DEVICE)  # a single number goes with the operator
    x[torch.tensor([0])].double()
    assert sorted(at.what for at in accelerator.copies) == ["index from cpu", "to(cuda)"]
    assert [at.what for at in accelerator.doubles] == ["_to_copy"]
    assert accelerator.operators["index"] == 1
    assert isinstance(next(iter(accelerator.copies)), At)


def test_torch_says_that_there_is_one_accelerator(accelerator: Counts) -> None:
    assert torch.cuda.is_available() and torch.accelerator.is_available()
    assert (torch.cuda.device_count(), torch.cuda.current_device()) == (1, 0)
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    assert torch.cuda.get_device_properties(0).total_memory == torch.cuda.mem_get_info()[0] > 1e10
    with torch.cuda.device(0), torch.random.fork_rng():
        torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="the pretended device does not have what was asked of torch.cuda at tests/"):
        torch.cuda.init()


def test_another_thread_may_move_tensors(accelerator: Counts) -> None:
    moved: list[Tensor] = []
    thread = threading.Thread(target=lambda: moved.append(torch.ones(2).to(DEVICE).cpu().to("cuda")))
    thread.start()
    thread.join()
    assert moved[0].tolist() == [1, 1]


def state() -> dict[str, Any]:
    """What of torch could have been changed."""
    places: tuple[Any, ...] = (torch, torch.Tensor, torch.cuda, torch.accelerator, torch.autograd, torch._C)
    found = {f"{place.__name__}.{name}": id(value) for place in places for name, value in vars(place).items()}
    return found | {
        "overwrite": torch.__future__.get_overwrite_module_params_on_conversion(),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "fake": torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE),
    }


def test_everything_is_as_before_afterwards() -> None:
    before = state()
    with pretended_accelerator():
        assert state() != before
        torch.zeros(2, device=DEVICE).requires_grad_().sum().backward()
    assert state() == before
    with pytest.raises(ZeroDivisionError), pretended_accelerator():
        raise ZeroDivisionError
    assert state() == before
    assert not torch.cuda.is_initialized()


def test_the_libraries_forget_it_and_remember_what_was_before() -> None:
    from accelerate.state import PartialState
    from transformers.utils.import_utils import is_torch_cuda_available

    here = torch.cuda.is_available()
    PartialState(cpu=True)
    try:
        with pretended_accelerator():
            assert PartialState().device.type == "cuda"
            assert is_torch_cuda_available()
        assert PartialState().device.type == "cpu"
        assert is_torch_cuda_available() == here
    finally:
        PartialState._reset_state()


def test_a_tensor_that_is_left_over_can_be_shown_but_not_used() -> None:
    with pretended_accelerator():
        x = torch.ones(2, device=DEVICE)
    assert repr(x) == "tensor([1., 1.], device='cuda:0')"
    with pytest.raises(RuntimeError, match="which is not there any more"):
        x + 1


def test_there_is_one_at_a_time(accelerator: Counts) -> None:
    with pytest.raises(RuntimeError, match="is there already"), pretended_accelerator():
        raise AssertionError("a second one")
    assert torch.ones(1, device=DEVICE).item() == 1


def test_a_new_accelerator_begins_to_count_at_nothing() -> None:
    with pretended_accelerator() as first:
        torch.ones(2, device=DEVICE).sum().item()
    with pretended_accelerator() as second:
        pass
    assert first.operators
    assert not second.operators
    assert "torch" in sys.modules

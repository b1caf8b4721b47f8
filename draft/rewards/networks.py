"""A network with given weights, as a reward needs it: frozen, and made without a draw from anybody's generator."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from draft.errors import DraftError
from draft.rewards.surroundings import without_drawing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Network = TypeVar("Network", bound="torch.nn.Module")
_NAMED = 3


def frozen_network(
    build: Callable[[], Network], weights: str | Path | Mapping[str, Tensor], device: torch.device | str
) -> Network:
    """Make a network and give it its weights: frozen, in evaluation mode, on a device.

    Layers draw their first weights at random. Here the global random generators are as before afterwards, so that a
    reward's network does not change what anybody else draws.

    Args:
        build: Makes the network, e.g. its class.
        weights: A state dict, or a file with one: `.safetensors`, or what `torch.save` wrote, of which only tensors are
            read. It must hold every parameter and buffer of the network, each in its shape, and nothing else.
        device: Where to put it.

    Returns:
        The network. Its parameters have the dtype that `build` gave them, and get no gradient.

    Raises:
        DraftError: The file is missing or cannot be read, or its tensors are not the network's.

    Example:
        net = draft.frozen_network(Net, Path(__file__).with_name("net.safetensors"), device)
    """
    import torch  # noqa: F401 - its generator is put back, too, where `build` is the first to need it

    with without_drawing():
        network = build()
    tensors = weights if isinstance(weights, Mapping) else _read(Path(weights))
    if wrong := _mismatch(network.state_dict(), tensors):
        source = "" if isinstance(weights, Mapping) else f" in {str(weights)!r}"
        raise DraftError(f"the weights{source} are not those of {type(network).__name__}: {wrong}")
    network.load_state_dict(dict(tensors))
    network.requires_grad_(False)
    return network.eval().to(device)


def _read(file: Path) -> Mapping[str, Tensor]:
    import torch

    if not file.is_file():
        hint = "weights of a package lie beside its module: Path(__file__).with_name('net.safetensors')"
        raise DraftError(f"the file of the weights is not there (got {str(file)!r})", hint=hint)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        tensors: Any = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise DraftError(
            f"a .safetensors file needs the package {error.name!r}", hint="pip install safetensors"
        ) from None
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, *_broken_safetensors()) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise DraftError(
            f"the file of the weights cannot be read (got {str(file)!r}): {first[:200]}",
            hint="it must hold a state dict and nothing else; safetensors.torch.save_file(network.state_dict(), file) "
            "writes one",
        ) from error
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise DraftError(f"the file {str(file)!r} must hold a state dict (got {type(tensors).__name__})")
    return tensors


def _broken_safetensors() -> tuple[type[Exception], ...]:
    try:
        from safetensors import SafetensorError
    except ImportError:
        return ()
    return (SafetensorError,)


def _mismatch(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What is wrong with the names and shapes of tensors; empty text: nothing."""
    shapes = [
        f"{name} must be {tuple(wanted[name].shape)} (got {tuple(given[name].shape)})"
        for name in wanted
        if name in given and wanted[name].shape != given[name].shape
    ]
    missing = [f"{name} is missing" for name in wanted if name not in given]
    unknown = [f"{name} is none of its own" for name in given if name not in wanted]
    wrong = [*missing, *shapes, *unknown]
    rest = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return ", ".join(wrong[:_NAMED]) + rest

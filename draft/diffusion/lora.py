"""LoRA on a denoiser through peft: fresh, loaded, switched on and off, and read back as plain factors.

Base adapters (`load_base_adapters`) belong to the base model from then on: no switch turns them off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from draft.diffusion.settings import LoraSettings
from draft.errors import DraftError
from draft.family import ATTENTION

TRAINED = "default"
"""Name of the adapter that `add_lora` makes."""

_BASE_PREFIX = "beneath_"
# peft keeps adapters by name, and a layer knows the names it has: the name says which ones stay on.


def add_lora(network: nn.Module, settings: LoraSettings, *, seed: int) -> None:
    """Put a fresh LoRA on the network: W x becomes W x + B A x, with A random and B = 0 (arXiv 2106.09685).

    alpha = rank, so the scale is 1. A is uniform in +-1/sqrt(in), peft's default, but from its own generator. The
    adapter's parameters are float32 (float64 on a float64 model) whatever the base is; only they require a gradient.

    Args:
        network: The network, changed in place.
        settings: Rank and target modules; None: the attention.
        seed: Seed of A.

    Raises:
        DraftError: A target names no module of the network.
    """
    names = [name for name, _ in network.named_modules()]
    targets = settings.targets or ATTENTION
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise DraftError(
                f"no module of the model ends with {target!r} (in lora.targets)",
                hint="attention has to_q, to_k, to_v and to_out.0",
            )
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.rank, target_modules=list(targets), init_lora_weights=False
    )
    _inject(config, network, TRAINED)
    generator = torch.Generator("cpu").manual_seed(seed)
    network.requires_grad_(False)
    with torch.no_grad():
        for _, layer in _layers(network, TRAINED):
            a, b = _weights(layer, TRAINED)
            bound = 1 / math.sqrt(a[0].numel())
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            b.zero_()
            a.requires_grad_(True)
            b.requires_grad_(True)
    _activate(network, {TRAINED: 1.0})


def begin_lora(network: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Let the LoRA that learns begin at a dW: a module's first rank-one terms are the given ones.

    The others keep the A that `add_lora` drew and B = 0, so that they add nothing yet and all of them learn. A module
    that is not among the factors stays as `add_lora` left it.

    Args:
        network: The network with a fresh LoRA of `add_lora`, changed in place.
        factors: Module path to (A, B) with dW = B A, their rank at most the LoRA's.

    Raises:
        DraftError: A module has no LoRA, or the rank or the dimensions do not fit.
    """
    layers = dict(_layers(network, TRAINED))
    with torch.no_grad():
        for path, (down, up) in factors.items():
            if path not in layers:
                raise DraftError(f"{path} has no LoRA to begin at the given one")
            a, b = _weights(layers[path], TRAINED)
            rank = down.shape[0]
            if rank > a.shape[0]:
                raise DraftError(f"{path} has a LoRA of rank {a.shape[0]}, too small for the given one (got {rank})")
            if (up.shape[0], down[0].numel()) != (b.shape[0], a[0].numel()):
                got, wanted = (up.shape[0], *down.shape[1:]), (b.shape[0], *a.shape[1:])
                raise DraftError(
                    f"the adapter does not fit {path}: the model's weight is {wanted} (got {got})",
                    hint="it was trained on another model",
                )
            a[:rank] = down.reshape(rank, *a.shape[1:])
            b[:, :rank] = up.reshape(b.shape[0], rank, *b.shape[2:])


def load_base_adapters(
    network: nn.Module, adapters: Sequence[tuple[Mapping[str, tuple[Tensor, Tensor]], float]]
) -> None:
    """Put frozen adapters under whatever comes later: W x becomes W x + sum_i w_i B_i A_i x, for good.

    They stay on when the others are switched on and off, so that the base model is the model with them. They are kept
    apart from W, in float32, because a W in bfloat16 would swallow them in part.

    Args:
        network: The network, changed in place.
        adapters: Factors as in `load_lora`, and the weight, of each.

    Raises:
        DraftError: A module is missing in the network or has other dimensions.
    """
    for index, (factors, weight) in enumerate(adapters):
        key = f"{_BASE_PREFIX}{index}"
        load_lora(network, factors, name=key)
        for _, layer in _layers(network, key):
            layer.set_scale(key, weight)
    _activate(network, {})


def load_lora(network: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], *, name: str) -> None:
    """Put a trained LoRA on the network, frozen, beside any others.

    Args:
        network: The network, changed in place.
        factors: Module path to (A, B), shapes (r, in) and (out, r), scale already folded in.
        name: The name `use_lora` will know it by.

    Raises:
        DraftError: A module is missing in the network or has other dimensions.
    """
    if not factors:
        raise DraftError(f"adapter {name!r} has no module for this model")
    modules = dict(network.named_modules())
    for path, (a, b) in factors.items():
        module = modules.get(path)
        if module is None:
            raise DraftError(
                f"adapter {name!r} has a module the model lacks: {path}", hint="it was trained on another model"
            )
        base = module.get_base_layer() if isinstance(module, LoraLayer) else module
        weight = getattr(base, "weight", torch.empty(1, 0))
        # A convolution of side 1 is written as a matrix by some tools.
        if (b.shape[0], a[0].numel()) != (weight.shape[0], weight[0].numel()):
            shape, got = tuple(weight.shape), (b.shape[0], *a.shape[1:])
            raise DraftError(
                f"adapter {name!r} does not fit {path}: the model's weight is {shape} (got {got})",
                hint="it was trained on another model",
            )
    ranks = {re.escape(path): a.shape[0] for path, (a, _) in factors.items()}
    pattern = "|".join(ranks)
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=rf"(?:{pattern})",
        init_lora_weights=False,
    )
    key = _key(name)
    trained = {id(p) for p in lora_parameters(network)}
    _inject(config, network, key)
    with torch.no_grad():
        for path, layer in _layers(network, key):
            a, b = factors[path]
            for weight, factor in zip(_weights(layer, key), (a, b), strict=True):
                weight.copy_(factor.reshape(weight.shape))
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def lora_factors(network: nn.Module, name: str = TRAINED) -> dict[str, tuple[Tensor, Tensor]]:
    """Read an adapter back: module path to (A, B) on the CPU, float32, with dW = B A.

    Args:
        network: The network.
        name: The adapter's name.

    Returns:
        Factors, sorted by path.
    """
    key = _key(name)
    weights = {path: _weights(layer, key) for path, layer in _layers(network, key)}

    def copied(weight: nn.Parameter) -> Tensor:
        return weight.detach().to("cpu", torch.float32, copy=True)

    return {path: (copied(a), copied(b)) for path, (a, b) in sorted(weights.items())}


def use_lora(network: nn.Module, name: str | None, scale: float = 1.0) -> None:
    """Switch to one adapter at a scale, or to the base model.

    Args:
        network: The network.
        name: The adapter's name; None: the base model.
        scale: Factor of the adapter's effect; 0 is the base model too.

    Raises:
        DraftError: There is no adapter of that name.
    """
    use_loras(network, {} if name is None else {name: scale})


def use_loras(network: nn.Module, scales: Mapping[str, float], *, missing: bool = False) -> None:
    """Switch to a sum of adapters, W + sum_i s_i B_i A_i; all others are off.

    Args:
        network: The network.
        scales: Adapter's name to the factor of its effect. One at 0 is switched off, so that without any other the
            network is the base model, bit for bit.
        missing: Whether an adapter that the network does not have is passed over.

    Raises:
        DraftError: There is no adapter of a name.
    """
    for name in () if missing else scales:
        if not _layers(network, _key(name)):
            raise DraftError(f"there is no adapter {name!r} on this model")
    _activate(network, {_key(name): scale for name, scale in scales.items() if scale})


@contextmanager
def lora_off(network: nn.Module) -> Iterator[None]:
    """Make the network the base model for a while, whichever adapter was on; what is trainable stays so.

    Args:
        network: The network.

    Yields:
        Nothing.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer) and not layer.disable_adapters]
    with _switched([(layer, _base_keys(layer)) for layer in layers]):
        yield


def adapters_kept(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for computing a network twice: as it is, and again with the adapters that are on now.

    Args:
        network: The network, or a part of it.

    Returns:
        The first changes nothing; within the second the same adapters are on as when this was called.
    """
    layers = [(module, _keys(module)) for module in network.modules() if isinstance(module, LoraLayer)]
    required = [(parameter, parameter.requires_grad) for layer, _ in layers for parameter in layer.parameters()]

    @contextmanager
    def again() -> Iterator[None]:
        changed = [(layer, keys) for layer, keys in layers if _keys(layer) != keys]
        with _switched(changed):
            for parameter, flag in required if changed else ():
                parameter.requires_grad_(flag)
            yield

    return nullcontext(), again()


def lora_norm(network: nn.Module) -> Tensor:
    """The sum of |B A|^2 over the adapted modules, with gradient: tr((B^T B)(A A^T)), without forming B A.

    Args:
        network: The network with a trained LoRA of `add_lora`.

    Returns:
        A scalar >= 0.
    """
    total = torch.zeros((), device=next(network.parameters()).device)
    for _, layer in _layers(network, TRAINED):
        a, b = (weight.flatten(1) for weight in _weights(layer, TRAINED))
        total = total + ((b.T @ b) * (a @ a.T)).sum()
    return total


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn, in a fixed order: A and B of each module, modules in the network's own order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad] if has_lora(network) else []


def adapter_parameters(network: nn.Module, name: str) -> list[nn.Parameter]:
    """A and B of each module of one adapter, modules in the network's own order, whatever requires a gradient."""
    return [weight for _, layer in _layers(network, _key(name)) for weight in _weights(layer, _key(name))]


def has_lora(network: nn.Module) -> bool:
    """Whether any adapter is on the network."""
    return any(isinstance(module, LoraLayer) for module in network.modules())


def _inject(config: LoraConfig, network: nn.Module, key: str) -> None:
    inject_adapter_in_model(config, network, key)
    double = next(network.parameters()).dtype == torch.float64
    for _, layer in _layers(network, key):
        layer.lora_A[key].to(torch.float64 if double else torch.float32)
        layer.lora_B[key].to(torch.float64 if double else torch.float32)


def _activate(network: nn.Module, scales: Mapping[str, float]) -> None:
    """Switch every layer to its base adapters and to these, by key, and to nothing else."""
    required = {parameter: parameter.requires_grad for parameter in network.parameters()}
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            requested = [key for key in scales if key in layer.lora_A]
            for key in requested:
                layer.set_scale(key, scales[key])
            _set(layer, [*_base_keys(layer), *requested])
    for parameter, flag in required.items():  # peft switches gradients along with adapters
        parameter.requires_grad_(flag)


@contextmanager
def _switched(layers: Sequence[tuple[LoraLayer, list[str]]]) -> Iterator[None]:
    """Have the given adapters on in some layers, and afterwards those that were."""
    parameters = [parameter for layer, _ in layers for parameter in cast("nn.Module", layer).parameters()]
    required = [(parameter, parameter.requires_grad) for parameter in parameters]
    before = [_keys(layer) for layer, _ in layers]
    for layer, keys in layers:
        _set(layer, keys)
    try:
        yield
    finally:
        for (layer, _), keys in zip(layers, before, strict=True):
            _set(layer, keys)
        for parameter, flag in required:  # peft switches gradients along with adapters
            parameter.requires_grad_(flag)


def _keys(layer: LoraLayer) -> list[str]:
    """The adapters that are on."""
    return [] if layer.disable_adapters else list(layer.active_adapters)


def _base_keys(layer: LoraLayer) -> list[str]:
    return [key for key in layer.lora_A if key.startswith(_BASE_PREFIX)]


def _set(layer: LoraLayer, keys: list[str]) -> None:
    layer.enable_adapters(bool(keys))
    if keys:
        layer.set_adapter(keys)


def _layers(network: nn.Module, key: str) -> list[tuple[str, LoraLayer]]:
    return [(path, m) for path, m in network.named_modules() if isinstance(m, LoraLayer) and key in m.lora_A]


def _weights(layer: Any, key: str) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[key].weight, layer.lora_B[key].weight


def _key(name: str) -> str:
    return name.replace(".", "_")  # a module's name cannot hold a dot

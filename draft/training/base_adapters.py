"""The adapters a training uses: the one that its LoRA begins at, and the frozen base adapters under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from draft.adapters.files.formats import Adapter, Factors, denoiser_factors, read_adapter
from draft.adapters.identity import adapter_digest
from draft.diffusion.families import TextToImage
from draft.diffusion.lora import add_lora, begin_lora, load_base_adapters
from draft.diffusion.settings import LoraSettings
from draft.errors import DraftError, StageError
from draft.family import ATTENTION
from draft.files import sha256
from draft.progress import Progress


@dataclass(frozen=True)
class AdapterFiles:
    """The adapter files that a training uses.

    Args:
        init: What the LoRA that learns begins at; None: a fresh one, dW = 0.
        base: Adapters that stay as they are, under the one that learns, each with its weight.
    """

    init: Path | None = None
    base: tuple[tuple[Path, float], ...] = ()

    def identity(self) -> list[list[str | float]]:
        """What each file is for, its content's sha256 and its weight; nothing where there are no files."""
        init: list[list[str | float]] = [["init", _digest(self.init)]] if self.init else []
        # Not "base": the checkpoints of earlier trainings hold this word.
        return init + [["beneath", _digest(path), weight] for path, weight in self.base]


FRESH = AdapterFiles()
"""A fresh LoRA on the bare model."""


@dataclass(frozen=True)
class AdapterFactors:
    """The adapter files, read: factors (A, B) in float64 by module path within the denoiser.

    Args:
        init: Those that the LoRA begins at; None: a fresh one.
        base: Those of each base adapter, with its weight.
        families: File to the family it is of.
    """

    init: Mapping[str, tuple[Tensor, Tensor]] | None
    base: tuple[tuple[Mapping[str, tuple[Tensor, Tensor]], float], ...]
    families: Mapping[Path, str]


def read_factors(adapters: AdapterFiles, lora: LoraSettings, progress: Progress) -> AdapterFactors:
    """Read the files and see whether the LoRA that is to learn can begin at the first.

    Args:
        adapters: The files.
        lora: Rank and targets of the LoRA that learns.
        progress: Told about parts of an adapter that cannot be applied.

    Returns:
        Their factors.

    Raises:
        StageError: A file cannot be read or touches text encoders alone; `init` has a rank above `lora.rank`, or
            modules outside `lora.targets`.
    """
    families: dict[Path, str] = {}

    def read(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
        adapter = read_adapter(path)
        families[path] = adapter.family
        try:
            factors = denoiser_factors(_double(adapter))
        except DraftError as error:
            error.where = error.where or str(path)
            raise
        if skipped := len(adapter.modules) - len(factors):
            progress.say(f"adapter {path}: its {skipped} text-encoder modules are not applied, only the UNet's are")
        return factors

    base = tuple((read(path), weight) for path, weight in adapters.base)
    if adapters.init is None:
        return AdapterFactors(None, base, families)
    init = read(adapters.init)
    _check_init(init, lora, adapters.init)
    return AdapterFactors(init, base, families)


def apply_adapters(factors: AdapterFactors, model: TextToImage, lora: LoraSettings, *, seed: int) -> None:
    """Put the base adapters on the model, and on top the LoRA that learns, which begins at its `init`.

    Args:
        factors: What was read.
        model: The model, changed in place.
        lora: Rank and targets of the LoRA that learns.
        seed: Seed of what is random in it.

    Raises:
        DraftError: An adapter is for another model.
    """
    for path, family in factors.families.items():
        if family != model.family.name:
            raise StageError(
                f"the adapter is for another family of models, {family}; this model is {model.family.name}",
                where=str(path),
            )
    load_base_adapters(model.network, factors.base)
    add_lora(model.network, lora, seed=seed)
    if factors.init is not None:
        begin_lora(model.network, factors.init)


def _check_init(init: Mapping[str, tuple[Tensor, Tensor]], lora: LoraSettings, path: Path) -> None:
    targets = lora.targets or ATTENTION
    outside = [name for name in init if not any(name == t or name.endswith(f".{t}") for t in targets)]
    if outside:
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        raise StageError(
            f"init_adapter changes modules that lora.targets does not name: {', '.join(outside[:3])}{more}",
            where=str(path),
            hint="add the ends of their names to lora.targets, or put the adapter under base_adapters, where it stays",
        )
    rank = max(a.shape[0] for a, _ in init.values())
    if rank > lora.rank:
        raise StageError(
            f"init_adapter has rank {rank}, and the LoRA that learns lora.rank {lora.rank}",
            where=str(path),
            hint=f"set lora.rank: {rank}, or cut the adapter with `draft resize` to rank {lora.rank}",
        )


def _digest(path: Path) -> str:
    # Checkpoints of earlier trainings hold a folder's digest, which covers all its files.
    return sha256(path) if path.is_dir() else adapter_digest(path)


def _double(adapter: Adapter) -> Adapter:
    """The adapter in float64, so that folding its scale in rounds nothing."""
    modules = {name: Factors(f.down.double(), f.up.double(), f.scale) for name, f in adapter.modules.items()}
    return Adapter(modules, adapter.family, adapter.metadata)

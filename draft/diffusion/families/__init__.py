"""Text-to-image models by family: which there are, which one a model is of, loading it. Importing it costs no torch.

A family is one file here and one row in `rows.py`; packages bring more through the hook `draft_families`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from draft.diffusion.families.family import Load, TextToImage
from draft.diffusion.families.rows import FAMILIES
from draft.errors import DraftError, PluginError
from draft.family import AdapterFiles, Family, Guidance
from draft.requirements import DISTRIBUTION, require
from draft.rewards.discovery import EXTENSIONS, turned_off
from draft.rewards.extensions import derived_model, make_derived, offered_families

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "AdapterFiles",
    "Family",
    "Guidance",
    "Load",
    "TextToImage",
    "count_parameters",
    "families",
    "family_named",
    "family_of",
    "load_text_to_image",
    "trainable",
]

_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt")


def families() -> dict[str, Family]:
    """All families by name: Draft's own and those of installed packages.

    Returns:
        Name to row, Draft's own first.

    Raises:
        PluginError: Two have one name, or one pipeline class.
    """
    offered = [(DISTRIBUTION, family) for family in FAMILIES] + offered_families()
    by_name: dict[str, tuple[str, Family]] = {}
    for dist, family in offered:
        for other_dist, other in by_name.values():
            shared = {"name": family.name, "pipeline": family.pipeline}.items() & vars(other).items()
            if shared:
                what = " and ".join(f"the {key} {value!r}" for key, value in sorted(shared))
                raise PluginError(
                    f"two model families have {what}: {other.name!r} of {other_dist} and {family.name!r} of {dist}",
                    hint=f"uninstall one of the packages, or set DRAFT_PLUGINS without {dist}",
                )
        by_name[family.name] = (dist, family)
    return {name: family for name, (_, family) in by_name.items()}


def family_named(name: str) -> Family:
    """The family of a name, as adapter files give it.

    Args:
        name: For example `sd`.

    Returns:
        The row; packages are asked only for what is not Draft's own.

    Raises:
        DraftError: There is none.
    """
    builtin = next((family for family in FAMILIES if family.name == name), None)
    family = builtin or families().get(name)
    if family is None:
        hint = turned_off(EXTENSIONS) or f"known: {', '.join(families())}"
        raise DraftError(f"unknown family of models {name!r}", hint=hint)
    return family


def trainable() -> list[Family]:
    """The families whose models can be loaded and trained."""
    return [family for family in families().values() if family.load]


def family_of(model: str) -> Family | None:
    """The family of a model, from its files' names and headers; no weights are read.

    Args:
        model: A folder in diffusers' format, a `.safetensors` checkpoint, or a hub id.

    Returns:
        Its family; None where it is known once the model is loaded: of a hub id, or a derived model that names none.

    Raises:
        DraftError: The folder or the file holds no model, or one of a family that cannot be trained; the error names
            what it is and what can be.
    """
    path = Path(model)
    if path.is_dir():
        return _of_pipeline(model, _index(path), folder=path)
    if path.is_file() or path.suffix in _WEIGHTS:
        return _of_checkpoint(path)
    derived = derived_model(model)
    return family_named(derived.family) if derived is not None and derived.family else None


def load_text_to_image(model: str, *, device: torch.device, dtype: torch.dtype) -> TextToImage:
    """Load a text-to-image model, frozen and in evaluation mode.

    Args:
        model: A folder in diffusers' format, a `.safetensors` checkpoint, or an id on the Hugging Face hub.
        device: Where to.
        dtype: Precision of the weights.

    Returns:
        The model.

    Raises:
        DraftError: Weights are missing or unreachable, a pickle was given, or the family is not supported.
    """
    family = _family(model)
    require([family.needs] if family.needs else [], of=f"the family {family.name!r}")
    load: Load = _imported(family.load, family)
    return load(model, device=device, dtype=dtype)


def count_parameters(model: str) -> dict[str, int]:
    """Count the parameters of a model's denoiser and text encoders before its weights are read.

    Args:
        model: A folder in diffusers' format, a `.safetensors` checkpoint, or an id on the Hugging Face hub, of which
            only configurations are downloaded.

    Returns:
        Component to parameters; of a checkpoint all text encoders count as the first. What cannot be known, or is of no
        family that can be trained, is left out: loading reports it.
    """
    from draft.diffusion.families import size  # diffusers takes seconds to import

    try:
        family = _family(model)
        path = Path(model)
        return size.count_in_checkpoint(path, family) if path.is_file() else size.count_in_pipeline(model, family)
    except DraftError:
        return {}


def _family(model: str) -> Family:
    """The family of a model, asking the hub where need be; a derived one is made now."""
    make_derived(model)
    family = family_of(model)
    if family is None:
        from draft.diffusion.families.pretrained import read_index  # diffusers takes seconds to import

        family = _of_pipeline(model, read_index(model))
    return family


def _imported(path: str, family: Family) -> Any:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"the family {family.name!r} cannot be loaded: {error}") from error


def _index(folder: Path) -> Mapping[str, Any]:
    file = folder / "model_index.json"
    if not file.is_file():
        raise DraftError(f"folder {folder} holds no diffusers model (no model_index.json)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DraftError(f"{file} is no JSON ({error})") from error
    if not isinstance(content, Mapping):
        raise DraftError(f"{file} must hold a JSON object (got {type(content).__name__})")
    return content


def _of_pipeline(model: str, index: Mapping[str, Any], folder: Path | None = None) -> Family:
    """The family of a `model_index.json`, whose components must be there and be of the family's classes."""
    name = index.get("_class_name", "unknown")
    family = next((family for family in trainable() if family.pipeline == name), None)
    if family is None:
        raise DraftError(f"model {model!r} is a {name}, a family Draft cannot train yet", hint=_can_train())
    for component, wanted in family.components.items():
        entry = index.get(component)
        kind = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
        if kind is None or (folder is not None and not (folder / component).is_dir()):
            raise DraftError(
                f"model {model!r} has no {component}",
                hint=f"a {name} has {', '.join(family.components)}; take the complete model",
            )
        if wanted and str(kind).removesuffix("Fast") != wanted:
            raise DraftError(
                f"the {component} of model {model!r} must be of the class {wanted} (got {kind})",
                hint=f"Draft cannot train a {name} with other networks in their places",
            )
    return family


def _of_checkpoint(path: Path) -> Family:
    if path.suffix != ".safetensors":
        raise DraftError(
            f"checkpoint {path} is not a .safetensors file", hint="pickled weights can run code; convert the file first"
        )
    if not path.is_file():
        raise DraftError(f"no such checkpoint: {path}")
    try:
        with safe_open(str(path), "np") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise DraftError(f"checkpoint {path} cannot be read or is damaged: {error}") from error
    candidates = [family for family in families().values() if family.markers and _has_all(names, family.markers)]
    if not candidates:
        raise DraftError(f"checkpoint {path} is of no family of models that Draft knows", hint=_can_train())
    chosen = max(candidates, key=lambda family: len(family.markers))
    if not chosen.load:
        raise DraftError(
            f"checkpoint {path} is {chosen.title or chosen.name}, a family Draft cannot train yet", hint=_can_train()
        )
    return chosen


def _has_all(names: Iterable[str], markers: tuple[str, ...]) -> bool:
    names = list(names)
    return all(any(name.startswith(marker) for name in names) for marker in markers)


def _can_train() -> str:
    return f"{' and '.join(family.described for family in trainable())} can"

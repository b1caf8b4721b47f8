"""A model's files, opened by their headers alone: which tensor of which file holds which module."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from draft.adapters.files.header import Header, TensorInfo, read_header, shown
from draft.adapters.model.layout import Piece, folder_pieces, single_file_pieces
from draft.diffusion.families import families
from draft.errors import StageError
from draft.family import Family

INDEX = "model_index.json"
"""What makes a folder a model in diffusers' format."""

_NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<later>\w+))?\.safetensors"
)
_PICKLES = ("diffusion_pytorch_model.bin", "pytorch_model.bin")


@dataclass(frozen=True)
class WeightsFile:
    """One safetensors file of a model.

    Args:
        path: The file.
        component: Whose weights it holds: `unet`, ...; empty for a single-file checkpoint.
        header: Its header.
    """

    path: Path
    component: str
    header: Header


@dataclass(frozen=True)
class Location:
    """Where a tensor that diffusers has is in a model.

    Args:
        file: The file.
        tensor: The name of the tensor in it.
        piece: Which part of that.
    """

    file: WeightsFile
    tensor: str
    piece: Piece

    @property
    def info(self) -> TensorInfo:
        """The whole tensor, as the header has it."""
        return self.file.header.tensors[self.tensor]

    @property
    def rows(self) -> slice:
        """Its rows of the tensor."""
        first, last, parts = self.piece.rows
        unit = (self.info.shape[0] if self.info.shape else 1) // parts
        return slice(first * unit, last * unit)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of diffusers' tensor."""
        shape = self.info.shape
        if self.piece.transposed:
            return shape[::-1]
        return (self.rows.stop - self.rows.start, *shape[1:]) if shape else ()


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Args:
        path: Its folder or file.
        family: Its family, if it is known.
        files: Its files with weights that are safetensors.
        tensors: By diffusers' name, with the component in front.
        pickled: Components whose weights are there as pickles only.
        unused: Further files with the same weights, which are not read: other variants, pickles beside safetensors.
    """

    path: Path
    family: Family | None
    files: tuple[WeightsFile, ...]
    tensors: Mapping[str, Location]
    pickled: tuple[str, ...] = ()
    unused: tuple[Path, ...] = ()

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return self.path.is_file()

    def weight(self, module: str) -> Location | None:
        """Where a module's weight is."""
        location = self.tensors.get(f"{module}.weight")
        return location if location is not None and len(location.shape) >= 2 else None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model: the headers of its files are read, no weights.

    Args:
        path: A folder in diffusers' format, or a safetensors checkpoint.

    Returns:
        Its files and what is where.

    Raises:
        StageError: It is no model, a file is damaged or a pickle, or two tensors are the same weights.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise StageError("there is no such model", where=str(path), hint="a folder in diffusers' format, or a file")
    file = WeightsFile(path, "", read_header(path))
    names = list(file.header.tensors)
    candidates = [f for f in families().values() if f.markers and _has_all(names, f.markers)]
    family = max(candidates, key=lambda each: len(each.markers), default=None)
    tensors = dict(_located(file, family))
    if not any(name.partition(".")[0] in ("unet", "transformer", "text_encoder") for name in tensors):
        raise StageError(
            f"not a checkpoint whose layout is known (first tensor {shown(next(iter(names), ''))})",
            where=str(path),
            hint="single files of Stable Diffusion 1, 2, XL, 3, 3.5 and FLUX.1 are read, and folders of any family",
        )
    return Checkpoint(path, family, (file,), tensors)


def _open_folder(path: Path) -> Checkpoint:
    index = _index(path)
    # A name that is a path would lead out of the folder.
    named = [name for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and entry[1]]
    components = [name for name in named if re.fullmatch(r"\w{1,100}", name)]
    family = next((f for f in families().values() if f.pipeline == index.get("_class_name")), None)
    files: list[WeightsFile] = []
    pickled: list[str] = []
    unused: list[Path] = []
    for component in components:
        folder = path / component
        chosen, others = _weights(folder)
        if not chosen and any((folder / name).exists() for name in _PICKLES):
            pickled.append(component)
            continue
        files += [WeightsFile(file, component, read_header(file)) for file in chosen]
        unused += others
    tensors: dict[str, Location] = {}
    for file in files:
        for name, location in _located(file, family):
            if name in tensors:
                raise StageError(f"{shown(name)} is there twice", where=str(file.path))
            tensors[name] = location
    if not tensors:
        raise StageError("the model's folder holds no safetensors weights", where=str(path))
    return Checkpoint(path, family, tuple(files), tensors, tuple(pickled), tuple(unused))


def _index(path: Path) -> Mapping[str, Any]:
    file = path / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "give the folder of the whole model, or a single-file checkpoint"
        raise StageError(
            f"the folder holds no model in diffusers' format (no {INDEX})", where=str(path), hint=hint
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StageError(f"{INDEX} cannot be read ({error})", where=str(path)) from error
    if not isinstance(index, dict):
        raise StageError(f"{INDEX} must hold a JSON object (got {type(index).__name__})", where=str(path))
    return index


def _weights(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files with a component's weights, and the others that hold the same: variants and pickles."""
    every = sorted(folder.glob("*.safetensors"))
    if not every:
        return [], []
    variants: dict[str, list[Path]] = {}
    for file in every:
        match = _NAME.fullmatch(file.name)
        if match is not None:
            variants.setdefault(match["variant"] or match["later"] or "", []).append(file)
    if not variants:
        return [], []
    if "" not in variants and len(variants) > 1:
        raise StageError(
            f"there are several variants of the weights ({', '.join(sorted(variants))})",
            where=str(folder),
            hint="keep the one that is meant",
        )
    chosen = variants.get("") or next(iter(variants.values()))
    whole = [file for file in chosen if "-of-" not in file.name]
    chosen = whole or chosen  # a file beside its own shards is what libraries load
    pickles = [folder / name for name in _PICKLES if (folder / name).exists()]
    return chosen, [file for file in every if file not in chosen] + pickles


def _located(file: WeightsFile, family: Family | None) -> Iterator[tuple[str, Location]]:
    counts = Counter[str]()
    for tensor in file.header.tensors:
        pieces = folder_pieces(file.component, tensor) if file.component else single_file_pieces(tensor)
        for piece in pieces:
            # FLUX' second text encoder is the T5 that is Stable Diffusion 3's third.
            if not file.component and family is not None and len(family.encoders) == 2:
                name = piece.name.replace("text_encoder_3.", f"{family.encoders[1]}.")
                piece = replace(piece, name=name)
            counts[piece.name] += 1
            if counts[piece.name] > 1:
                raise StageError(f"{shown(piece.name)} is there twice", where=str(file.path))
            yield piece.name, Location(file, tensor, piece)


def _has_all(names: list[str], markers: tuple[str, ...]) -> bool:
    return all(any(name.startswith(marker) for name in names) for marker in markers)

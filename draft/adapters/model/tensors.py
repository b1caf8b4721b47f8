"""Tensors of a model's files, read as far as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from draft.adapters.files.header import shown
from draft.adapters.model.checkpoint import Checkpoint, Location, WeightsFile
from draft.adapters.model.layout import Piece
from draft.errors import StageError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes in which weights are changed and compared, by the format's names."""


def read_piece(location: Location) -> Tensor:
    """Read a tensor as diffusers has it.

    Args:
        location: Where it is.

    Returns:
        The tensor in the file's dtype.

    Raises:
        StageError: It is not in a dtype of `DTYPES`, or the file cannot be read.
    """
    tensor = read_rows(location.file, location.tensor, location.rows)
    return oriented(tensor, location.piece)


def weights_of(checkpoint: Checkpoint) -> Callable[[str, tuple[int, ...]], Tensor]:
    """A model as the base of DoRAs, which read a module's weight each time they need it.

    Args:
        checkpoint: The model.

    Returns:
        From a module's path and the shape that its weight must have, but for a kernel of 1 x 1, to that weight.

    Raises:
        StageError: On a call: the model lacks the module, it is of another shape, or as in `read_piece`.
    """

    def weight(module: str, shape: tuple[int, ...]) -> Tensor:
        location = checkpoint.weight(module)
        where, hint = str(checkpoint.path), "give the model that the adapter was trained on"
        if location is None:
            raise StageError(f"the base model lacks {module}", where=where, hint=hint)
        if plain(location.shape) != plain(shape):
            wanted, found = (" x ".join(map(str, each)) for each in (shape, location.shape))
            raise StageError(f"{module} is {found} in the base model, its change {wanted}", where=where, hint=hint)
        return read_piece(location)

    return weight


def plain(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the kernel of a convolution of 1 x 1, which is a linear layer."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def check_dtype(file: WeightsFile, name: str) -> None:
    """Refuse a tensor that is no plain float.

    Args:
        file: The file.
        name: The tensor's name.

    Raises:
        StageError: It is not in a dtype of `DTYPES`.
    """
    info = file.header.tensors[name]
    if info.dtype not in DTYPES:
        raise StageError(
            f"{shown(name)} must be in float32, float16 or bfloat16 to be changed or compared (got {info.dtype})",
            where=str(file.path),
            hint="take the model in one of these; what quantised weights mean depends on the program",
        )


def read_rows(file: WeightsFile, name: str, rows: slice) -> Tensor:
    """Read rows of one tensor, these bytes and no others.

    Args:
        file: The file.
        name: The tensor's name.
        rows: Which rows; of a tensor without dimensions all of it is read.

    Returns:
        The rows in the file's dtype.

    Raises:
        StageError: As in `read_piece`.
    """
    info = file.header.tensors[name]
    check_dtype(file, name)
    shape = (rows.stop - rows.start, *info.shape[1:]) if info.shape else ()
    tensor = torch.empty(shape, dtype=DTYPES[info.dtype])
    row = (info.stop - info.start) // info.shape[0] if info.shape and info.shape[0] else 0
    try:
        with file.path.open("rb") as stream:
            stream.seek(file.header.size + info.start + rows.start * row)
            room = tensor.reshape(-1).view(torch.uint8).numpy().data
            if stream.readinto(room) != len(room):  # type: ignore[attr-defined]
                raise EOFError("it became shorter while it was read")
    except (OSError, EOFError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise StageError(f"cannot read the file ({cause})", where=str(file.path)) from error
    return tensor


def oriented(tensor: Tensor, piece: Piece) -> Tensor:
    """Rows of a model's tensor as diffusers has them, or back: doing it twice changes nothing.

    Args:
        tensor: The piece's rows.
        piece: The piece.

    Returns:
        The tensor, transposed or with its halves swapped where the piece is.
    """
    if piece.transposed:
        return tensor.T
    if piece.swapped and tensor.ndim == 2 and tensor.shape[0] == 2 * tensor.shape[1]:
        return torch.cat(tensor.chunk(2, dim=0)[::-1])
    return tensor

"""Networks of transformers, loaded frozen, with errors a user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import draft
from draft.errors import ResourceError

if TYPE_CHECKING:
    import torch

Revision = Annotated[
    str, draft.Field(description="a hub revision of the model (branch, tag or commit); empty: the newest")
]
"""The option `revision` of the rewards with a model."""


def load_frozen(family: Any, model: str, *, revision: str, device: torch.device, what: str, where: str) -> Any:
    """Load a network from safetensors, frozen, in evaluation mode and float32.

    Args:
        family: A class of transformers with `from_pretrained`.
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the newest.
        device: Where to put it.
        what: What is being loaded, e.g. ``"CLIP model"``, for errors.
        where: The reward's name, for errors.

    Returns:
        The network.

    Raises:
        DraftError: It cannot be loaded, or its weights lack tensors, which transformers would draw at random.
    """
    with explained(what, model, where=where):
        network, info = family.from_pretrained(
            draft.model_path(model), use_safetensors=True, output_loading_info=True, **hub_options(revision)
        )
    if missing := sorted(info["missing_keys"]):
        kind = type(network).__name__
        raise draft.DraftError(
            f"the weights of {model!r} lack {len(missing)} of {kind}'s tensors, e.g. {missing[0]!r}",
            where=where,
            hint=f"the folder must hold a whole {kind}",
        )
    return network.to(device=device).float().eval().requires_grad_(False)


def hub_options(revision: str) -> dict[str, Any]:
    """Arguments of transformers' loaders for a hub revision; empty: the newest."""
    return {"revision": revision} if revision else {}


@contextmanager
def explained(what: str, model: str, *, where: str) -> Iterator[None]:
    """Turn what goes wrong while files are read into an error that names the model.

    Args:
        what: What is being loaded, e.g. ``"CLIP model"``.
        model: The model as the user wrote it.
        where: The reward's name.

    Raises:
        DraftError: The block raised because files are missing, broken or of another kind; a `ResourceError` where
            only the hub has them.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        told = f"cannot load the {what} {model!r}: {reason}"
        hint = f"give a name of `draft models`, a folder that holds the {what}, or a hub id you can reach"
        if isinstance(error, OSError) and not Path(draft.model_path(model)).exists():
            raise ResourceError(told, needs=f"{model} of the hub, or a copy of it", where=where, hint=hint) from error
        raise draft.DraftError(told, where=where, hint=hint) from error

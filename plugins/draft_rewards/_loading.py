"""Networks of transformers, loaded frozen, with errors a user can mend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import draft
from draft import hub, tokenizer
from draft.errors import ResourceError
from draft.quiet import loading_silently
from draft.rewards.surroundings import without_drawing
from draft_rewards._weights import download_command, published_weights, revision_of

if TYPE_CHECKING:
    import torch

Revision = Annotated[
    str,
    draft.Field(
        description="a hub revision of the model (branch, tag or commit); empty: the commit that docs/rewards.md pins, "
        "the newest for a model that is not there"
    ),
]
"""The option `revision` of the rewards with a model."""

TOKENS_AND_SIZES = ("*.json", "*.txt")
"""Patterns of the files that a processor needs: everything but weights."""

NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})
"""Where a reward loads no other model."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)*")


def load_frozen(
    family: Any,
    model: str,
    *,
    revision: str,
    device: torch.device,
    what: str,
    where: str,
    others: Mapping[str, Sequence[str]] = NOTHING,
) -> Any:
    """Load a network's weights, frozen, in evaluation mode and float32.

    They are read from safetensors. Where a model has none, its `pytorch_model.bin` is read as weights alone: torch
    unpickles tensors and refuses everything else.

    Args:
        family: A class of transformers with `from_pretrained`.
        model: A name of `draft models`, a folder, or a hub id.
        revision: A hub revision; empty: the pinned one, see `hub_options`.
        device: Where to put it.
        what: What is being loaded, e.g. ``"CLIP model"``, for errors.
        where: The reward's name, for errors.
        others: What else the reward will load, see `explained`.

    Returns:
        The network.

    Raises:
        DraftError: It cannot be loaded, or its weights lack tensors, which transformers would draw at random.
    """
    with explained(what, model, where=where, revision=revision, others=others):
        options = hub_options(revision, model)
        pickled = _folder_without_safetensors(draft.model_path(model), options)
        if pickled:
            options = {"use_safetensors": False, "weights_only": True}
        with loading_silently():
            network, info = family.from_pretrained(
                pickled or draft.model_path(model), output_loading_info=True, **{"use_safetensors": True, **options}
            )
    if missing := sorted(info["missing_keys"]):
        kind = type(network).__name__
        raise draft.DraftError(
            f"the weights of {model!r} lack {len(missing)} of {kind}'s tensors, e.g. {missing[0]!r}",
            where=where,
            hint=f"the folder must hold a whole {kind}",
        )
    return network.to(device=device).float().eval().requires_grad_(False)


def load_tokenizer(
    model: str,
    *,
    name: str = "AutoTokenizer",
    revision: str = "",
    what: str,
    where: str,
    files: Sequence[str] = (),
) -> Any:
    """Load a tokenizer of transformers, and refuse one without a vocabulary.

    Args:
        model: A name of `draft models`, a folder, or a hub id.
        name: Its class in transformers, without `Fast`.
        revision: A hub revision; empty: the pinned one, see `hub_options`.
        what: What it belongs to, e.g. ``"CLIP model"``, for errors.
        where: The reward's name, for errors.
        files: Patterns of the files that are read, where they are not all that the reward reads of this model.

    Returns:
        The tokenizer.

    Raises:
        DraftError: It cannot be loaded, or would read all prompts alike.
    """
    with explained(what, model, where=where, revision=revision, files=files):
        options = hub_options(revision, model)
        owner = repr(model) if what.endswith("tokenizer") else f"the {what} {model!r}"
        return tokenizer.load_tokenizer(name, draft.model_path(model), of=owner, where=where, **options)


def hub_options(revision: str, model: str) -> dict[str, Any]:
    """Arguments of transformers' loaders for a hub revision.

    Args:
        revision: The option `revision`.
        model: The model; one of `draft_rewards._weights` has a commit that an empty revision means.

    Returns:
        ``{"revision": ...}``, or nothing for the newest.
    """
    meant = revision_of(model, revision)
    return {"revision": meant} if meant else {}


@contextmanager
def explained(
    what: str,
    model: str,
    *,
    where: str,
    revision: str = "",
    files: Sequence[str] = (),
    others: Mapping[str, Sequence[str]] = NOTHING,
) -> Iterator[None]:
    """Turn what goes wrong while files are read into an error that names the model and how to get it.

    The global random generators are left as they were.

    Args:
        what: What is being loaded, e.g. ``"CLIP model"``.
        model: The model as the user wrote it.
        where: The reward's name.
        revision: The option `revision`, for the command that fetches it.
        files: Patterns of the files that are read, where they are not all that the reward reads of this model.
        others: What else the reward will load, to the patterns of its files, or none as in `download_command`: the
            hint fetches what is on the hub of it, too, so that one visit to the network is enough.

    Raises:
        DraftError: The block raised because files are missing, broken or of another kind; a `ResourceError` where
            only the hub has them.
    """
    from safetensors import SafetensorError

    try:
        # transformers 4 draws initial weights before it reads the real ones.
        with without_drawing():
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        pickled = _comes_from(error, UnpicklingError)
        if pickled:
            reason = "its file is a pickle of more than weights, and no other is read"
        ways = f"give a name of `draft models`, a folder that holds the {what}, or a hub id you can reach"
        path = draft.model_path(model)
        if pickled or not isinstance(error, OSError) or not _on_the_hub(path):
            raise draft.DraftError(f"cannot load the {what} {model!r}: {reason}", where=where, hint=ways) from error
        commands = [download_command(model, revision, files)]
        commands += [
            download_command(other, "", patterns)
            for other, patterns in others.items()
            if other and _on_the_hub(draft.model_path(other))
        ]
        reason, hint = _out_of_reach(model, reason, " && ".join(dict.fromkeys(commands)))
        entry = published_weights(model)
        facts = f" ({entry.megabytes} MB, licence: {entry.licence})" if entry and not files else ""
        raise ResourceError(
            f"cannot load the {what} {model!r}: {reason}",
            needs=f"{model} of the hub{facts}, or a copy of it",
            where=where,
            hint=f"{hint}; or {ways}",
        ) from error


def _comes_from(error: BaseException | None, kind: type[Exception]) -> bool:
    """Whether an error is of a kind, or was raised while one was handled: transformers 4 hides it in an OSError."""
    while error is not None and not isinstance(error, kind):
        error = error.__context__
    return error is not None


def _on_the_hub(path: str) -> bool:
    return not Path(path).exists() and _HUB_ID.fullmatch(path) is not None


def _out_of_reach(model: str, reason: str, command: str) -> tuple[str, str]:
    """Why a model of the hub is not here, and what to do about it."""
    entry, first = published_weights(model), ""
    if entry and entry.gated:
        first = f"accept its licence at https://huggingface.co/{model}, log in with `hf auth login`, then "
    if unreached := hub.unreached():
        return (
            f"it is not on this machine, and {unreached}",
            f"{first}fetch it with `{command}` where there is a network",
        )
    if switch := hub.switched_off():
        fetching = f"{first}run `{command}` where there is a network and bring the hub's cache here"
        return f"it is not on this machine, and {switch} is set", f"unset {switch}, or {fetching}"
    return reason, f"{first}fetch it with `{command}`"


def _folder_without_safetensors(path: str, options: Mapping[str, Any]) -> str:
    """The folder with `pytorch_model.bin` of a model that has no safetensors, which is then loaded from there.

    From a folder, because for a hub id transformers would ask the hub to convert the file for everybody.
    """
    from transformers.utils.hub import cached_file

    # A hub that is out of reach shall be found out at once, and not after every file's retries.
    cached_file(path, "config.json", **options)
    quiet: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        **options,
    }
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if cached_file(path, name, **quiet):
            return ""
    file = cached_file(path, "pytorch_model.bin", **quiet)
    # Nothing at all: loading it will say so in its own words.
    return "" if file is None else str(Path(file).parent)

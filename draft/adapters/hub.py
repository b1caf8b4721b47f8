"""Adapter files that lie on the Hugging Face hub: `hf://org/repo/file.safetensors@revision`."""

from __future__ import annotations

import re
from pathlib import Path

from draft import hub
from draft.adapters.files.config import CONFIG
from draft.errors import StageError
from draft.files import WEIGHTS, usable

_ADDRESS = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+?)(?:@(?P<revision>[^@]+))?")


def local_path(text: str) -> Path:
    """The file that a text names: a path on this machine, or an address on the hub, which is downloaded into its cache.

    Args:
        text: A path (`~` is the home folder), or `hf://org/repo/file.safetensors`, with `@revision` if need be.

    Returns:
        A path on this machine; whether a path that was given exists is not looked at.

    Raises:
        ConfigError: The path cannot be used.
        StageError: A broken address, no such file there, or no way to the hub.
    """
    if not text.startswith("hf://"):
        return usable(text)
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise StageError(
            f"not an address on the hub (got {text!r})", hint="write hf://org/repo/file.safetensors, or ...@revision"
        )

    # Only here: most adapters are files on this machine.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    hub.ask_once()
    folder, _, name = match["file"].rpartition("/")
    try:
        if name == WEIGHTS:
            # Its alpha is in the file beside it, without which the strength would be another.
            _download_config(match["repo"], f"{folder}/{CONFIG}".lstrip("/"), match["revision"])
        return Path(hf_hub_download(match["repo"], match["file"], revision=match["revision"]))
    except LocalEntryNotFoundError as error:
        raise StageError(
            f"not in the cache, and {hub.unreached() or 'the hub cannot be reached'}",
            where=text,
            hint="go online, or give a file",
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise StageError(
            "the hub has no such file", where=text, hint="check the name; for private ones run `hf auth login`"
        ) from error
    except (OSError, ValueError) as error:
        # Names that no repository can have, broken revisions, the network: the first line says which.
        raise StageError(f"cannot be downloaded ({str(error).splitlines()[0]})", where=text) from error


def _download_config(repo: str, file: str, revision: str | None) -> None:
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        hf_hub_download(repo, file, revision=revision)
    except LocalEntryNotFoundError:
        # Not reached: only if it was seen before that there is none is the file complete without.
        if try_to_load_from_cache(repo, file, revision=revision) is not _CACHED_NO_EXIST:
            raise
    except EntryNotFoundError:
        return

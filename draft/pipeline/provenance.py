"""The provenance in an adapter file: enough to reproduce it, and no path, host, time or secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from draft.adapters.files.header import read_header
from draft.adapters.identity import adapter_digest
from draft.files import weights_digest
from draft.marks import Holds, Inert, plain
from draft.pipeline.document import Keys, is_prompt
from draft.pipeline.identity import fingerprint
from draft.pipeline.kinds.kind import REWARDS, CheckedStage
from draft.pipeline.resolve import DIGEST, masked
from draft.pipeline.sources import stage_packages
from draft.rewards.extensions import named_model

MISSING = "???"
"""Replaces what a file must not contain; `draft check` reports where a pipeline has it."""

MOST = 1_000_000
"""Characters of prompts that a header holds at most."""

_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_?key|access_?key)$", re.IGNORECASE)
_SIGNED = re.compile(r"://[^/\s]*@")  # an address with a name and a password in it


def adapter_metadata(stage: CheckedStage, identity: Mapping[str, Any], files: Mapping[Keys, Path]) -> dict[str, str]:
    """The provenance in an adapter file; the same provenance gives the same text.

    Args:
        stage: The stage.
        identity: Its identity.
        files: Where the stage has a file, to that file; references are resolved.

    Returns:
        Strings for the file's header.
    """
    name = stage.model_name
    config = {key: value for key, value in identity.items() if key not in ("model", "reward_models", "upstream")}
    shown = without_secrets(config)
    entries = {"draft.fingerprint": fingerprint(identity), "draft.config": json.dumps(shown, sort_keys=True)}
    return {**entries, **({"draft.model": name} if name else {}), **provenance(stage, files)}


def provenance(stage: CheckedStage, files: Mapping[Keys, Path]) -> dict[str, str]:
    """The header entry `draft.pipeline` of an adapter that a stage makes; nothing for stages that make none.

    Args:
        stage: The stage.
        files: Where the stage has a file, to that file; references are resolved.

    Returns:
        `{"draft.pipeline": JSON}`; the same stage with the same inputs gives the same text.
    """
    if "adapter" not in stage.outputs:
        return {}
    # What decides about rounding is told too: with it the adapter comes out byte for byte.
    settings = plain(stage.config, lambda mark: isinstance(mark, Holds) or mark == Inert())
    entries: dict[str, Any] = {
        "kind": stage.kind.name,
        "stage": stage.name,
        "draft": _version(),
        "settings": without_secrets(
            masked({key: value for key, value in settings.items() if key not in ("kind", "seed")}, stage.environment)
        ),
    }
    if "seed" in settings and stage.kind.seeded(stage.config):
        seed = masked(stage.seed, stage.environment, ("seed",))
        entries["seed"] = without_secrets(seed)  # the file's, where the stage has no own one
    if stage.model:
        entries["model"] = _model(stage)
    if stage.prompts:
        entries |= _prompts(stage)
    if rewards := stage.data.get("rewards"):
        entries["rewards"] = {
            label: without_secrets(
                {"use": label, **masked(options or {}, stage.environment, (*REWARDS, label)), **_isolation(options)}
            )
            for label, options in rewards.items()
        }
    if packages := stage_packages(stage):
        entries["packages"] = packages
    if files:  # a recipe holds its inputs itself, in this order
        inputs = {keys: _input(path) if stage.kind.recipe is None else {} for keys, path in files.items()}
        entries["inputs"] = [{"key": list(keys), **entry} for keys, entry in inputs.items()]
    return {"draft.pipeline": json.dumps(entries, sort_keys=True)}


def without_secrets(value: Any, key: str = "") -> Any:
    """Plain data with `???` for what a file that is passed on may not hold.

    Args:
        value: Plain data.
        key: The last key that leads to the value.

    Returns:
        The data without paths of this machine, digests of values from the environment, and what looks like a
        password by its name or its form.
    """
    if isinstance(value, Mapping):
        return {name: without_secrets(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner, key) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    private = _SECRET.search(key) or _SIGNED.search(value) or _is_path(value) or value.startswith(DIGEST)
    return MISSING if private else value


def without_folders(value: Any, folder: Path, keys: Keys = ()) -> Any:
    """Plain data for a page, which other people see: paths are relative to a folder, or have their last name alone.

    Args:
        value: Plain data of a stage.
        folder: The pipeline's folder.
        keys: Where in the stage it stands; prompts are no paths.

    Returns:
        Plain data, newly made.
    """
    if isinstance(value, Mapping):
        return {name: without_folders(inner, folder, (*keys, name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner, folder, (*keys, index)) for index, inner in enumerate(value)]
    if not isinstance(value, str) or not _is_path(value) or is_prompt(("stages", "", *keys)):
        return value
    path = Path(value)
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return ".../" + value.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _isolation(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What runs code of others, which whoever reproduces an adapter has to give."""
    isolated = (options or {}).get("isolated")
    if not isinstance(isolated, Mapping):
        return {}
    return {"isolated": {**isolated, **{key: MISSING for key in ("python", "requirements") if key in isolated}}}


def parsed(text: str | None) -> Any:
    """JSON of a header entry; None where it is missing, damaged or no text that a file could hold."""
    try:
        value = json.loads(text) if text else None
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _is_path(text: str) -> bool:
    plain = text.removeprefix("file://")
    return plain.startswith(("/", "~", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", plain) is not None


def _prompts(stage: CheckedStage) -> dict[str, Any]:
    """The prompts with their columns; of more than a header should carry only their number."""
    columns = {name: list(stage.prompts.column(name)) for name in stage.prompts.columns}
    size = sum(map(len, stage.prompts)) + sum(len(value) for values in columns.values() for value in values)
    if size > MOST:
        return {"prompts": MISSING, "count": len(stage.prompts)}
    return {"prompts": list(stage.prompts), **({"columns": columns} if columns else {})}


def _model(stage: CheckedStage) -> dict[str, Any]:
    """A model by its name, one of this machine by its last name and a digest of its weights."""
    name = str(stage.data.get("model", ""))
    if ("model",) in stage.environment:
        here = Path(stage.model).exists()
        return {"name": MISSING, **({"sha256": weights_digest(Path(stage.model))} if here else {})}
    if named_model(name) is not None or not Path(stage.model).exists():
        return {"name": name}
    return {"name": Path(name).name, "sha256": weights_digest(Path(stage.model))}


def _input(path: Path) -> dict[str, Any]:
    """A file that went in: its digest, and its own provenance where it has one."""
    metadata = read_header(path).metadata
    earlier = {name: parsed(metadata.get(f"draft.{name}")) for name in ("recipe", "pipeline")}
    return {"sha256": adapter_digest(path), **{name: value for name, value in earlier.items() if value}}


def _version() -> str:
    try:
        return version("draft-diffusion")
    except PackageNotFoundError:
        return "unknown"

"""peft's LoRA configuration: the alphas it says, and the one we write."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draft.adapters.files.keys import PARTS
from draft.errors import StageError

# peft options that make the change something else than scale * B A.
_UNSUPPORTED = {"use_dora": "DoRA", "lora_bias": "a LoRA with biases", "modules_to_save": "fully trained modules"}


@dataclass(frozen=True)
class Alphas:
    """Where a module's alpha comes from when the file has no `.alpha` tensor for it.

    Args:
        configs: peft's configuration by part of the pipeline (`unet`, `text_encoder`, ...); a part without one has
            alpha = rank.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """The scale of B A: alpha / r, or alpha / sqrt(r) under rsLoRA (arXiv 2312.03732), 1 without an alpha.

        Args:
            module: The module's path, beginning with its part.
            rank: Its rank r.

        Returns:
            The factor of B A.
        """
        part, _, path = module.partition(".")
        config = self.configs.get(part)
        if config is None or config.get("lora_alpha") is None:
            return 1.0
        alpha = float(config["lora_alpha"])
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            # peft's own rule: a pattern matches the end of the path, whole components.
            if re.match(rf"(.*\.)?({pattern})$", path):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_config(path: Path) -> dict[str, Any] | None:
    """Read a peft folder's `adapter_config.json`.

    Args:
        path: The file.

    Returns:
        Its contents, or None where there is no such file.

    Raises:
        StageError: It is no JSON object.
    """
    if not path.is_file():
        return None
    try:
        return _object(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StageError(f"not a JSON object ({error})", where=str(path)) from error


def read_alphas(config: Mapping[str, Any] | None, metadata: Mapping[str, str], *, where: str) -> Alphas:
    """Collect what a file says about alpha besides its tensors.

    Args:
        config: A peft folder's configuration, if there is one.
        metadata: The safetensors header; diffusers puts `lora_adapter_metadata` there, keys prefixed by the part.
        where: The file, for errors.

    Returns:
        The configurations by part.

    Raises:
        StageError: The configuration is broken or of a kind that is no scale * B A.
    """
    flat: Mapping[str, Any] = config or {}
    if config is None and "lora_adapter_metadata" in metadata:
        try:
            flat = _object(json.loads(metadata["lora_adapter_metadata"]))
        except ValueError as error:
            raise StageError(f"its lora_adapter_metadata is no JSON object ({error})", where=where) from error
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        part, _, name = key.partition(".")
        if part in PARTS:
            configs.setdefault(part, {})[name] = value
        else:
            # Unprefixed: one model's own configuration. Which part it is, only its tensors say.
            for other in PARTS:
                configs.setdefault(other, {}).setdefault(key, value)
    for options in configs.values():
        for option, kind in _UNSUPPORTED.items():
            if options.get(option):
                raise StageError(f"{kind} is not a sum of B A (its configuration has {option})", where=where)
        patterns = options.get("alpha_pattern") or {}
        numbers = [options.get("lora_alpha"), *(patterns.values() if isinstance(patterns, dict) else ["?"])]
        for number in numbers:
            if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
                raise StageError(f"its configuration has an alpha that is no number (got {number!r})", where=where)
    return Alphas(configs)


def adapter_config(ranks: Mapping[str, int]) -> dict[str, Any]:
    """peft's configuration of modules whose alpha is their rank.

    Args:
        ranks: Rank by module path.

    Returns:
        The arguments of `peft.LoraConfig`, module paths without their part.
    """
    # A target fits every path that ends with it; transformers 5 has no `text_model.` before it, transformers 4 has.
    paths = {name.partition(".")[2].removeprefix("text_model."): rank for name, rank in ranks.items()}
    # The commonest rank is the default, ties going to the smallest, so that the same ranks give the same text.
    common = min(Counter(paths.values()).items(), key=lambda item: (-item[1], item[0]))[0]
    # A pattern fits every path that ends with it, so that of FLUX' `proj_out` would also fit its blocks' own.
    exceptions = {
        f"^{path}" if any(other.endswith(f".{path}") for other in paths) else path: rank
        for path, rank in sorted(paths.items())
        if rank != common
    }
    return {
        "alpha_pattern": dict(exceptions),
        "lora_alpha": common,
        "peft_type": "LORA",
        "r": common,
        "rank_pattern": exceptions,
        "target_modules": sorted(paths),
    }


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}")
    return value

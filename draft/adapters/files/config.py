"""peft's LoRA configuration: the alphas it says, and the one we write."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draft.adapters.files.keys import PARTS
from draft.errors import StageError
from draft.files import WEIGHTS

CONFIG = "adapter_config.json"
"""The file with the settings in a peft adapter folder."""

# Settings of peft 0.21.2 (tuners/lora/config.py) that make the change something else than scale * B A.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "a LoRA with biases",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "a LoRA of bare parameters",
    "layer_replication": "a LoRA of replicated layers",
    "alora_invocation_tokens": "an activated LoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "a block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
}
# Of these, settings for tensors beside the factors, which may be left out.
_BESIDE = ("lora_bias", "modules_to_save", "trainable_token_indices")
# Initialisations of peft 0.21.2 (tuners/lora/layer.py) that put a part of the base into the factors and take it out of
# the base, which is then no longer the published one. `orthogonal`, `gaussian` and `mica` leave the base alone.
_TAKEN_FROM_BASE = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "loftq": "LoftQ",
}
_LARGEST = 16 * 2**20
_MOST_LINKS = 40  # as Linux
# What a pattern needs so that matching it against a path cannot take forever.
_REPEATS, _NESTED = re.compile(r"[*+{]|\?(?![:=!<])"), re.compile(r"\([^()]*[*+{][^()]*\)[*+{]|[*+}][*+{]")
_MOST_REPEATS = 3


@dataclass(frozen=True)
class Alphas:
    """Where a module's alpha comes from when the file has no `.alpha` tensor for it.

    Args:
        configs: peft's configuration by part of the pipeline (`unet`, `text_encoder`, ...); a part without one has
            alpha = rank.
        where: The file, for errors.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    where: str = ""
    _patterns: dict[tuple[str, str], list[tuple[re.Pattern[str], Any]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Compile every pattern once: a file of several ranks has one per module."""
        for part, config in self.configs.items():
            for name in ("alpha_pattern", "rank_pattern"):
                # peft's own rule: a pattern matches the end of the path, whole components.
                self._patterns[part, name] = [
                    (re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in (config.get(name) or {}).items()
                ]

    def scale(self, module: str, rank: int) -> float:
        """The scale of B A: alpha / r, or alpha / sqrt(r) under rsLoRA (arXiv 2312.03732), 1 without an alpha.

        Args:
            module: The module's path, beginning with its part.
            rank: Its rank r.

        Returns:
            The factor of B A.

        Raises:
            StageError: The configuration gives the module another rank, so that its alpha is not this file's.
        """
        part, _, path = module.partition(".")
        config = self.configs.get(part)
        if config is None or config.get("lora_alpha") is None:
            return 1.0
        configured = self._matching((part, "rank_pattern"), path, config.get("r"))
        if configured is not None and configured != rank:
            raise StageError(
                f"the configuration gives {module} the rank {configured}, its factors have {rank}",
                where=self.where,
                hint="the tensors and the configuration are of two adapters; find the one that belongs to them",
            )
        alpha = float(self._matching((part, "alpha_pattern"), path, config["lora_alpha"]))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _matching(self, patterns: tuple[str, str], path: str, otherwise: Any) -> Any:
        return next((value for pattern, value in self._patterns[patterns] if pattern.match(path)), otherwise)


def config_file(path: Path) -> Path | None:
    """Find the configuration that belongs to an adapter.

    Args:
        path: A `.safetensors` file, or a peft folder.

    Returns:
        The `adapter_config.json` of the folder, or beside the file where that is named as in a peft folder, or is a
        link to such a file; None where there is none.
    """
    if os.path.isdir(path):
        return path / CONFIG if os.path.lexists(path / CONFIG) else None
    return next((config for file in _links(path) if (config := _beside(file)) is not None), None)


def refuse_beside(path: Path, format: str) -> None:
    """Refuse to write a file that the configuration of another adapter would be taken for its own.

    Args:
        path: The file or folder to write.
        format: Its format.

    Raises:
        StageError: It is the file of weights of a peft folder with a configuration.
    """
    if not is_folder(path, format) and _beside(path) is not None:
        raise StageError(
            f"the {CONFIG} beside it, which is of another adapter, would be read as its own",
            where=str(path),
            hint=f"write the folder (--format peft -o {path.parent}), or a file of another name",
        )


def _beside(file: Path) -> Path | None:
    config = file.with_name(CONFIG) if file.name == WEIGHTS else None
    return config if config is not None and os.path.lexists(config) else None


def _links(path: Path) -> Iterator[Path]:
    """A path and what it is a link to, step by step: the hub's cache links to files that have other names."""
    for _ in range(_MOST_LINKS):
        yield path
        if not os.path.islink(path):
            return
        path = path.parent / os.readlink(path)


def is_folder(path: Path, format: str) -> bool:
    """Whether an adapter of a format becomes a folder at a path: peft's without the suffix of a file."""
    return format == "peft" and path.suffix != ".safetensors"


def read_config(path: Path | None) -> dict[str, Any] | None:
    """Read a peft folder's `adapter_config.json`.

    Args:
        path: The file; None where there is none.

    Returns:
        Its contents, or None.

    Raises:
        StageError: It is no regular file, or no JSON object.
    """
    if path is None:
        return None
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise StageError(f"not a file of at most {_LARGEST} bytes", where=str(path))
        return _object(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StageError(f"not a JSON object ({cause})", where=str(path)) from error


def read_alphas(
    config: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
    *,
    where: str,
    dora: bool = False,
    partial: bool = False,
) -> Alphas:
    """Collect what a file says about alpha besides its tensors.

    Args:
        config: A peft folder's configuration, if there is one.
        metadata: The safetensors header; diffusers puts `lora_adapter_metadata` there, keys prefixed by the part.
        where: The file, for errors.
        dora: Whether DoRA is taken as a plain LoRA instead of being refused.
        partial: Whether tensors of the file are left out, so that settings for tensors beside the factors do not count.

    Returns:
        The configurations by part.

    Raises:
        StageError: The configuration is broken or of a kind that is no scale * B A.
    """
    flat: Mapping[str, Any] = config or {}
    if config is None and "lora_adapter_metadata" in metadata:
        try:
            flat = _object(json.loads(metadata["lora_adapter_metadata"]))
        except (ValueError, RecursionError) as error:
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
    idle = {*(("use_dora",) if dora else ()), *(_BESIDE if partial else ())}
    for options in configs.values():
        _check({name: value for name, value in options.items() if name not in idle}, where)
    return Alphas(configs, where)


def _check(options: Mapping[str, Any], where: str) -> None:
    kind = str(options.get("peft_type") or "LORA").rpartition(".")[2]
    if kind != "LORA":
        raise StageError(f"not a LoRA (its configuration has peft_type {kind[:40]!r})", where=where)
    for option, kind in _UNSUPPORTED.items():
        if options.get(option):
            raise StageError(f"{kind} is not a sum of B A (its configuration has {option})", where=where)
    _check_beginning(options.get("init_lora_weights"), where)
    if not isinstance(options.get("use_rslora"), bool | None):
        raise StageError(f"its use_rslora is neither true nor false (got {options['use_rslora']!r:.40})", where=where)
    for name, what in (("alpha_pattern", "an alpha"), ("rank_pattern", "a rank")):
        patterns, default = options.get(name) or {}, "lora_alpha" if name == "alpha_pattern" else "r"
        table = isinstance(patterns, dict)
        for number in [options.get(default), *(patterns.values() if table else ["?"])]:
            if number is not None and not _is_number(number):
                raise StageError(f"its configuration has {what} that is no number (got {number!r:.40})", where=where)
        for pattern in patterns:
            _check_pattern(pattern, name, where)


def _check_beginning(value: Any, where: str) -> None:
    """Refuse factors that are a change of another base than the published one."""
    word = value.lower() if isinstance(value, str) else ""
    for name, kind in _TAKEN_FROM_BASE.items():
        if word.startswith(name):
            raise StageError(
                f"{kind} moves a part of the base's weights into the factors, so that B A is no change of the base as "
                f"it was (its configuration has init_lora_weights: {value[:40]})",
                where=where,
                hint="peft's save_pretrained(..., path_initial_model_for_weight_conversion=...) writes the change "
                "alone, as a plain LoRA of twice the rank",
            )
    if word == "eva":
        raise StageError(
            "EVA gives every module a rank and an alpha of its own after the configuration was made, and removes "
            "modules, so that the configuration alone is not sure to be that of these factors (init_lora_weights: eva)",
            where=where,
            hint="peft leaves the base as it was: after a look at its ranks and alphas, write init_lora_weights: true",
        )


def _check_pattern(pattern: str, name: str, where: str) -> None:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise StageError(f"its {name} has a broken pattern ({pattern!r:.60}: {error})", where=where) from error
    if len(_REPEATS.findall(pattern)) > _MOST_REPEATS or _NESTED.search(pattern):
        raise StageError(
            f"its {name} has a pattern that could take forever to match ({pattern!r:.60})",
            where=where,
            hint=f"at most {_MOST_REPEATS} repetitions, none within another",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


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

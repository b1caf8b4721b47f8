"""`kind: mix`: adapters added up, each times its weight, into one."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Field

from draft.adapters.settings import MixSettings, check_settings
from draft.adapters.strength import Strength
from draft.errors import ConfigError, DraftError, DraftWarning, StageError
from draft.marks import Elsewhere
from draft.pipeline.document import Keys
from draft.pipeline.inputs import AdapterInput, Label, Seed
from draft.pipeline.kinds.kind import Candidate, Job, Kind, Recipe

_DEFAULTS = {"method": "exact", "normalize": False, "dtype": "same", "format": "auto"}
_MIXING = (
    "method",
    "rank",
    "energy",
    "max_error",
    "components",
    "blocks",
    "normalize",
    "density",
    "dtype",
    "format",
    "skip",
)
_SCHEDULE = Elsewhere(
    "schedule",
    why="has no place in a mix, whose result is one adapter for all steps",
    hint="give it to the adapter in the evaluate or generate stage that draws with it",
)


@dataclass(frozen=True, kw_only=True)
class MixInput(AdapterInput):
    """An adapter that goes into a mix.

    Args:
        text_encoder: Strength of the modules of its text encoders; null: `weight`.
        blocks: Pattern of module paths (`up_blocks.*`, `*.attn2`) to a factor of this adapter alone; 0 drops the
            modules.
    """

    text_encoder: Annotated[float, Field(allow_inf_nan=False)] | None = None
    blocks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MixStage(MixSettings):
    """Add adapters, each times its weight, into one exact adapter, or one of a smaller rank with a known error.

    Args:
        kind: `mix`.
        adapters: Label to `{from, weight, text_encoder, blocks}`.
        seed: Seed of the method `dare`; null: the file's.
    """

    kind: Literal["mix"]
    adapters: Annotated[dict[Label, Annotated[MixInput, _SCHEDULE]], MinLen(1)]
    seed: Seed = None


def run(job: Job) -> Mapping[str, float]:
    """Add adapters, exactly, and compare what was written with the exact sum."""
    from draft.adapters.mixture import mix_files

    stage = job.stage
    target = job.folder / stage.outputs["adapter"]
    reader = None
    if stage.config.verify == "full":
        from draft.diffusion.families.peer_reader import read_as_diffusers as reader
    inputs = [
        (path, Strength(weight, stage.config.adapters[label].text_encoder, stage.config.adapters[label].blocks))
        for label, (path, weight) in job.adapters().items()
    ]
    report = mix_files(inputs, target, settings=stage.config, seed=stage.seed, metadata=job.metadata, reader=reader)
    if report.skipped:
        labels = {path: label for label, (path, _) in job.adapters().items()}
        listed = ", ".join(f"{left_out.tensor} of {labels.get(path, path.name)}" for path, left_out in report.skipped)
        warnings.warn(DraftWarning(f"skipped, since they cannot be read: {listed}"), stacklevel=2)
    errors = {"error": report.error, "predicted_error": report.predicted, "error_in_diffusers": report.peer_error}
    return {"modules": float(report.modules)} | {key: value for key, value in errors.items() if value is not None}


def problems(candidate: Candidate) -> Iterator[DraftError]:
    """Settings of a mix that contradict each other, and factors that are no numbers."""
    config: MixStage = candidate.config
    try:
        check_settings(config)
    except StageError as error:
        yield candidate.error(f"{candidate.name()}: {error.what}", hint=error.hint)
    places: list[tuple[Keys, Mapping[str, float]]] = [
        (("components",), config.components),
        (("blocks",), config.blocks),
    ]
    places += [(("adapters", label, "blocks"), adapter.blocks) for label, adapter in config.adapters.items()]
    for keys, patterns in places:
        for pattern, factor in patterns.items():
            if not math.isfinite(factor):
                what = f"{candidate.name(*keys)}: a factor must be a finite number (got {factor:g})"
                yield candidate.error(what, *keys, pattern)


def stage_of(recipe: Mapping[str, Any], provenance: Mapping[str, Any]) -> tuple[dict[str, Any], list[Keys]]:
    """The stage that mixes as a recipe records; a conversion and a cut are mixes of one adapter.

    Args:
        recipe: The entry `draft.recipe` of an adapter's header.
        provenance: What its entry `draft.pipeline` holds, if the adapter is a stage's.

    Returns:
        The stage without its files, and where each input goes.

    Raises:
        ConfigError: The adapter was made with a base model.
    """
    inputs = recipe["inputs"]
    if "base" in recipe:
        what = "a DoRA was read with its base model, which no stage does"
        raise ConfigError(what, hint="draft convert or draft resize with the base that its recipe names")
    settings = dict(provenance.get("settings") or {})
    before = settings.pop("adapters", None)  # a list of labels, before there were keys of inputs
    named = [entry["key"][1] for entry in provenance.get("inputs") or ()] or (
        before if isinstance(before, list) else []
    )
    labels = named if len(named) == len(inputs) else _labels(inputs)
    if not settings:
        settings = {key: recipe[key] for key in _MIXING if recipe.get(key) not in (None, {}, _DEFAULTS.get(key))}
    seed = provenance.get("seed", recipe.get("seed")) if settings.get("method") == "dare" else None
    adapters = {
        label: {"weight": entry["weight"], **{key: entry[key] for key in ("text_encoder", "blocks") if key in entry}}
        for label, entry in zip(labels, inputs, strict=True)
    }
    stage = {"kind": "mix", "adapters": adapters, **settings, **({} if seed is None else {"seed": seed})}
    return stage, [("adapters", label, "from") for label in labels]


def _labels(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    labels: list[str] = []
    for index, entry in enumerate(inputs):
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", str(entry.get("name") or f"input_{index + 1}")).lstrip("_.-") or "input"
        labels.append(f"{label}_{index + 1}" if label in labels else label)
    return labels


MIX = Kind(
    settings=MixStage,
    outputs={"adapter": "adapter.safetensors"},
    run=f"{__name__}:run",
    version=2,
    problems=problems,
    seeded=lambda config: config.method == "dare",
    recipe=Recipe(kinds=("mix", "convert", "resize"), stage=stage_of),
)

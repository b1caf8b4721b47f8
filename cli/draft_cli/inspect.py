"""`draft inspect FILE`: what an adapter holds, on one screen."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft.files import usable
from draft_cli.console import rows

if TYPE_CHECKING:
    from draft.adapters.inspect import Block, Inspection

# What people look for in a header, and what we call it.
_LABELS = {
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.description": "description",
    "modelspec.license": "licence",
    "modelspec.architecture": "architecture",
    "modelspec.trigger_phrase": "trigger words",
    "modelspec.tags": "tags",
    "modelspec.merged_from": "merged from",
    "ss_output_name": "trained as",
    "ss_base_model_version": "trained for",
    "ss_sd_model_name": "trained on",
    "ss_network_module": "network",
    "ss_learning_rate": "learning rate",
    "ss_max_train_steps": "steps",
    "ss_num_epochs": "epochs",
    "draft.version": "draft",
}


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file, or a peft folder.")],
    blocks: Annotated[bool, typer.Option("--blocks", help="List every block.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Show what an adapter file holds: family, ranks, alphas, the sizes of its changes, and its header's entries."""
    from draft.adapters.inspect import inspect_adapter

    inspection = inspect_adapter(usable(file))
    print(json_module.dumps(_as_json(inspection), indent=2) if json else _text(inspection, blocks=blocks))


def _text(inspection: Inspection, *, blocks: bool) -> str:
    low, median, high = inspection.used
    parts = ", ".join(f"{part} {count}" for part, count in inspection.facts.parts.items())
    listed = ", ".join(f"{kind} {count}" for kind, count in inspection.facts.kinds.items())
    plain = " without DoRA's magnitudes" if "DoRA" in inspection.facts.kinds else ""
    kinds = [("kinds", listed)] if set(inspection.facts.kinds) - {"LoRA"} else []
    used = f"{low}" if low == high else f"{low} to {high} (median {median})"
    facts = [
        ("model", inspection.model or f"unknown, of the family {inspection.family}"),
        ("format", f"{inspection.facts.format}, {', '.join(inspection.facts.dtypes)}, {size(inspection.facts.size)}"),
        ("modules", f"{sum(inspection.facts.parts.values())}  ({parts})"),
        *kinds,
        ("rank", histogram(inspection.facts.ranks)),
        ("alpha", histogram(inspection.facts.alphas) if inspection.facts.alphas else "none"),
        ("change", f"||dW||{plain} = {inspection.norm:.4g}; 99% of its energy lies within rank {used}"),
        ("sha256", inspection.facts.digest),
    ]
    lines = [str(inspection.facts.path), rows(facts), _table(inspection.blocks if blocks else inspection.groups)]
    entries = _header_rows(inspection.metadata)
    if entries:
        lines.append(rows([(label, one_line(text)) for label, text in entries]))
    return "\n".join(lines)


def _header_rows(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    from draft.adapters.inspect import parsed, tag_counts

    known = {*_LABELS, "ss_tag_frequency", "draft.recipe", "draft.evaluation", "lora_adapter_metadata", "format"}
    entries = [(label, metadata[key]) for key, label in _LABELS.items() if metadata.get(key)]
    tags = tag_counts(metadata)
    if tags:
        listed = ", ".join(f"{tag} ({count})" for tag, count in list(tags.items())[:8])
        entries.append(("captions", listed + (f", {len(tags) - 8} more" if len(tags) > 8 else "")))
    recipe = parsed(metadata.get("draft.recipe", ""))
    if isinstance(recipe, dict):
        entries.append(("recipe", _recipe(recipe)))
    evaluation = parsed(metadata.get("draft.evaluation", ""))
    if isinstance(evaluation, dict):
        entries += _gains(evaluation)
    unlisted = sum(key not in known for key in metadata)
    if unlisted:
        entries.append(("header", f"{unlisted} more entr{'y' if unlisted == 1 else 'ies'}, see --json"))
    return entries


def _recipe(recipe: Mapping[str, Any]) -> str:
    inputs = recipe.get("inputs")
    listed = [entry for entry in inputs if isinstance(entry, dict)] if isinstance(inputs, list) else []
    named = [
        f"{entry['weight']:g} x {entry.get('name', str(entry.get('sha256', ''))[:12])}"
        if isinstance(entry.get("weight"), int | float)
        else str(entry.get("name", str(entry.get("sha256", ""))[:12]))
        for entry in listed
    ]
    return f"{recipe.get('kind', 'unknown')} of {', '.join(named)}" if named else str(recipe.get("kind", "unknown"))


def _gains(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    entries = [("evaluated", f"on {evaluation.get('model')} at weight {evaluation.get('weight')}")]
    rewards = evaluation.get("rewards")
    for label, figures in rewards.items() if isinstance(rewards, dict) else ():
        gain = figures.get("gain") if isinstance(figures, dict) else None
        if isinstance(gain, dict) and all(isinstance(gain.get(key), int | float) for key in ("mean", "low", "high")):
            spread = f"95% {gain['low']:+.4g} to {gain['high']:+.4g}"
            entries.append((f"  {label}", f"{gain['mean']:+.4g} ({spread}, {gain.get('count')} prompts)"))
    return entries


def _table(blocks: tuple[Block, ...]) -> str:
    width = max(len(block.name) for block in blocks)
    lines = [f"  {'':<{width}}  modules  ||dW||     rank  99%"]
    lines += [
        f"  {block.name:<{width}}  {block.modules:>7}  {block.norm:<9.4g}  {block.rank:>4}  {block.used:>3}"
        for block in blocks
    ]
    return "\n".join(lines)


def histogram(counts: Mapping[Any, int]) -> str:
    """How many modules have which number, in words.

    Args:
        counts: Modules by number.

    Returns:
        For example `8`, or `4 (12), 8 (180)`.
    """
    words = {value: value if isinstance(value, str) else f"{value:g}" for value in counts}
    if len(counts) == 1:
        return words[next(iter(counts))]
    listed = [f"{words[value]} ({count})" for value, count in counts.items()]
    return ", ".join(listed[:8]) + (f", {len(listed) - 8} more" if len(listed) > 8 else "")


def one_line(text: str) -> str:
    """A header's text as one line of moderate length, without what would steer a terminal.

    Args:
        text: Any text.

    Returns:
        At most 160 characters.
    """
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return line if len(line) <= 160 else f"{line[:157]}..."


def size(count: int) -> str:
    """Bytes in words.

    Args:
        count: Bytes.

    Returns:
        For example `3.2 MB`.
    """
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _as_json(inspection: Inspection) -> dict[str, Any]:
    from draft.adapters.inspect import parsed, tag_counts

    def listed(blocks: tuple[Block, ...]) -> list[dict[str, Any]]:
        return [dict(vars(block)) for block in blocks]

    return {
        "path": str(inspection.facts.path),
        "sha256": inspection.facts.digest,
        "bytes": inspection.facts.size,
        "family": inspection.family,
        "model": inspection.model or None,
        "format": inspection.facts.format,
        "parts": dict(inspection.facts.parts),
        "kinds": dict(inspection.facts.kinds),
        "ranks": {str(rank): count for rank, count in inspection.facts.ranks.items()},
        "alphas": {f"{alpha:g}": count for alpha, count in inspection.facts.alphas.items()},
        "dtypes": dict(inspection.facts.dtypes),
        "norm": inspection.norm,
        "rank_of_99_percent": dict(zip(("smallest", "median", "largest"), inspection.used, strict=True)),
        "groups": listed(inspection.groups),
        "blocks": listed(inspection.blocks),
        "captions": tag_counts(inspection.metadata),
        "recipe": parsed(inspection.metadata.get("draft.recipe", "")),
        "evaluation": parsed(inspection.metadata.get("draft.evaluation", "")),
        "metadata": dict(sorted(inspection.metadata.items())),
    }

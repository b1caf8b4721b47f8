"""`draft verify FILE`: where an adapter loads, how strong it is there, and whether it is intact."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft.files import usable
from draft_cli.console import rows
from draft_cli.inspect import one_line

if TYPE_CHECKING:
    from draft.adapters.verification.verdict import Verdict
    from draft.adapters.verification.verify import Verification


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file, or a peft folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check that an adapter loads in diffusers, ComfyUI, A1111 and InvokeAI, whole and at the right strength.

    Exit code 0: it does, in every one that knows its family. 1: somewhere it does not, or a hash is wrong. 2: the file
    cannot be read. 3: it could not be checked, because it is for a model that Draft has no list of modules of.
    """
    from draft.adapters.verification.verify import verify as check

    report = check(usable(file))
    print(json_module.dumps(_as_json(report), indent=2) if json else _text(report))
    raise typer.Exit(3 if not report.known else 0 if report.right else 1)


def _text(report: Verification) -> str:
    counted = _count(report.modules)
    lines = [f"{report.path}  ({report.base.name if report.base else 'unknown model'}, {counted})"]
    facts = [("intact", "finite, factors agree, no module twice"), ("sha256", report.digest)]
    if set(report.kinds) - {"LoRA"}:
        facts.append(("kinds", ", ".join(f"{kind} {count}" for kind, count in report.kinds.items())))
    facts += [
        (name, "is that of the tensors" if ok else "is NOT that of the tensors") for name, ok in report.hashes.items()
    ]
    if report.base is None:
        facts.append(("not checked", f"no known model of the family {report.family} has these modules"))
    if report.strange:
        facts.append(
            ("strange", f"{report.base.name if report.base else ''} has no such modules: {_some(report.strange)}")
        )
    lines.append(rows(facts))
    if report.verdicts:
        lines.append(rows([(f"{verdict.tool} {verdict.version}", sentence(verdict)) for verdict in report.verdicts]))
    if report.older:
        lines.append("older releases differ:")
        lines.append(rows([(f"{verdict.tool} {verdict.version}", sentence(verdict)) for verdict in report.older]))
    if report.recipe is not None:
        lines.append(rows([(label, one_line(text)) for label, text in _recipe(report.recipe)]))
    lines += _hint(report)
    return "\n".join(lines)


def _hint(report: Verification) -> list[str]:
    if not report.formats:
        return []
    now = sum(verdict.right for verdict in report.verdicts)
    # Of formats that are equally good the first, which most tools know.
    best = max(report.formats, key=lambda format: len(report.formats[format]))
    if len(report.formats[best]) <= now:
        return ["hint: no format that draft convert writes loads in more of them"]
    listed = ", ".join(report.formats[best])
    rank = " --rank N" if set(report.kinds) & {"LoHa", "LoKr"} else ""
    return [
        f"hint: draft convert {report.path} -o OUT --format {best}{rank} loads whole and at its strength in {listed}"
    ]


def sentence(verdict: Verdict) -> str:
    """A verdict in words.

    Args:
        verdict: What a tool makes of a file.

    Returns:
        For example `loads 2 of 3 modules; drops unet.….to_q`.
    """
    if verdict.status == "unknown":
        return verdict.reason
    if verdict.status == "refuses":
        return f"refuses it: {verdict.reason}"
    if verdict.status == "all":
        text = f"loads all {_count(verdict.modules)}" if verdict.modules > 1 else "loads its module"
    else:
        loaded = "none" if verdict.status == "none" else str(verdict.loaded)
        text = f"loads {loaded} of {_count(verdict.modules)}; drops {_some(verdict.dropped)}"
    if verdict.status == "none":
        return text
    if verdict.ignored:
        text = f"{text}; without {', '.join(verdict.ignored)}, so that the change is another"
    if all(abs(ratio - 1) < 1e-3 for ratio in verdict.ratios):
        return text
    low, high = verdict.ratios[0], verdict.ratios[-1]
    return f"{text}; at {low:.3g}{'' if low == high else f' to {high:.3g}'} times its strength"


def _recipe(recipe: Any) -> list[tuple[str, str]]:
    entries = [("recipe", str(recipe.get("kind", "unknown")))]
    inputs = recipe.get("inputs")
    for entry in inputs if isinstance(inputs, list) else []:
        if isinstance(entry, dict):
            weight = f", weight {entry['weight']:g}" if isinstance(entry.get("weight"), int | float) else ""
            entries.append(
                ("  input", f"{entry.get('name', 'unnamed')} sha256 {entry.get('sha256', 'unknown')}{weight}")
            )
    return entries


def _some(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _count(modules: int) -> str:
    return f"{modules} module{'' if modules == 1 else 's'}"


def _as_json(report: Verification) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "sha256": report.digest,
        "family": report.family,
        "model": report.base.name if report.base else None,
        "modules": report.modules,
        "kinds": dict(report.kinds),
        "strange": list(report.strange),
        "hashes": dict(report.hashes),
        "recipe": report.recipe,
        "right": report.right if report.known else None,
        "formats": {format: list(names) for format, names in report.formats.items()},
        "tools": [_verdict(verdict) for verdict in report.verdicts],
        "older": [_verdict(verdict) for verdict in report.older],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "tool": verdict.tool,
        "version": verdict.version,
        "status": verdict.status,
        "loaded": verdict.loaded,
        "modules": verdict.modules,
        "dropped": list(verdict.dropped),
        "reason": verdict.reason,
        "strengths": list(verdict.ratios),
        "ignored": list(verdict.ignored),
        "right": verdict.right,
    }

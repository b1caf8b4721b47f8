"""`draft merge MODEL a.safetensors:0.7 -o OUT`: adapters merged into a model's own weights."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft.errors import ConfigError
from draft.files import usable
from draft.outputs import check_output
from draft_cli.inputs import parse_blocks, parse_factors, parse_input
from draft_cli.mix import Dtype, Skip, mix_settings
from draft_cli.mix_report import skipped_json, skipped_lines

if TYPE_CHECKING:
    from draft.adapters.model.merging import MergeReport

_WHERE = "draft merge"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A named model, a folder in diffusers' format, a checkpoint, a hub id.")
]


def merge(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="FILE[:WEIGHT[:TEXT]]...", help="Adapters with weights, as for `draft mix`."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A folder or a file, as the model is.")],
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="PATTERN=FACTOR", help="Weigh a part, as for `draft mix`."),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option("--block", metavar="[INPUT:]PATTERN=FACTOR", help="Weigh modules, as for `draft mix`."),
    ] = None,
    skip: Skip = None,
    dtype: Dtype = "same",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would survive; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a model that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Merge adapters into a model's weights, and report how much of them survives its dtype."""
    settings = mix_settings(_WHERE, dtype=dtype, components=parse_factors(component or [], "component", command=_WHERE))
    blocks, terms = parse_blocks(block or [], [parse_input(text, command=_WHERE) for text in inputs], command=_WHERE)
    source, target = find_model(model, command=_WHERE), usable(output)
    check_target(source, target, force=force or dry_run)
    for path, _ in terms:
        if not path.exists():
            raise ConfigError("no such adapter file", where=str(path))
        if real_path(target) in (real_path(path), *real_path(path).parents):
            raise ConfigError("the output is also an input", where=str(target), hint="write to another place with -o")

    from draft.adapters.model.merging import merge_files

    report = merge_files(
        source,
        terms,
        target,
        components=settings.components,
        blocks=blocks,
        skip=skip or (),
        dtype=settings.dtype,
        dry_run=dry_run,
        overwrite=force,
    )
    if json:
        print(json_module.dumps(_as_json(report, source, target, written=not dry_run), indent=2))
    else:
        print("\n".join(_lines(report, target, written=not dry_run)))


def find_model(name: str, *, command: str) -> Path:
    """Find a model's folder or file on this machine.

    Args:
        name: A named model, a path, or an id on the hub, of which the cached files are taken.
        command: The command, for errors.

    Returns:
        The folder or file.

    Raises:
        ConfigError: There is none, or it is no safetensors file.
    """
    from draft import hub
    from draft.rewards.extensions import model_path

    path = usable(model_path(name)) if name else None
    if path is not None and not path.exists() and "/" in name and hub.may_be_id(name):
        path = _cached(name) or path
    if path is None or not path.exists():
        hint = "a folder in diffusers' format, a .safetensors checkpoint, or a name of `draft models`"
        raise ConfigError(f"there is no model {name!r} on this machine", where=command, hint=hint)
    if path.is_file() and path.suffix != ".safetensors":
        hint = "pickled weights can run code; convert the file first"
        raise ConfigError(f"the model is not a .safetensors file (got {path.name})", where=command, hint=hint)
    return path


def check_target(source: Path, target: Path, *, force: bool) -> None:
    """Refuse an output that is not what the model is, that is in the model, or that is there.

    Args:
        source: The model.
        target: The output.
        force: Whether a model that is there may be overwritten.

    Raises:
        ConfigError: It cannot be used.
    """
    where = str(target)
    one, other = real_path(target), real_path(source)
    if one == other or one in other.parents or other in one.parents:
        raise ConfigError("the output is the model, or in it, or around it", where=where, hint="write to another place")
    if source.is_file() and target.suffix != ".safetensors":
        what = f"the model is one file, so the output must be a .safetensors file (got {target.name!r})"
        raise ConfigError(what, where=where)
    if source.is_dir() and target.suffix == ".safetensors":
        raise ConfigError(f"the model is a folder, so the output is one, too (got {target.name!r})", where=where)
    check_output(target, overwrite=force, folder=source.is_dir())
    if source.is_dir() and target.is_dir() and any(target.iterdir()) and not (target / "model_index.json").is_file():
        raise ConfigError("the folder holds no model, so that it is not replaced", where=where, hint="-o OTHER")


def real_path(path: Path) -> Path:
    """A path without links; unlike `Path.resolve` this raises nothing for links in a circle."""
    return Path(os.path.realpath(path))


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _lines(report: MergeReport, target: Path, *, written: bool) -> Iterator[str]:
    from draft_cli.inspect import size

    for path, strength, modules in report.inputs:
        of_text = "" if strength.text_encoder is None else f", text encoders {strength.text_encoder:+g}"
        blocks = "".join(f", {pattern} times {factor:g}" for pattern, factor in strength.blocks.items())
        yield f"{strength.weight:+g} x {path}  ({modules} module{'' if modules == 1 else 's'}{of_text}{blocks})"
    yield from skipped_lines(report.skipped)
    if report.dropped:
        yield f"left out: {len(report.dropped)} module{'' if len(report.dropped) == 1 else 's'}"
    for name in report.unused:
        yield f"not copied: {name}, the same weights without the adapters"
    kinds = "/".join(report.dtypes)
    changed = f"{report.modules} module{'' if report.modules == 1 else 's'} changed"
    yield f"{'wrote' if written else 'would write'} {target}  ({changed}, {kinds}, {size(report.size)})"
    total, worst = report.total, report.worst
    if worst:
        least = report.by_module[worst]
        yield f"survives rounding to {kinds}: {total.share:.2%} of the change, least {least.share:.2%} in {worst}"
        farthest = max(report.by_module, key=lambda name: report.by_module[name].error)
        error = report.by_module[farthest].error
        yield f"relative error {total.error:.3g} over all modules, largest {error:.3g} in {farthest}"
    else:
        yield "the change is 0"


def _as_json(report: MergeReport, source: Path, target: Path, *, written: bool) -> dict[str, Any]:
    worst = report.worst
    farthest = max(report.by_module, key=lambda name: report.by_module[name].error, default="")
    return {
        "model": str(source),
        "output": str(target),
        "written": written,
        "inputs": [
            {
                "path": str(path),
                "weight": strength.weight,
                "text_encoder": strength.text_encoder,
                "blocks": dict(strength.blocks),
                "modules": modules,
            }
            for path, strength, modules in report.inputs
        ],
        "modules": report.modules,
        "left_out": list(report.dropped),
        "skipped": skipped_json(report.skipped),
        "not_copied": list(report.unused),
        "dtypes": dict(report.dtypes),
        "bytes": report.size,
        "surviving_share": report.total.share,
        "smallest_surviving_share": report.by_module[worst].share if worst else None,
        "smallest_share_in": worst or None,
        "relative_error": report.total.error,
        "largest_relative_error": report.by_module[farthest].error if farthest else None,
        "worst_module": farthest or None,
    }

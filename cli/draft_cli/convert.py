"""`draft convert FILE -o OUT`: an adapter under other names or in another dtype."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft.adapters.files.config import CONFIG, is_folder
from draft.adapters.identity import writes_over
from draft.errors import ConfigError
from draft.files import WEIGHTS, usable
from draft.outputs import check_output
from draft_cli.merge import find_model
from draft_cli.mix import Dtype, Format, mix_settings

if TYPE_CHECKING:
    from draft.adapters.conversion import Conversion
    from draft.adapters.inspect import Facts


Base = Annotated[
    str, typer.Option("--base", metavar="MODEL", help="For DoRA, whose change is one of its base model's weights.")
]


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file, or a peft folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")],
    format: Format = "auto",
    dtype: Dtype = "same",
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="N", help="For LoHa, LoKr, DoRA, which are no B A: the rank to keep."),
    ] = None,
    base: Base = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Write an adapter in another format or dtype, read it back and compare; its change stays what it is."""
    settings = mix_settings("draft convert", format=format, dtype=dtype, rank=rank)
    model = find_model(base, command="draft convert") if base else None
    source, target = check_files(file, output, force=force, format=settings.format)

    from draft.adapters.conversion import convert_file

    conversion = convert_file(
        source,
        target,
        format=settings.format,
        dtype=settings.dtype,
        rank=rank,
        base=model,
        overwrite=force,
    )
    print_conversion(conversion, json=json)


def check_files(file: Path, output: Path, *, force: bool, format: str) -> tuple[Path, Path]:
    """Refuse an input that is not there and an output that is.

    Args:
        file: The input.
        output: The output.
        force: Overwrite it.
        format: What is written.

    Returns:
        Both, `~` written out.

    Raises:
        ConfigError: One of them is not as it should be.
    """
    source, target = usable(file), usable(output)
    if not source.exists():
        raise ConfigError("no such adapter file", where=str(source))
    if writes_over(target, source):
        raise ConfigError("the output is also the input", where=str(target), hint="write to another file with -o")
    check_output(target, overwrite=force, folder=is_folder(target, format), holds=(WEIGHTS, CONFIG))
    return source, target


def print_conversion(conversion: Conversion, *, json: bool) -> None:
    """Print what was read, what was written, and how far apart they are.

    Args:
        conversion: The conversion.
        json: Print one JSON object instead of lines.
    """
    print(json_module.dumps(_as_json(conversion), indent=2) if json else "\n".join(_lines(conversion)))


def _lines(conversion: Conversion) -> Iterator[str]:
    if conversion.before is not None:
        yield f"read {conversion.before.path}  ({_facts(conversion.before)})"
    yield f"wrote {conversion.after.path}  ({_facts(conversion.after)})"
    if conversion.nearest is not None:
        yield f"LoHa, LoKr and DoRA at that rank: relative error {conversion.nearest:.2e}"
    if conversion.predicted is not None:
        yield f"relative error {conversion.predicted:.3e} as predicted, {conversion.read_back.total:.3e} as read back"
        yield f"largest of a module {conversion.read_back.error:.2e}, {conversion.read_back.worst}"
    else:
        yield f"read back: largest relative error {conversion.read_back.error:.1e}"


def _facts(file: Facts) -> str:
    from draft_cli.inspect import histogram, size

    modules = sum(file.parts.values())
    counted = f"{modules} module{'' if modules == 1 else 's'}"
    ranks = f"rank {histogram(file.ranks)}, alpha {histogram(file.alphas)}"
    return f"{file.format}, {counted}, {ranks}, {'/'.join(file.dtypes)}, {size(file.size)}"


def _as_json(conversion: Conversion) -> dict[str, Any]:
    def entry(file: Facts | None) -> dict[str, Any] | None:
        if file is None:
            return None
        return {
            "path": str(file.path),
            "sha256": file.digest,
            "bytes": file.size,
            "format": file.format,
            "modules": sum(file.parts.values()),
            "ranks": {str(rank): count for rank, count in file.ranks.items()},
            "alphas": {f"{alpha:g}": count for alpha, count in file.alphas.items()},
            "dtypes": dict(file.dtypes),
        }

    return {
        "input": entry(conversion.before),
        "output": entry(conversion.after),
        "nearest_error": conversion.nearest,
        "predicted_error": conversion.predicted,
        "error": conversion.read_back.total,
        "largest_error": conversion.read_back.error,
        "worst_module": conversion.read_back.worst,
    }

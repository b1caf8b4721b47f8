"""`draft reproduce FILE`: the pipeline that made an adapter, out of its metadata."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draft.errors import ConfigError, DraftError, StageError
from draft.files import usable

if TYPE_CHECKING:
    from draft.pipeline.reproduce import Reproduction

_WHERE = "draft reproduce"


def reproduce(
    adapter: Annotated[Path, typer.Argument(metavar="FILE", help="An adapter that Draft trained or mixed.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The pipeline to write; default: print it.")
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", metavar="FILE", help="An adapter that went in; found by its content. Again for more."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="For a model of the trainer's machine: a folder or hub id.")
    ] = "",
    check: Annotated[
        bool, typer.Option("--check", help="See whether the pipeline would make the same adapter here.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write the pipeline that made an adapter, out of its metadata.

    With the same versions of the libraries, on the same machine with the same number of threads (OMP_NUM_THREADS), it
    gives the same bytes; elsewhere the same training up to rounding.
    """
    from draft.adapters.files.header import read_header
    from draft.pipeline.reproduce import name_of, reproduce

    metadata = read_header(adapter).metadata
    stem = output.stem if output else name_of(adapter)
    try:
        reproduction = reproduce(
            metadata, name=name_of(adapter), input_files=_digests(inputs or []), model=_model(model), stem=stem
        )
    except DraftError as error:
        error.where = error.where or str(adapter)
        raise
    if output is None and reproduction.tables:
        what = "the prompts have columns, which a file beside the pipeline holds"
        raise ConfigError(what, where=_WHERE, hint="name the pipeline with -o")
    if output is None:
        typer.echo(reproduction.text(), nl=False)
    else:
        for file in write_pipeline(reproduction, output, force=force):
            typer.echo(f"wrote {file}")
        typer.echo(f"{reproduction.target}.adapter is the adapter; run it with: draft run {output}")
    if reproduction.packages:
        typer.echo(f"its rewards came from: {', '.join(reproduction.packages)}", err=output is None)
    for key, what in reproduction.missing.items():
        typer.echo(f"to be given: {key}: {what}", err=output is None)
    if check:
        typer.echo(f"check: {compare(reproduction, metadata, output)}", err=output is None)


def write_pipeline(reproduction: Reproduction, output: Path, *, force: bool) -> list[Path]:
    """Write a pipeline and the files next to it.

    Args:
        reproduction: The pipeline.
        output: Its file.
        force: Whether files that are there may be overwritten.

    Returns:
        The files.

    Raises:
        ConfigError: One is there, or cannot be written.
    """
    from draft.files import write_text
    from draft.outputs import check_output

    texts = {output.with_name(name): text for name, text in reproduction.tables.items()} | {output: reproduction.text()}
    for path in texts:
        check_output(path, overwrite=force)
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            raise ConfigError(f"cannot write the file ({error.strerror or error})", where=str(path)) from None
    return list(texts)


def compare(reproduction: Reproduction, metadata: Mapping[str, str], output: Path | None) -> str:
    """Load the pipeline and compare what it would do on this machine with what the file records.

    Args:
        reproduction: The pipeline.
        metadata: The adapter's header.
        output: Where it was written; None: nowhere.

    Returns:
        What was found, in words.

    Raises:
        DraftError: The pipeline cannot run here, or would make another adapter.
    """
    from draft.pipeline.identity import differences, fingerprint, settled, uncompared, without_files
    from draft.pipeline.load import load_pipeline
    from draft.pipeline.plan import make_plan
    from draft.pipeline.provenance import parsed, without_secrets

    with tempfile.TemporaryDirectory() as folder:
        file = output or Path(folder) / "pipeline.yaml"
        if output is None:
            write_pipeline(reproduction, file, force=True)
        pipeline = load_pipeline(file)
        steps = {step.name: step for step in make_plan(pipeline, Path(folder) / "runs")}
    step, stage = steps[reproduction.target], pipeline.stages[reproduction.target]
    if "draft.fingerprint" not in metadata:
        return "everything that it needs is here; the file has no fingerprint to compare with"
    same = (
        "the same fingerprint: with the same versions of libraries and number of threads a run gives the same adapter"
    )
    if metadata["draft.fingerprint"] == step.fingerprint:
        return same
    recorded = parsed(metadata.get("draft.config"))
    recorded = recorded if isinstance(recorded, dict) else {}
    now = step.identity
    try:
        old, new = without_files(settled(recorded, stage)), without_files(now)
        shared = {key: new.get(key) for key in old}  # the header leaves out what is large or of the machine
        changes = differences(old, without_secrets(shared))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StageError("what the file records of its settings (draft.config) is damaged", where=_WHERE) from error
    if changes:
        raise StageError(f"here it would be another adapter: {'; '.join(changes)}", where=_WHERE)
    # Another version wrote the settings otherwise: with what the header leaves out as it is here, is it the same?
    left_out = {key: now[key] for key in ("model", "reward_models", "upstream") if key in now}
    if metadata["draft.fingerprint"] == fingerprint({**recorded, **left_out}):
        note = uncompared(recorded, stage).replace("its record has", "its header has")
        return f"{same} ({note})" if note else same
    if not stage.files:
        what = "here it would be another adapter: the model, or one that a reward uses, is another"
        raise StageError(what, where=_WHERE)
    return "the same settings, prompts and rewards; the adapters that go in are not compared"


def _digests(files: Sequence[Path]) -> dict[str, str]:
    from draft.adapters.identity import adapter_digest
    from draft.files import sha256, usable, weights_file

    by_digest = {}
    for path in map(usable, files):
        if not weights_file(path).is_file():
            raise ConfigError("no such adapter file", where=str(path))
        # Earlier recipes have of a peft folder its tensors' digest alone.
        tensors = sha256(weights_file(path))
        by_digest |= dict.fromkeys((adapter_digest(path, weights=tensors), tensors), str(path.resolve()))
    return by_digest


def _model(name: str) -> str:
    """A model as the pipeline may name it from wherever it lies: a folder or file by its absolute path."""
    from draft.rewards.extensions import named_model

    if not name or named_model(name) is not None:
        return name
    path = usable(name)
    return str(path.resolve()) if path.exists() else name

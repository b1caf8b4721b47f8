"""The inputs of a mix or a merge: read once, their strengths by module, what was skipped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from draft.adapters.algebra.mix import Weight, check_inputs
from draft.adapters.changes import Changes
from draft.adapters.files.formats import Base, read_changes, refuse_structured
from draft.adapters.files.skipping import refuse_idle, with_skip
from draft.adapters.identity import adapter_digest, file_digest
from draft.adapters.parallel import each
from draft.adapters.settings import MixSettings
from draft.adapters.skipped import Skipped
from draft.adapters.strength import Strength, added, check_strength, normalized, weights_by_module
from draft.errors import DraftWarning, StageError


def read_inputs(
    inputs: Sequence[tuple[Path, float | Strength]],
    settings: MixSettings,
    *,
    structured: bool,
    base: Base | None = None,
) -> tuple[list[tuple[Path, list[Strength]]], list[tuple[Changes, Weight]], list[str]]:
    """Read every file once.

    Args:
        inputs: Files (or peft folders) with their strengths; those that are the same adapter count once.
        settings: Their `skip` and `normalize` count.
        structured: Whether LoHa and LoKr modules are taken, too, which are no B A.
        base: As in `read_changes`.

    Returns:
        Paths with strengths, adapters with weights, and digests.

    Raises:
        StageError: A file is unreadable, the adapters do not fit together, or a strength or pattern matches nothing.
    """
    by_digest: dict[str, tuple[Path, list[Strength]]] = {}
    strengths = [weight if isinstance(weight, Strength) else Strength(weight) for _, weight in inputs]
    for (path, _), strength in zip(inputs, strengths, strict=True):
        check_strength(strength, str(path))

    def opened(path: Path) -> tuple[str, Changes]:
        with _skip_in_hint():
            changes = read_changes(path, skip=settings.skip, base=base, mapped=True)
            return adapter_digest(path, weights=file_digest(path)), changes

    contents: dict[str, Changes] = {}
    for (path, _), strength, (digest, changes) in zip(
        inputs, strengths, each(opened, [path for path, _ in inputs]), strict=True
    ):
        by_digest.setdefault(digest, (path, []))[1].append(strength)
        contents.setdefault(digest, changes)
    files = [(path, added(strengths)) for path, strengths in by_digest.values()]
    adapters = list(contents.values())
    refuse_idle(settings.skip, [skipped for adapter in adapters for skipped in adapter.skipped])
    if not structured:
        for (path, _), changes in zip(files, adapters, strict=True):
            refuse_structured(changes, path)
    check_inputs([(adapter, 1.0) for adapter in adapters])
    taken = [strengths for _, strengths in files]
    terms: list[tuple[Changes, Weight]] = [
        (adapter, weights_by_module(strengths, adapter.modules, str(path)))
        for (path, _), adapter, strengths in zip(
            files, adapters, normalized(taken) if settings.normalize else taken, strict=True
        )
    ]
    versions = [adapter.metadata.get("ss_base_model_version") for adapter in adapters]
    if len(distinct := sorted({version for version in versions if version})) > 1:
        warnings.warn(
            DraftWarning(f"the adapters were trained for different base models, they say ({', '.join(distinct)})"),
            stacklevel=2,
        )
    return files, terms, list(by_digest)


def skipped_of(
    files: Sequence[tuple[Path, Sequence[Strength]]], terms: Sequence[tuple[Changes, Weight]]
) -> tuple[tuple[Path, Skipped], ...]:
    """What was left out of which input because it cannot be read."""
    return tuple(
        (path, skipped) for (path, _), (adapter, _) in zip(files, terms, strict=True) for skipped in adapter.skipped
    )


@contextmanager
def _skip_in_hint() -> Iterator[None]:
    try:
        yield
    except StageError as error:
        with_skip(error)
        raise


def left_out(name: str, terms: Sequence[tuple[Changes, Weight]]) -> bool:
    """Whether every input that has a module has set its strength there, and nowhere else, to 0."""
    weights = [weight for adapter, weight in terms if name in adapter.modules]
    return all(isinstance(weight, Mapping) and weight[name] == 0 for weight in weights)

"""From adapter files to a mixed file that has been checked: what the command and the pipeline stage share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from draft.adapters.algebra.compress import compress
from draft.adapters.algebra.merging import cut, merge
from draft.adapters.algebra.mix import (
    ExactSum,
    RoundedSum,
    Weight,
    check_inputs,
    module_names,
    shared_header,
    weight_in,
)
from draft.adapters.changes import Changes, Terms, Whole
from draft.adapters.factors import Adapter, Factors, shapes_of
from draft.adapters.files.config import is_folder, refuse_beside
from draft.adapters.files.formats import Format, file_format, read_adapter, read_changes, refuse_structured
from draft.adapters.files.header import TensorInfo, read_header
from draft.adapters.files.layout import lay_out
from draft.adapters.files.skipping import refuse_idle, with_skip
from draft.adapters.identity import adapter_digest, file_digest, name_of, writes_over
from draft.adapters.parallel import each
from draft.adapters.readback import ReadBack, compare, write_checked
from draft.adapters.recipe import recipe_header
from draft.adapters.selection import module_weights
from draft.adapters.settings import MixSettings, check_settings
from draft.adapters.skipped import Skipped
from draft.adapters.strength import Strength, added, check_strength, normalized, weights_by_module
from draft.errors import DraftWarning, StageError

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Reader = Callable[[Path, str], Mapping[str, tuple[Tensor, Tensor, float]]]
"""Another program's reader: from a file and its family to A, B and the scale by module."""


@dataclass(frozen=True)
class MixReport:
    """What a mix came to.

    Args:
        modules: Modules in the mixed file.
        inputs: For every input, a file that was named twice being one, its path, weight, number of modules, and how
            many of them have which rank or, without one, which form.
        strengths: For every input all of its strength: the weight again, that of text encoders, factors of blocks.
        ranks: How many modules of the mix have which rank.
        dtype: Of the written factors, e.g. `float32`.
        size: Bytes of the factors in the file.
        file_size: Bytes of the file, or of all that is in a folder; of a dry run those that there would be.
        predicted: The relative error over all modules that a smaller rank costs, known before writing; None where the
            mix is exact. Of `ties`, `dare` and `magnitude` it is against their dense result.
        dropped: Modules of the inputs that were left out by a factor of 0.
        skipped: Tensors of the inputs that could not be read and were left out, with the path of the input.
        error: The largest relative error of a module in the file that was written, its rounding included, against the
            exact sum of the inputs as they are; of `ties`, `dare` and `magnitude` against their dense result. None in a
            dry run.
        worst: That module.
        total: The same over all modules together. None in a dry run.
        peer_error: The largest relative error as another program reads the file; None where none was asked.
    """

    modules: int
    inputs: tuple[tuple[Path, float, int, dict[int | str, int]], ...]
    strengths: tuple[Strength, ...]
    ranks: dict[int, int]
    dtype: str
    size: int
    file_size: int
    predicted: float | None
    dropped: tuple[str, ...]
    skipped: tuple[tuple[Path, Skipped], ...] = ()
    error: float | None = None
    worst: str = ""
    total: float | None = None
    peer_error: float | None = None


@dataclass(frozen=True)
class _Mix:
    """A mix before it is written, and what its file is to be held against."""

    adapter: Adapter
    wanted: Terms
    errors: Mapping[str, float]
    error: float | None


def mix_files(
    inputs: Sequence[tuple[Path, float | Strength]],
    output: Path,
    *,
    settings: MixSettings | None = None,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
    reader: Reader | None = None,
    dry_run: bool = False,
    overwrite: bool = True,
) -> MixReport:
    """Mix adapter files, write the sum, read it back and compare; only then does the file get its name.

    Args:
        inputs: Files (or peft folders) with their weights; a file that is named twice counts once, its weights added.
            A `Strength` has another weight for text encoders, and factors of blocks.
        output: The file to write; it holds the recipe, with the inputs' sha256, in `draft.recipe`.
        settings: How to mix and what to write; None: exactly, as the inputs are.
        seed: Of the method `dare`.
        metadata: Further header entries; they win.
        reader: diffusers' reader, for `verify: full`; this package knows no diffusers.
        dry_run: Compute everything, write nothing.
        overwrite: Whether an output that is there, or comes to be there meanwhile, may be replaced.

    Returns:
        What was written and how exact it is.

    Raises:
        StageError: A file is unreadable, the adapters do not fit together, settings contradict each other, a pattern
            matches nothing, the output is one of the inputs or cannot be written, or what was written is not the mix.
    """
    settings = settings or MixSettings()
    check_settings(settings)
    _refuse_overwriting(inputs, output)
    if settings.verify == "full" and reader is None:
        raise StageError("verify: full needs another program's reader (got none)")
    smaller = not settings.rank is settings.energy is settings.max_error is None
    files, terms, digests = read_inputs(inputs, settings, structured=smaller)
    names = module_names(terms)
    factors = module_weights(names, components=settings.components, blocks=settings.blocks)
    nonzero = {name: factor for name, factor in factors.items() if factor != 0 and not left_out(name, terms)}
    if not nonzero:
        raise StageError(f"nothing is left to mix: all {len(names)} modules have the factor 0")
    mixed = _make(terms, digests, nonzero, settings, seed)
    strengths = [
        (path, strength, digest, adapter)
        for (path, each), digest, (adapter, _) in zip(files, digests, terms, strict=True)
        for strength in each
    ]
    entries = [
        (name_of(path), digest, strength, a.metadata, [each.tensor for each in a.skipped])
        for path, strength, digest, a in strengths
    ]
    header = recipe_header(entries, settings, seed=seed, error=mixed.error) | dict(metadata or {})
    report = MixReport(
        modules=len(mixed.adapter.modules),
        inputs=tuple((path, s.weight, len(a.modules), a.ranks) for path, s, _, a in strengths),
        strengths=tuple(strength for _, strength, _, _ in strengths),
        ranks=mixed.adapter.ranks,
        dtype=str(_coarsest(mixed.adapter)).removeprefix("torch."),
        size=0,
        file_size=0,
        predicted=mixed.error,
        dropped=tuple(name for name in names if name not in nonzero),
        skipped=skipped_of(files, terms),
    )
    if dry_run:
        table, size = _rehearse(mixed.adapter, output, settings.format, header)
        return replace(report, size=_factor_bytes(table), file_size=size)

    def check(path: Path) -> tuple[MixReport, ReadBack, ReadBack | None]:
        table = read_header(path).tensors
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
        written = replace(report, size=_factor_bytes(table), file_size=size)

        def against(written: Mapping[str, Factors], who: str) -> ReadBack:
            dtype = _coarsest(mixed.adapter)
            return compare(written, mixed.wanted, mixed.errors, dtype=dtype, where=str(output), reader=who)

        readback = against(read_adapter(path, mapped=True).modules, "Draft")
        if reader is None or settings.verify != "full":
            return written, readback, None
        theirs = reader(path, mixed.adapter.family)
        return written, readback, against({name: Factors(*pair) for name, pair in theirs.items()}, "diffusers")

    written, readback, peer = write_checked(
        mixed.adapter, output, format=settings.format, metadata=header, check=check, overwrite=overwrite
    )
    return replace(
        written,
        error=readback.error,
        worst=readback.worst,
        total=readback.total,
        peer_error=None if peer is None else peer.error,
    )


def _rehearse(
    adapter: Adapter, output: Path, format: Format, metadata: Mapping[str, str]
) -> tuple[Mapping[str, TensorInfo], int]:
    """Compute everything that would be written, for what may be wrong with it, and its size."""
    chosen = file_format(adapter.family, format)
    folder = is_folder(output, chosen)
    refuse_beside(output, chosen)
    layout = lay_out(adapter, format=chosen, folder=folder, metadata=metadata, where=str(output))
    for _ in each(layout.factors, layout.names):
        pass
    return layout.table, layout.size


def _refuse_overwriting(inputs: Sequence[tuple[Path, float | Strength]], output: Path) -> None:
    for path, _ in inputs:
        if writes_over(output, path):
            raise StageError("the output is also an input", where=str(output), hint="write to another file")


def read_inputs(
    inputs: Sequence[tuple[Path, float | Strength]], settings: MixSettings, *, structured: bool
) -> tuple[list[tuple[Path, list[Strength]]], list[tuple[Changes, Weight]], list[str]]:
    """Read every file once.

    Args:
        inputs: As in `mix_files`.
        settings: As in `mix_files`.
        structured: Whether LoHa and LoKr modules are taken, too, which are no B A.

    Returns:
        Paths with strengths, adapters with weights, and digests.

    Raises:
        StageError: As in `mix_files`.
    """
    by_digest: dict[str, tuple[Path, list[Strength]]] = {}
    strengths = [weight if isinstance(weight, Strength) else Strength(weight) for _, weight in inputs]
    for (path, _), strength in zip(inputs, strengths, strict=True):
        check_strength(strength, str(path))

    def opened(path: Path) -> tuple[str, Changes]:
        with _skip_in_hint():
            changes = read_changes(path, skip=settings.skip, mapped=True)
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
    return tuple((path, each) for (path, _), (adapter, _) in zip(files, terms, strict=True) for each in adapter.skipped)


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


def _make(
    terms: Sequence[tuple[Changes, Weight]],
    digests: Sequence[str],
    factors: Mapping[str, float],
    settings: MixSettings,
    seed: int,
) -> _Mix:
    exact = ExactSum(terms, factors)
    header = shared_header([adapter.metadata for adapter, _ in terms])
    dtypes = {name: _DTYPES.get(settings.dtype) or exact.dtype(name) for name in exact}
    if settings.method != "exact":
        return _merged(terms, digests, factors, dtypes, settings, seed)
    bounds = {"rank": settings.rank, "energy": settings.energy, "max_error": settings.max_error}
    if all(value is None for value in bounds.values()):
        adapter = Adapter(RoundedSum(exact, dtypes), terms[0][0].family, header)
        return _Mix(adapter, exact.terms, dict.fromkeys(exact, 0.0), None)
    compressed = compress(Changes(exact, terms[0][0].family, header), **bounds, dtypes=dtypes)
    return _Mix(compressed.adapter, exact.terms, compressed.errors, compressed.error)


def _merged(
    terms: Sequence[tuple[Changes, Weight]],
    digests: Sequence[str],
    factors: Mapping[str, float],
    dtypes: Mapping[str, torch.dtype],
    settings: MixSettings,
    seed: int,
) -> _Mix:
    if settings.rank is None or settings.density is None:
        raise StageError(f"the method {settings.method} needs a rank and a density")
    method, density = settings.method, settings.density

    def merged(name: str) -> Whole:
        inputs = [
            (adapter.modules[name], weight_in(weight, name) * factors[name], digest)
            for (adapter, weight), digest in zip(terms, digests, strict=True)
            if name in adapter.modules
        ]
        return merge(inputs, method=method, density=density, seed=seed, name=name)

    rounded: dict[str, Factors] = {}
    errors: dict[str, float] = {}
    missed_squared, size = 0.0, 0.0
    for name in factors:
        small, missed, norm = cut(merged(name), settings.rank)
        rounded[name] = Factors(small.down.to(dtypes[name]), small.up.to(dtypes[name]))
        errors[name] = missed / norm if norm else 0.0
        missed_squared, size = missed_squared + missed**2, size + norm**2
    header = shared_header([adapter.metadata for adapter, _ in terms])
    adapter = Adapter(rounded, terms[0][0].family, header)
    error = math.sqrt(missed_squared / size) if size else 0.0
    return _Mix(adapter, lambda name: [(merged(name), 1.0)], errors, error)


def _coarsest(adapter: Adapter) -> torch.dtype:
    """The coarsest dtype of the factors; it bounds the error."""
    dtypes = {tensor.dtype for factors in shapes_of(adapter.modules).values() for tensor in (factors.down, factors.up)}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _factor_bytes(table: Mapping[str, TensorInfo]) -> int:
    return sum(info.stop - info.start for name, info in table.items() if not name.endswith(".alpha"))

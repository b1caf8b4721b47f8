"""Layers that the original code of a transformer fuses, taken apart into diffusers' and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor

from draft.adapters.changes import Dora, FileChange, inputs_of, outputs_of
from draft.adapters.factors import Factors
from draft.adapters.files.names.sites import Site
from draft.adapters.files.names.transformers import member_of, site_of
from draft.errors import StageError


def taken_apart(modules: Mapping[str, FileChange], *, where: str) -> dict[str, FileChange]:
    """Every fused layer as the layers of diffusers that hold its rows.

    The rows of B A are those of B times A, so that the members share A and divide the rows of B; no number changes. A
    term that only other members use is left out of a member, and so is a member that is zero while others are not.

    Args:
        modules: Changes by path, fused ones under the original code's.
        where: The file, for errors.

    Returns:
        Changes by diffusers' path.

    Raises:
        StageError: A layer's rows do not divide into its members, or a module is there under two names.
    """
    apart: dict[str, FileChange] = {}
    for name, whole in modules.items():
        part, _, path = name.partition(".")
        entry = site_of(path) if part == "transformer" else None
        pieces = {name: whole} if entry is None else _pieces(whole, *entry, name=name, where=where)
        for piece, change in pieces.items():
            if piece in apart:
                raise StageError(f"{piece} is there twice, under two names", where=where)
            apart[piece] = change
    return dict(sorted(apart.items()))


def put_together(modules: Mapping[str, Factors], family: str) -> dict[str, Factors]:
    """The layers of the original code out of those of diffusers.

    Members with the same A share its rows, so that what was one layer becomes one again at its own rank; others are
    stacked, A = [A_q; A_k; A_v] and B block-diagonal. A member that is missing gets rows of zeros.

    Args:
        modules: Factors by diffusers' path, scale 1.
        family: A name of `PLANS`.

    Returns:
        Factors by path, fused and swapped layers under the original code's.
    """
    together: dict[str, Factors] = {}
    groups: dict[str, tuple[Site, dict[int, Factors]]] = {}
    for name, factors in modules.items():
        part, _, path = name.partition(".")
        entry = member_of(path, family) if part == "transformer" else None
        if entry is None or (len(entry[0].members) == 1 and not entry[0].swapped):
            together[name] = factors
            continue
        site, index, number = entry
        native = f"transformer.{site.native.replace('#', number)}"
        groups.setdefault(native, (site, {}))[1][index] = factors
    for native, (site, members) in groups.items():
        if site.swapped:
            together[native] = _swapped(members[0]) if _halved(site, members[0]) else members[0]
        else:
            together[native] = _stacked(site, members)
    return dict(sorted(together.items()))


def _pieces(whole: FileChange, site: Site, number: str, *, name: str, where: str) -> Mapping[str, FileChange]:
    rows = outputs_of(whole)
    if isinstance(whole, Dora):
        raise StageError(f"{name} is a DoRA of several layers in one, which is not read", where=where)
    if site.swapped:
        member = f"transformer.{site.members[0].replace('#', number)}"
        if rows != 2 * inputs_of(whole)[0]:
            return {member: whole}
        half = rows // 2
        return {member: _swapped(whole) if isinstance(whole, Factors) else whole.taken((half, rows), (0, half))}
    unit, remainder = divmod(rows, sum(site.rows))
    if remainder or len(inputs_of(whole)) > 1:
        raise StageError(
            f"{name} does not divide into {len(site.members)} layers: it has {rows} rows, which must be a multiple of "
            f"{sum(site.rows)}",
            where=where,
        )
    names = [f"transformer.{member.replace('#', number)}" for member in site.members]
    sizes = [unit * share for share in site.rows]
    if isinstance(whole, Factors):
        return _split(whole, dict(zip(names, sizes, strict=True)))
    stops = list(accumulate(sizes))
    return {name: whole.taken((stop - size, stop)) for name, size, stop in zip(names, sizes, stops, strict=True)}


def _split(factors: Factors, sizes: Mapping[str, int]) -> dict[str, Factors]:
    ups = factors.up.split(list(sizes.values()))
    uses = torch.stack([(up != 0).any(0) for up in ups])
    anyone = uses.any(0)
    pieces: dict[str, Factors] = {}
    for name, up, used in zip(sizes, ups, uses, strict=True):
        if anyone.any() and not used.any():
            continue
        # A term whose B is zero everywhere has not learned yet: it stays everywhere.
        columns = used | ~anyone
        pieces[name] = Factors(factors.down, up, factors.scale)
        if not columns.all():
            pieces[name] = Factors(factors.down[columns], up[:, columns], factors.scale)
    return pieces


def _stacked(site: Site, members: Mapping[int, Factors]) -> Factors:
    downs: list[Tensor] = []
    places: dict[int, int] = {}
    for index, factors in sorted(members.items()):
        same = [i for i, down in enumerate(downs) if _equal(down, factors.down)]
        places[index] = same[0] if same else len(downs)
        if places[index] == len(downs):
            downs.append(factors.down)
    starts = [sum(len(down) for down in downs[:i]) for i in range(len(downs))]
    dtype = reduce(torch.promote_types, [tensor.dtype for f in members.values() for tensor in (f.down, f.up)])
    index, first = next(iter(members.items()))
    unit = first.up.shape[0] // site.rows[index]
    up = torch.zeros(unit * sum(site.rows), sum(len(down) for down in downs), dtype=dtype)
    for index, factors in members.items():
        top, left = unit * sum(site.rows[:index]), starts[places[index]]
        up[top : top + factors.up.shape[0], left : left + factors.rank] = factors.up.to(dtype)
    return Factors(torch.cat([down.to(dtype) for down in downs]), up, 1.0)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _halved(site: Site, factors: Factors) -> bool:
    """Whether a modulation is one of shift and scale alone, the kind whose halves the two codes order differently."""
    return site.swapped and factors.up.shape[0] == 2 * factors.down.shape[1]


def _swapped(factors: Factors) -> Factors:
    first, second = factors.up.chunk(2, dim=0)
    return Factors(factors.down, torch.cat([second, first]), factors.scale)

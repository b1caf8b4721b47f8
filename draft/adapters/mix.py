"""The sum of adapters, exact: ranks are concatenated, factors are never added up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from draft.adapters.factors import Adapter, Factors
from draft.errors import StageError


def mix(inputs: Sequence[tuple[Adapter, float]]) -> Adapter:
    """Add adapters with weights: dW = sum_i w_i s_i B_i A_i, module by module.

    With c_i = w_i s_i the sum is one product of concatenated factors,
    A = [sqrt|c_1| A_1; sqrt|c_2| A_2; ...],  B = [sgn(c_1) sqrt|c_1| B_1, sgn(c_2) sqrt|c_2| B_2, ...],
    whose rank is the sum of the ranks. Inputs that share A (an adapter mixed with itself) share its rows, and only
    their B add up: B A + B' A = (B + B') A. A module that an input lacks counts as zero there.

    Args:
        inputs: Adapters of one family with their weights: any finite number, negative and above 1 included, never
            normalised.

    Returns:
        The mix, scale 1, computed in float64 and kept in the widest dtype of the inputs.

    Raises:
        StageError: Nothing to mix, a weight that is not finite, families mixed, or modules that differ in shape.

    Example:
        >>> mix([(compress, 0.7), (align, 0.3)])  # doctest: +SKIP
    """
    _check(inputs)
    modules: dict[str, Factors] = {}
    for name in _names(inputs):
        parts = _parts(inputs, name)
        dtype = reduce(torch.promote_types, [t.dtype for f, _ in parts for t in (f.down, f.up)])
        down, up = _concatenated(parts)
        modules[name] = Factors(down.to(dtype), up.to(dtype), 1.0)
    return Adapter(modules, inputs[0][0].family, _shared([adapter.metadata for adapter, _ in inputs]))


def mix_errors(mixed: Adapter, inputs: Sequence[tuple[Adapter, float]]) -> dict[str, float]:
    """How far a mix is from the exact sum, per module, without ever forming a dense dW.

    The difference of two low-rank matrices is one of concatenated factors, D = B A, and with the triangles of
    B = Q_B R_B and A^T = Q_A R_A its norm is ||D||_F = ||R_B R_A^T||_F.

    Args:
        mixed: The mix, as read back from its file.
        inputs: What was mixed, with weights.

    Returns:
        By module, ||dW - sum_i w_i dW_i||_F / ||sum_i w_i dW_i||_F; where the sum cancels out, relative to the sizes
        that were added. A module missing on either side counts as zero there.
    """
    errors: dict[str, float] = {}
    for name in sorted({*_names(inputs), *mixed.modules}):
        parts = _parts(inputs, name)
        wanted = [_scaled(factors, weight * factors.scale) for factors, weight in parts]
        got = [_scaled(mixed.modules[name], -mixed.modules[name].scale)] if name in mixed.modules else []
        added = sum(_norm([term]) for term in wanted)
        total = _norm(wanted)
        size = total if total > 1e-6 * added else added
        difference = _norm([*got, *wanted])
        errors[name] = difference / size if size > 0 else difference
    return errors


def _check(inputs: Sequence[tuple[Adapter, float]]) -> None:
    if not inputs:
        raise StageError("nothing to mix (got 0 adapters)")
    for _, weight in inputs:
        if not math.isfinite(weight):
            raise StageError(f"a weight must be a finite number (got {weight})")
    families = sorted({adapter.family for adapter, _ in inputs})
    if len(families) > 1:
        raise StageError(
            f"adapters of different families cannot be mixed (got {' and '.join(families)})",
            hint="their modules have the same names but other shapes and meanings",
        )
    for name in _names(inputs):
        shapes = {(tuple(f.down.shape[1:]), f.up.shape[0]) for f, _ in _parts(inputs, name)}
        if len(shapes) > 1:
            listed = " and ".join(f"in {i} out {o}" for i, o in sorted(shapes))
            raise StageError(
                f"the adapters disagree about the shape of {name} ({listed})", hint="they are for different base models"
            )


def _names(inputs: Sequence[tuple[Adapter, float]]) -> list[str]:
    return sorted({name for adapter, _ in inputs for name in adapter.modules})


def _parts(inputs: Sequence[tuple[Adapter, float]], name: str) -> list[tuple[Factors, float]]:
    return [(adapter.modules[name], weight) for adapter, weight in inputs if name in adapter.modules]


def _concatenated(parts: Sequence[tuple[Factors, float]]) -> tuple[Tensor, Tensor]:
    """The factors of one module's sum in float64."""
    groups: list[list[tuple[Factors, float]]] = []
    for factors, weight in parts:
        for group in groups:
            if torch.equal(group[0][0].down.double(), factors.down.double()):
                group.append((factors, weight))
                break
        else:
            groups.append([(factors, weight)])
    downs, ups = [], []
    for group in groups:
        coefficients = [weight * factors.scale for factors, weight in group]
        root = math.sqrt(max(abs(c) for c in coefficients))
        if root == 0:
            continue
        downs.append(group[0][0].down.double() * root)
        scaled = [f.up.double() * (c / root) for (f, _), c in zip(group, coefficients, strict=True)]
        ups.append(reduce(torch.add, scaled))
    if not downs:
        # Every weight is 0: the module stays, as the zero it has become.
        first = groups[0][0][0]
        return first.down.double(), torch.zeros_like(first.up, dtype=torch.float64)
    return torch.cat(downs, 0), torch.cat(ups, 1)


def _scaled(factors: Factors, coefficient: float) -> tuple[Tensor, Tensor]:
    """A module's factors as float64 matrices (r, in k k) and (out, r), the coefficient on B."""
    return factors.down.double().flatten(1), factors.up.double().flatten(1) * coefficient


def _norm(terms: Sequence[tuple[Tensor, Tensor]]) -> float:
    if not terms:
        return 0.0
    down = torch.cat([a for a, _ in terms], 0)
    up = torch.cat([b for _, b in terms], 1)
    left = torch.linalg.qr(up, mode="r").R
    right = torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.norm(left @ right.T))


def _shared(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The header entries on which all inputs agree; of one adapter's own story, none speaks for the mix."""
    first = headers[0]
    return {
        name: value
        for name, value in first.items()
        if not name.startswith("draft.") and all(other.get(name) == value for other in headers)
    }

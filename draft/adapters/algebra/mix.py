"""The sum of adapters, exact: ranks are concatenated, factors are never added up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from draft.adapters.algebra.concatenation import concatenated, concatenated_shape, rounded
from draft.adapters.changes import Change, Changes, Whole, dense_sum, dtype_of, inputs_of, outputs_of, scaled
from draft.adapters.factors import Adapter, Factors, LazyFactors
from draft.adapters.structured import Structured
from draft.errors import StageError

Weight = float | Mapping[str, float]
"""What an input's modules are multiplied with: one number, or one by module."""


def mix(
    inputs: Sequence[tuple[Adapter | Changes, Weight]],
    *,
    factors: Mapping[str, float] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Adapter:
    """Add adapters with weights: dW = sum_i w_i s_i B_i A_i, module by module.

    With c_i = w_i s_i the sum is one product of concatenated factors,
    A = [sqrt|c_1| A_1; sqrt|c_2| A_2; ...],  B = [sgn(c_1) sqrt|c_1| B_1, sgn(c_2) sqrt|c_2| B_2, ...],
    whose rank is the sum of the ranks. Inputs that share A (an adapter mixed with itself) share its rows, and only
    their B add up: B A + B' A = (B + B') A. A module that an input lacks counts as zero there.

    Args:
        inputs: Adapters of one family with their weights: any finite number, negative and above 1 included, never
            normalised; or a number for each of the adapter's modules.
        factors: The modules to take, each with a further factor of its sum; None: all of them, at 1.
        dtypes: Of the mix by module; None: the widest of the inputs.

    Returns:
        The mix, scale 1, computed in float64 and rounded once.

    Raises:
        StageError: Nothing to mix, a weight that is not finite, families mixed, modules that differ in shape, or a
            change that its dtype is too coarse for.

    Example:
        >>> mix([(compress, 0.7), (align, 0.3)])  # doctest: +SKIP
    """
    modules = RoundedSum(ExactSum(inputs, factors), dtypes)
    header = shared_header([adapter.metadata for adapter, _ in inputs])
    return Adapter({name: modules[name] for name in modules}, inputs[0][0].family, header)


class ExactSum(Mapping[str, Change]):
    """The modules of a mix in float64, each computed when it is asked for: one at a time is in memory.

    A sum is a product of concatenated factors unless one of its terms is a LoHa or LoKr of a high rank: then it is
    dense.

    Args:
        inputs: As in `mix`.
        factors: As in `mix`.

    Raises:
        StageError: As in `mix`.
    """

    def __init__(
        self, inputs: Sequence[tuple[Adapter | Changes, Weight]], factors: Mapping[str, float] | None = None
    ) -> None:
        check_inputs(inputs)
        self._inputs = inputs
        self._factors = dict.fromkeys(module_names(inputs), 1.0) if factors is None else factors

    def __getitem__(self, name: str) -> Change:
        """One module's sum."""
        return _summed(self.terms(name))

    def __iter__(self) -> Iterator[str]:
        """Names of modules, sorted."""
        return iter(sorted(self._factors))

    def __len__(self) -> int:
        """How many modules there are."""
        return len(self._factors)

    def terms(self, name: str) -> list[tuple[Change, float]]:
        """What is added in one module: changes and c_i / s_i, the weight times the module's own factor."""
        if name not in self._factors:
            return []
        factor = self._factors[name]
        return [(a.modules[name], weight_in(w, name) * factor) for a, w in self._inputs if name in a.modules]

    def dtype(self, name: str) -> torch.dtype:
        """The widest dtype of a module in the inputs."""
        return reduce(torch.promote_types, [dtype_of(change) for change, _ in self.terms(name)])


class RoundedSum(LazyFactors):
    """The modules of a mix as they are written, each computed when it is asked for.

    Args:
        exact: The sum.
        dtypes: As in `mix`.

    Raises:
        StageError: On access, where a sum is no product B A, or its dtype is too coarse for it.
    """

    def __init__(self, exact: ExactSum, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
        self._exact = exact
        self._dtypes = {name: exact.dtype(name) for name in exact} if dtypes is None else dtypes
        self._shapes: dict[str, Factors] = {}

    def __getitem__(self, name: str) -> Factors:
        """The factors of one module, computed in float64 and rounded once."""
        terms, dtype = self._terms(name), self._dtypes[name]
        mixed = rounded(terms, dtype)
        if not (_any(mixed.down) and _any(mixed.up)):
            exact = concatenated(terms)
            if (exact.down.any() and not mixed.down.any()) or (exact.up.any() and not mixed.up.any()):
                kind = str(dtype).removeprefix("torch.")
                raise StageError(
                    f"the change of {name} is too small for {kind}, where all of it becomes 0",
                    hint="a larger weight, or --dtype fp32 (dtype: fp32 in a pipeline)",
                )
        return mixed

    def __iter__(self) -> Iterator[str]:
        """Names of modules, sorted."""
        return iter(self._exact)

    def __len__(self) -> int:
        """How many modules there are."""
        return len(self._exact)

    def shape(self, name: str) -> Factors:
        """The shapes of one module's factors, on the device `meta`."""
        if name not in self._shapes:
            self._shapes[name] = concatenated_shape(self._terms(name), self._dtypes[name])
        return self._shapes[name]

    def _terms(self, name: str) -> list[tuple[Factors, float]]:
        terms = self._exact.terms(name)
        factors = [(change, weight) for change, weight in terms if isinstance(change, Factors)]
        if len(factors) < len(terms):
            raise StageError(f"the change of {name} is not a sum of B A", hint="give a rank, and it is cut to it")
        return factors


def check_inputs(inputs: Sequence[tuple[Adapter | Changes, Weight]]) -> None:
    """Refuse adapters that cannot be added.

    Args:
        inputs: Adapters with weights.

    Raises:
        StageError: As in `mix`.
    """
    if not inputs:
        raise StageError("nothing to mix (got 0 adapters)")
    for _, weight in inputs:
        for number in weight.values() if isinstance(weight, Mapping) else [weight]:
            if not math.isfinite(number):
                raise StageError(f"a weight must be a finite number (got {number})")
    families = sorted({adapter.family for adapter, _ in inputs})
    if len(families) > 1:
        raise StageError(
            f"adapters of different families cannot be mixed (got {' and '.join(families)})",
            hint="their modules have the same names but different shapes and meanings",
        )
    for name in module_names(inputs):
        changes = [adapter.modules[name] for adapter, _ in inputs if name in adapter.modules]
        shapes = {(inputs_of(change), outputs_of(change)) for change in changes}
        if len(shapes) > 1:
            listed = " and ".join(f"in {i} out {o}" for i, o in sorted(shapes))
            raise StageError(
                f"the adapters disagree about the shape of {name} ({listed})", hint="they are for different base models"
            )


def weight_in(weight: Weight, name: str) -> float:
    """What one of an input's modules is multiplied with."""
    return weight[name] if isinstance(weight, Mapping) else weight


def module_names(inputs: Sequence[tuple[Adapter | Changes, Weight]]) -> list[str]:
    """All modules that any of the inputs has, sorted.

    Args:
        inputs: Adapters with weights.

    Returns:
        Module paths.
    """
    return sorted({name for adapter, _ in inputs for name in adapter.modules})


def shared_header(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The header entries on which all inputs agree; of one adapter's own story, none speaks for the mix.

    Args:
        headers: The inputs' headers.

    Returns:
        The entries in common, without ours.
    """
    first = headers[0]
    return {
        name: value
        for name, value in first.items()
        if not name.startswith("draft.") and all(other.get(name) == value for other in headers)
    }


def _summed(terms: Sequence[tuple[Change, float]]) -> Change:
    if all(isinstance(change, Factors) for change, _ in terms):
        return concatenated([(change, weight) for change, weight in terms if isinstance(change, Factors)])
    if len(terms) == 1:
        return scaled(*terms[0])
    low = [(change.low_rank() if isinstance(change, Structured) else change, weight) for change, weight in terms]
    factors = [(change, weight) for change, weight in low if isinstance(change, Factors)]
    first = terms[0][0]
    side = min(outputs_of(first), math.prod(inputs_of(first)))
    if len(factors) == len(terms) and 2 * sum(change.rank for change, _ in factors) <= side:
        return concatenated(factors)
    return Whole(dense_sum(terms), inputs_of(first))


def _any(tensor: Tensor) -> bool:
    """Whether a number is not zero; the first one is, mostly."""
    return bool(tensor.flatten()[:1].any() or tensor.any())

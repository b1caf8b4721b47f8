"""A method as data: which sampling steps carry gradient, where the chain is cut, and where the rollout ends."""

from __future__ import annotations

from collections.abc import Collection

import torch

from draft.diffusion.plan import Plan
from draft.errors import DraftError
from draft.methods.values import AlignProp, Draft, DraftK, DraftLV, DRTune, ReFL

Planned = Draft | DraftK | DraftLV | ReFL | AlignProp | DRTune
"""The methods that are a plan for the rollout itself."""


def draw_plan(method: Planned, steps: int, generator: torch.Generator) -> Plan:
    """The plan of a method for one rollout of T sampling steps.

    DRaFT records all steps, DRaFT-K the last K, DRaFT-LV the last one and n re-noised copies of it
    (arXiv 2309.17400); ReFL one step among the last m, where the rollout ends (arXiv 2304.05977); AlignProp the last K
    with K drawn (arXiv 2310.03739); DRTune K spaced ones before a random stop (arXiv 2405.00760).

    Args:
        method: The method's value.
        steps: Number T of sampling steps.
        generator: Of the draws, on the CPU.

    Returns:
        The plan.

    Raises:
        DraftError: More recorded steps than there are.

    Example:
        >>> draw_plan(DraftK(k=2), 4, torch.Generator()).recorded
        (False, False, True, True)
    """
    check_steps(method, steps)
    match method:
        case Draft():
            return _last(steps, steps)
        case DraftK(k=k):
            return _last(k, steps)
        case DraftLV(copies=copies):
            return _last(1, steps, copies=copies)
        case ReFL(window=window):
            stop = steps - _uniform(1, window, generator)
            return Plan(recorded=_at({stop}, steps), cut=_at({stop} - {0}, steps), stop=stop)
        case AlignProp():
            return _truncated(method, steps, generator)
        case DRTune():
            return _spaced(method, steps, generator)


def check_steps(method: object, steps: int) -> None:
    """Refuse a method that wants more steps than there are.

    Args:
        method: Any method's value.
        steps: Number T of sampling steps.

    Raises:
        DraftError: K or the window is larger than T; its `where` is the method's key.
    """
    for key in ("k", "window"):
        value = getattr(method, key, 1)
        unused = isinstance(method, AlignProp) and method.truncation != "fixed"
        if value > steps and not unused:
            raise DraftError(
                f"method.{key} must be at most the number of sampling steps, {steps} (got {value})",
                hint="kind: draft records all steps" if isinstance(method, DraftK) else "",
            )


def _last(count: int, steps: int, *, copies: int = 0) -> Plan:
    first = steps - count
    return Plan(recorded=tuple(i >= first for i in range(steps)), cut=_at({first} - {0}, steps), copies=copies)


def _truncated(method: AlignProp, steps: int, generator: torch.Generator) -> Plan:
    match method.truncation:
        case "fixed":
            return _last(method.k, steps)
        case "random":
            return _last(_uniform(1, steps, generator), steps)
        case "per_step":
            recorded = tuple(i >= _uniform(0, steps, generator) for i in range(steps))
            return Plan(recorded=recorded, cut=(False,) * steps)
        case "gaussian":
            if steps == 1:
                return _last(1, steps)
            while True:
                left_out = int(torch.randn((), generator=generator) * method.std * steps + method.mean * steps)
                if 1 <= left_out < steps:
                    return _last(steps - left_out, steps)


def _spaced(method: DRTune, steps: int, generator: torch.Generator) -> Plan:
    window = round(method.stop * steps)
    stop = steps - _uniform(1, window, generator) if window else steps - 1
    made = stop + 1 if method.spacing == "prefix" else steps
    k = min(method.k, made)
    gap = made // k
    reached: set[int] = set()
    while not reached:  # ours: drawn again where no step before the stop is recorded, so nothing would learn
        offset = _uniform(0, made - 1 - (k - 1) * gap, generator)
        # Counted from the clean end, as the paper counts.
        reached = {i for i in (made - 1 - offset - j * gap for j in range(k)) if i <= stop}
    return Plan(
        recorded=_at(reached, steps),
        cut=(False,) * steps,
        stop=stop,
        jacobians=False,
        frozen=method.frozen,
    )


def _at(chosen: Collection[int], steps: int) -> tuple[bool, ...]:
    return tuple(i in chosen for i in range(steps))


def _uniform(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))

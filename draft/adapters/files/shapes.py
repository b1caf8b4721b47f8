"""Shapes that no model has: a module of a UNet or text encoder as wide as a published one must be as it is there."""

from __future__ import annotations

import math
from collections.abc import Mapping

from draft.adapters.factors import Factors
from draft.adapters.files.family import is_cross
from draft.adapters.verification.models import BaseModel, of_family
from draft.errors import StageError

# What variants of the published models have otherwise: inpainting's inputs, further conditions.
_VARY = ("unet.conv_in", "unet.conv_out", "unet.add_embedding.linear_1", "unet.class_embedding.linear_1")
# A toy has narrower layers than any published model.
_NARROWEST = 320
_LARGEST = 2**16

_Shape = tuple[int, int]
"""Outputs, and inputs times the kernel's size."""


def check_shapes(modules: Mapping[str, Factors], family: str, *, where: str) -> None:
    """Refuse modules that cannot be a change of any model of a family.

    If some modules of a part (UNet, text encoder) have the shapes of a published model, all that it has must; without,
    a module that has one side of a published layer must have the other.

    Args:
        modules: Factors of the modules' shapes.
        family: The adapter's family.
        where: The file, for errors.

    Raises:
        StageError: A module's shape is impossible.
    """
    shapes = {name: _shape(f) for name, f in modules.items() if not name.startswith("transformer.")}
    models = list(of_family(family))
    for name, shape in shapes.items():
        if max(shape) > _LARGEST:
            raise _impossible(name, shape, "any model", where)
    for part in sorted({name.partition(".")[0] for name in shapes}):
        known = {name: shape for name, shape in shapes.items() if name.startswith(f"{part}.") and name not in _VARY}
        fitting = {
            model.key: sum(shape == _published(model, name) for name, shape in known.items()) for model in models
        }
        best = max(models, key=lambda model: fitting[model.key], default=None)
        if best is None:
            continue
        for name, shape in known.items():
            if fitting[best.key] and _published(best, name) not in (None, shape):
                raise _impossible(name, shape, best.name, where, _published(best, name))
            if not fitting[best.key] and (near := _near(name, shape, models)) is not None:
                raise _impossible(name, shape, near.name, where, _published(near, name))


def _near(name: str, shape: _Shape, models: list[BaseModel]) -> BaseModel | None:
    """A model of whose layer a module has one side only."""
    for model in models:
        wanted = _published(model, name)
        # What a text encoder gives is as wide for toys of a UNet as for the published ones.
        sides = zip(shape[: 1 if is_cross(name) else 2], wanted or (), strict=False)
        if shape != wanted and any(a == b and a >= _NARROWEST for a, b in sides):
            return model
    return None


def _shape(factors: Factors) -> _Shape:
    return factors.up.shape[0], math.prod(factors.down.shape[1:])


def _published(model: BaseModel, name: str) -> _Shape | None:
    shape = model.modules.get(name)
    return None if shape is None else (shape[0], math.prod(shape[1:]))


def _impossible(name: str, shape: _Shape, model: str, where: str, wanted: _Shape | None = None) -> StageError:
    there = "" if wanted is None else f", where it is {wanted[1]} to {wanted[0]}"
    return StageError(f"{name} maps {shape[1]} to {shape[0]}, which is no layer of {model}{there}", where=where)

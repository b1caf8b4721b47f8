"""Which family of models an adapter is for, told from the names and shapes of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from draft.adapters.files.header import Header
from draft.adapters.files.names.sites import Plan
from draft.adapters.files.names.text import is_t5
from draft.adapters.files.names.transformers import PLANS, member_of
from draft.adapters.files.other_families import READ, covered, named_in, recognised
from draft.diffusion.families import FAMILIES, families
from draft.errors import StageError
from draft.family import Family

if TYPE_CHECKING:
    from draft.adapters.factors import Factors

# Up to this width a transformer is a toy of its family's architecture; above it, only published widths are known.
_TOY = 1024
_UNETS = ("sd", "sdxl")

# Widths of the text that the UNets of Stable Diffusion 1 and 2 attend to.
_SD_TEXT = (768, 1024)


def family_of(modules: Mapping[str, Factors], header: Header, *, where: str) -> str:
    """Tell an adapter's family by its modules' names and shapes and by its header, which must not contradict them.

    SDXL differs from its predecessors by its second text encoder, deeper transformers and wider text; where a file has
    none of these, or is a toy's, the header decides. The transformers differ by their layers, their number and their
    width. FLUX.1 and Stable Diffusion 3 share the names of their attention, so that for a toy width the original code's
    names, or else the header, must decide.

    Args:
        modules: Factors by diffusers' path.
        header: The file's header.
        where: The file, for errors.

    Returns:
        The family's name: `sd`, `sdxl`, `sd3`, `flux`, or of one without names of its own here what the header says.

    Raises:
        StageError: The modules are of two kinds of models, or of none that is known, or the header names another.
    """
    architecture = header.metadata.get("modelspec.architecture", "")
    if (row := header_family(architecture)) is not None and any(name.startswith(f"{row.part}.") for name in modules):
        return row.name
    transformer = {name: f for name, f in modules.items() if name.startswith("transformer.")}
    unet = next((name for name in modules if name.startswith("unet.")), None)
    if transformer and unet:
        raise StageError(
            f"the file mixes a UNet's modules ({unet}) with a transformer's ({next(iter(transformer))})", where=where
        )
    if unet is None and (other := named_in(header.metadata)) is not None:
        # Attention layers alone may have the same names and shapes in two families.
        raise StageError(f"a LoRA of {other[0]}, which is not read (its header has {other[1]})", where=where, hint=READ)
    if transformer:
        return _transformer(transformer, header, where=where)
    if unet is None:
        third = any(name.startswith("text_encoder_3.") for name in modules)
        t5 = any(is_t5(name.partition(".")[2]) for name in modules)
        if third or t5:
            return "flux" if architecture.startswith("flux") or not third else "sd3"
    if any(_is_sdxl(name, factors) for name, factors in modules.items()):
        return "sdxl"
    older = any(is_cross(name) and factors.down.shape[1] in _SD_TEXT for name, factors in modules.items())
    return "sdxl" if architecture.startswith("stable-diffusion-xl") and not older else "sd"


def header_family(architecture: str) -> Family | None:
    """The family that a header names, of those whose modules' names and sizes are in no table here.

    Args:
        architecture: The header's `modelspec.architecture`, empty if it has none.

    Returns:
        The row of a family that an installed package brings, or None.
    """
    name = architecture.partition("/")[0]
    known = {*PLANS, *_UNETS}
    if not name or any(row.architecture == name for row in FAMILIES):
        return None
    return next((row for row in families().values() if row.name not in known and row.architecture == name), None)


def _is_sdxl(name: str, factors: Factors) -> bool:
    deep = any(f".transformer_blocks.{i}." in name for i in range(1, 10))
    wide = is_cross(name) and factors.down.shape[1] == 2048
    return name.startswith("text_encoder_2.") or "add_embedding" in name or deep or wide


def is_cross(name: str) -> bool:
    """Whether a module's input is text."""
    return name.endswith(("attn2.to_k", "attn2.to_v"))


def _transformer(modules: Mapping[str, Factors], header: Header, *, where: str) -> str:
    names, architecture = header.tensors, header.metadata.get("modelspec.architecture", "")
    faults = {family: _fault(modules, plan, family) for family, plan in PLANS.items()}
    spelled = {family for family, plan in PLANS.items() if any(_has(name, plan.native) for name in names)}
    marked = spelled or {f for f, plan in PLANS.items() if any(_has(name, plan.marks) for name in modules)}
    possible = sorted(f for f in PLANS if faults[f] is None and marked <= {f})
    if len(possible) > 1:
        possible = [f for f in possible if architecture.startswith(PLANS[f].architecture)]
    if len(possible) == 1:
        other = "" if _has_all_blocks(modules, PLANS[possible[0]]) else covered(names)
    else:
        other = recognised(names)
    if len(possible) == 1 and not other:
        return possible[0]
    if other:
        fault = next((fault for f in sorted(marked) or sorted(PLANS) if (fault := faults[f])), "it has all its blocks")
        raise StageError(f"a LoRA of {other}, which is not read ({fault})", where=where, hint=READ)
    likely = sorted(marked) or sorted(PLANS)
    widths = "; ".join(f"{plan.title} is {' or '.join(map(str, plan.widths))} wide" for plan in PLANS.values())
    raise StageError(
        next((fault for f in likely if (fault := faults[f])), f"{next(iter(modules))} fits two families"),
        where=where,
        hint=f"{widths}; LoRA files of other transformers are not read",
    )


def _has_all_blocks(modules: Mapping[str, Factors], plan: Plan) -> bool:
    """Whether the modules are in every block of a published model's, of those kinds that they are in at all."""
    numbers: dict[str, set[int]] = {}
    for name in modules:
        _, kind, number, *_ = [*name.split("."), "", ""]
        if number.isdigit():
            numbers.setdefault(kind, set()).add(int(number))
    return any(
        all(found == set(range(counts.get(kind, 0))) for kind, found in numbers.items())
        for counts in plan.widths.values()
    )


def _has(name: str, marks: Iterable[str]) -> bool:
    return any(mark in name for mark in marks)


def _fault(modules: Mapping[str, Factors], plan: Plan, family: str) -> str | None:
    """Why the modules are not this family's, or None if they can be."""
    width = 0
    for name, factors in modules.items():
        member = member_of(name.removeprefix("transformer."), family)
        if member is None:
            return f"{plan.title} has no module {name}"
        site, index, _ = member
        rows, columns = factors.up.shape[0], factors.down.shape[1]
        for size, share in ((columns, site.inner), (rows, site.rows[index])):
            if share == 0:
                continue
            width = width or size // share
            if size != width * share:
                return f"{name} maps {columns} to {rows}, which is no layer of {plan.title} at width {width}"
    if width > _TOY and width not in plan.widths:
        return f"{next(iter(modules))} is of a transformer of width {width}, which is not {plan.title}"
    for kind, count in plan.widths.get(width, {}).items():
        for name in modules:
            number = name.removeprefix(f"transformer.{kind}.").partition(".")[0]
            if name.startswith(f"transformer.{kind}.") and int(number) >= count:
                return f"{name} is beyond the {count} {kind} of {plan.title}"
    return None

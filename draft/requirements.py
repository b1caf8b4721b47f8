"""Whether the installed libraries are new enough, read from packages' metadata before any of them is imported."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from draft.errors import ResourceError

DISTRIBUTION = "draft-diffusion"
"""Draft's own distribution."""


def own_requirements() -> list[str]:
    """What Draft's own package declares, without extras.

    Returns:
        Requirements like `transformers>=4.56`; none where Draft runs from a folder that was never installed.
    """
    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    return [line for line in declared if "extra ==" not in line]


def unmet(requirements: Iterable[str]) -> dict[str, str]:
    """The requirements that the installed packages do not meet.

    Args:
        requirements: As in a package's metadata, `diffusers>=0.36`; those whose marker is false here are left out.

    Returns:
        Requirement, without its marker, to the installed version; empty where the package is missing.
    """
    from packaging.requirements import Requirement

    missed = {}
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = ""
        # A development build of a library has what the release it leads to will have.
        if not installed or not requirement.specifier.contains(installed, prereleases=True):
            missed[f"{requirement.name}{requirement.specifier}"] = installed
    return missed


def require(requirements: Iterable[str], *, of: str) -> None:
    """Refuse to go on where libraries are missing or of a version that is not supported.

    Args:
        requirements: As for `unmet`.
        of: Whose they are, for the message: `Draft`, `the family 'flux'`.

    Raises:
        ResourceError: Some are not met; it names each with the installed version.
    """
    if missed := unmet(requirements):
        installed = [f"{needed} (got {present or 'none'})" for needed, present in missed.items()]
        raise ResourceError(
            f"{of} needs {', '.join(installed)}",
            needs=", ".join(missed),
            hint="pip install --upgrade " + " ".join(f"'{needed}'" for needed in missed),
        )

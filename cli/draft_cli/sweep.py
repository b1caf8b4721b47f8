"""`draft mix ... --sweep A:B:N --model M`: a strip of what was mixed, beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draft.errors import ConfigError
from draft_cli.strip import check_stage, check_target, parse_scales, strip_stage, write_strip

_WHERE = "draft mix"


def plan_sweep(
    sweep: str, *, model: str, prompts: Sequence[str], inputs: Sequence[Path], target: Path, force: bool, dry_run: bool
) -> dict[str, Any]:
    """Check a sweep before anything is mixed.

    Args:
        sweep: `A:B:N`, strengths of the whole mix.
        model: What draws.
        prompts: What is drawn.
        inputs: The adapters that are mixed; the first stands in for the mix, which is not there yet.
        target: Where the mix goes.
        force: Whether a strip that is there may be replaced.
        dry_run: Whether nothing is to be written.

    Returns:
        The stage of kind `strip`, with the first input in place of the mix.

    Raises:
        DraftError: Something is wrong with it.
    """
    if dry_run:
        raise ConfigError("--sweep draws with the written mix, and --dry-run writes none", where=_WHERE)
    if not prompts:
        raise ConfigError("--sweep needs a prompt", where=_WHERE, hint='--prompt "a cat"')
    stage = strip_stage(
        inputs[:1],
        model=model,
        prompts=list(prompts),
        scales=parse_scales(sweep, option="--sweep"),
        scales_b=None,
        seeds=[0, 1, 2],
        rewards={},
        sampler={},
        device="auto",
    )
    check_stage(stage)
    check_target(strip_folder(target), force=force)
    return stage


def write_sweep(stage: dict[str, Any], target: Path, *, force: bool, quiet: bool) -> None:
    """Draw the strip of a mix.

    Args:
        stage: As planned.
        target: The mix.
        force: Whether a strip that is there may be replaced.
        quiet: Whether nothing is to be printed.

    Raises:
        DraftError: The model or the mix cannot be used.
    """
    made, _ = write_strip(
        {**stage, "adapters": {"mix": {"from": str(target)}}}, strip_folder(target), force=force, quiet=quiet
    )
    if not quiet:
        print(f"strip in {made['strip']}")


def strip_folder(target: Path) -> Path:
    """Where the strip of a mix goes: beside it."""
    return target.with_name(f"{target.stem}_strip")

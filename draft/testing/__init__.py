"""The contract of a reward as checks that its author runs: from pytest, or as `draft rewards check NAME`.

Example:
    import draft.testing
    from my_package import Brightness

    def test_brightness_is_a_good_reward():
        draft.testing.check_reward(Brightness())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from draft.errors import DraftError
from draft.rewards.calls import brief, where_raised
from draft.rewards.parts import called
from draft.rewards.reward import Reward
from draft.testing.pretended import pretended_accelerator
from draft.types import Prompts

__all__ = ["PROMPTS", "CheckResult", "check_reward", "pretended_accelerator", "run_checks", "table"]

PROMPTS = ("a cat on a blue background", "a red car", "two birds in a tree")
"""The prompts that images are scored with where the caller gives none."""


@dataclass(frozen=True)
class CheckResult:
    """How one check went.

    Args:
        check: The check's name.
        status: How it ended; `unexpected pass` is a failure, too: the reason given for it no longer holds.
        detail: Why it failed or was skipped, or what it measured.
    """

    check: str
    status: Literal["passed", "failed", "skipped", "expected failure", "unexpected pass"]
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether this result lets the reward pass."""
        return self.status in ("passed", "skipped", "expected failure")


def check_reward(
    reward: Reward,
    *,
    prompts: Sequence[str] = PROMPTS,
    size: tuple[int, int] = (64, 64),
    device: str = "cpu",
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[CheckResult, ...]:
    """Check that a reward keeps its contract; raise with every check that fails.

    Args:
        reward: The reward with the parameters to check it with; small models make quick checks.
        prompts: Two or more prompts; one image is made for each; a `draft.Prompts` brings columns for options.
        size: Height and width of the images.
        device: Where to load the reward.
        expected_failures: Name of a check to the reason why this reward fails it.

    Returns:
        One result for each check.

    Raises:
        AssertionError: Checks fail; the message lists each with its reason.
    """
    results = run_checks(reward, prompts=prompts, size=size, device=device, expected_failures=expected_failures)
    bad = [result for result in results if not result.good]
    if bad:
        raise AssertionError(f"reward {reward.name!r} breaks {len(bad)} of {len(results)} checks\n{table(bad)}")
    return results


def run_checks(
    reward: Reward,
    *,
    prompts: Sequence[str] = PROMPTS,
    size: tuple[int, int] = (64, 64),
    device: str = "cpu",
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[CheckResult, ...]:
    """Run all checks and return how each went; see `check_reward`, which raises instead.

    Args:
        reward: The reward with the parameters to check it with.
        prompts: Two or more prompts; one image is made for each.
        size: Height and width of the images.
        device: Where to load the reward.
        expected_failures: Name of a check to the reason why this reward fails it.

    Returns:
        One result for each check, in the order in which they ran.

    Raises:
        DraftError: The arguments make no sense.
    """
    from draft.testing.checks import CHECKS
    from draft.testing.subject import CheckFailed, CheckSkipped, Subject

    if not isinstance(reward, Reward):
        raise DraftError(
            f"check_reward needs a reward with its parameters (got {reward!r})", hint="write Name(), not Name"
        )
    if len(prompts) < 2:
        raise DraftError(f"at least 2 prompts are needed (got {len(prompts)})")
    expected = dict(expected_failures or {})
    if unknown := sorted(set(expected) - set(CHECKS)):
        raise DraftError(f"no such check (got {unknown[0]!r})", hint=f"checks are {', '.join(CHECKS)}")
    subject = Subject(reward, prompts if isinstance(prompts, Prompts) else Prompts(prompts), size, device)
    who, results = called(reward.name, reward), []
    reported: dict[tuple[str, str], str] = {}
    for name, check in CHECKS.items():
        try:
            result = CheckResult(name, "passed", check(subject) or "")
        except CheckSkipped as reason:
            result = CheckResult(name, "skipped", str(reason))
        except CheckFailed as failure:
            result = CheckResult(name, "failed", str(failure))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A stranger's reward may raise anything, and the other checks still have something to say.
            failure = (type(error).__name__, where_raised(error, who))
            if name not in expected and failure in reported:
                result = CheckResult(name, "skipped", f"raised the same as {reported[failure]}")
            else:
                result = CheckResult(name, "failed", f"raised {brief(error)} ({failure[1]})")
                if name not in expected:
                    reported[failure] = name
        if name in expected and result.status == "failed":
            result = CheckResult(name, "expected failure", f"{expected[name]} ({result.detail})")
        elif name in expected and result.status == "passed":
            result = CheckResult(name, "unexpected pass", f"expected to fail: {expected[name]}")
        results.append(result)
    return tuple(results)


def table(results: Sequence[CheckResult]) -> str:
    """Results as aligned lines: check, status, detail."""
    width = max((len(result.check) for result in results), default=0)
    status = max((len(result.status) for result in results), default=0)
    return "\n".join(f"{r.check:<{width}}  {r.status:<{status}}  {r.detail}".rstrip() for r in results)

"""Write docs/rewards.md from the rewards that ship with Draft: `python docs/make_rewards.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from draft.report.table import Table, as_markdown
from draft.rewards.describe import facts, headline, options, yaml_example
from draft.rewards.discovery import DISTRIBUTION, reward_entries
from draft.rewards.loading import find_reward
from draft.rewards.reward import Reward
from draft_rewards._weights import WEIGHTS

PAGE = Path(__file__).with_name("rewards.md")
HEAD = """# Rewards

<!-- Generated from the code by `python docs/make_rewards.py`; a test fails if it is out of date. -->

The rewards that ship with Draft. A score is higher where there is *more* of the named thing; only the sign of `weight`
sets the direction. Every term of a pipeline's `rewards:` may also have `use` (the reward's name, if the label is a
different one), `weight` (default 1) and `device`. `draft rewards` lists what is installed on your machine, `draft
rewards show NAME` prints an entry of this page in the terminal, and [Writing a reward](writing-a-reward.md) is how to
add one.
"""

WEIGHTS_HEAD = """## Published weights

With an empty `revision` these models are read at the commit listed below, whatever their owners have changed since, and
any other model in its newest revision. The licence is the one stated on the model's page. Nothing is downloaded before
a reward is loaded; if a model is missing, the error has the command that fetches it, and with `HF_HUB_OFFLINE=1`
nothing is fetched at all. Weights are read from safetensors, or with `torch.load(weights_only=True)`.
"""


def page() -> str:
    """The complete page."""
    rewards = [find_reward(entry.name) for entry in reward_entries() if entry.dist == DISTRIBUTION]
    rows = [[f"[`{r.name}`](#{r.name})", _kind(r), headline(r)] for r in rewards]
    overview = as_markdown(Table(["reward", "", "what it scores"], rows))
    return "\n\n".join([HEAD.strip(), overview, *map(section, rewards), WEIGHTS_HEAD.strip(), weights()]) + "\n"


def section(reward: type[Reward]) -> str:
    """One reward."""
    rest = inspect.cleandoc(reward.__doc__ or "").partition("\n\n")[2]
    # A docstring's note becomes a paragraph like the others.
    words = "\n\n".join(" ".join(part.split()) for part in rest.split("\n\n")).replace("Note: ", "**Note.** ")
    parts = [f"## {reward.name}", headline(reward), words]
    parts.append("\n".join(f"- {name[0].upper()}{name[1:]}: {text}" for name, text in facts(reward)))
    if listed := options(reward):
        rows = [[f"`{o.name}`", o.type, f"`{o.default}`", o.bounds, o.description] for o in listed]
        parts.append(as_markdown(Table(["option", "type", "default", "bounds", "meaning"], rows)))
    parts.append(f"```yaml\n{yaml_example(reward)}\n```")
    return "\n\n".join(part for part in parts if part)


def weights() -> str:
    """The table of pinned weights."""
    rows = [[f"`{hub}`", f"`{w.revision}`", w.licence, str(w.megabytes)] for hub, w in sorted(WEIGHTS.items())]
    return as_markdown(Table(["on the hub", "commit", "licence", "MB"], rows))


def _kind(reward: type[Reward]) -> str:
    return "differentiable" if reward.differentiable else "metric"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

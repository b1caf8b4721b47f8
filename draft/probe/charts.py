"""The two charts of a probe's page."""

from __future__ import annotations

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from draft.probe.health import Health, recommended
from draft.report.charts import FAINT, INK, LINE, SERIES, style, svg_text


def norm_chart(health: Health) -> str:
    """The gradient's norm against K: mean and range of the batches, and what the steps' sensitivities account for.

    Args:
        health: The measured gradient.

    Returns:
        SVG text.
    """
    truncations, limit = health.truncations, recommended(health)
    ks = [one.k for one in truncations]
    with rc_context(style("norm")):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.fill_between(ks, [one.least for one in truncations], [one.greatest for one in truncations],
                          color=SERIES[0], alpha=0.16, linewidth=0)  # fmt: skip
        axes.plot(
            ks, [one.norm for one in truncations], "o-", color=SERIES[0], linewidth=2, markersize=4, label="measured"
        )
        reach = [one.norm / one.beyond if one.beyond else float("nan") for one in truncations]
        axes.plot(ks, reach, color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)), label="by the sensitivities alone")
        if limit < health.steps:
            axes.axvline(limit + 0.5, color=SERIES[1], linewidth=1.2, label="not recommended from here on")
        axes.set_yscale("log")
        axes.set_title("norm of the gradient of the last K steps")
        axes.set_xlabel("K")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        return svg_text(figure, f"norm of the gradient of the last K of {health.steps} steps against K")


def step_chart(health: Health) -> str:
    """Each step's own term, and the adjoint it is handed.

    Args:
        health: The measured gradient.

    Returns:
        SVG text.
    """
    steps = list(range(health.steps))
    with rc_context(style("steps")):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(steps, health.terms, "o-", color=SERIES[0], linewidth=2, markersize=4, label="the step's own term")
        axes.plot(steps, health.adjoints[1:], "s-", color=SERIES[1], linewidth=1.5, markersize=3.5,
                  label="the adjoint it is handed")  # fmt: skip
        axes.plot(steps, health.grid.sensitivities, color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)),
                  label="its sensitivity")  # fmt: skip
        axes.set_yscale("log")
        axes.set_title("what each step adds")
        axes.set_xlabel("step, from noise to image")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        return svg_text(figure, "norm of each step's own term, its adjoint and its sensitivity")

"""The page of a probe."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from draft.probe.charts import norm_chart, step_chart
from draft.probe.health import recommended, verdict
from draft.probe.results import ProbeResult, grid_table, norm_table, notes
from draft.report.page import render


def write_page(probed: ProbeResult, path: Path, *, config_text: str) -> None:
    """Write the page.

    Args:
        probed: The results.
        path: Where the page goes.
        config_text: The pipeline's configuration, shown as text.
    """
    health, sampler, sentence = probed.health, probed.settings.sampler, verdict(probed.health)
    text = render(
        "probe/page.html.j2",
        mark="probe",
        title=probed.title or "Probe",
        columns=2,
        verdict=f"{sentence[:1].upper()}{sentence[1:]}.",
        facts=[
            ("model", probed.model),
            ("steps", str(health.steps)),
            ("guidance", f"{sampler.guidance_scale:g}"),
            ("batches", f"{health.batches} of {probed.settings.batch_size} images"),
            ("recommended K", f"up to {recommended(health)} of {health.steps}"),
        ],
        charts=[Markup(norm_chart(health)), Markup(step_chart(health))],
        notes=notes(probed),
        norms=norm_table(health),
        grids=grid_table(probed.grids),
        config=config_text,
    )
    path.write_text(text, encoding="utf-8")

"""Strips on a tiny model: what is in each column, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image

from draft.adapters.files.formats import denoiser_factors, read_adapter
from draft.adapters.mixture import mix_files
from draft.diffusion.families import load_text_to_image
from draft.diffusion.generate import generate_images
from draft.diffusion.lora import load_lora, use_lora
from draft.diffusion.settings import SamplerSettings
from draft.errors import ConfigErrors, DraftError
from draft.pipeline.load import load_pipeline
from draft.pipeline.run import run_pipeline
from draft.report.pictures import to_picture
from draft.strips.page import verdict
from draft.strips.results import Strip, cells_of, csv_text, curve, highest, json_text
from draft.strips.settings import StripSettings

SAMPLER = SamplerSettings(num_inference_steps=2, guidance_scale=1)
LONG = "a dog with a very long name that does not fit beside the pictures"


def _wanted(folder: Path, adapter: Path | None, weight: float = 1.0) -> list[bytes]:
    """What the model draws for each row, as the evaluation would draw it."""
    model = load_text_to_image(str(folder / "model"), device=torch.device("cpu"), dtype=torch.float32)
    if adapter is not None:
        load_lora(model.network, denoiser_factors(read_adapter(adapter)), name="one")
        use_lora(model.network, "one", weight)
    prompts, seeds = ["a cat", "a cat", LONG, LONG], [7, 3, 7, 3]
    images = torch.cat(list(generate_images(model, prompts, seeds, SAMPLER, batch_size=3)))
    return [to_picture(image).tobytes() for image in images]


def _drawn(folder: Path, cell: str) -> list[bytes]:
    pictures = []
    for file in sorted((folder / "images" / cell).iterdir()):
        with Image.open(file) as picture:
            pictures.append(picture.tobytes())
    return pictures


def test_scale_0_is_the_base_and_scale_1_the_adapter_bit_for_bit(folder: Path) -> None:
    result = run_pipeline(folder / "demo.yaml")["strip"]
    made = result.outputs["strip"].parent
    assert sorted(path.name for path in (made / "images").iterdir()) == ["0", "0.5", "1"]
    assert _drawn(made, "0") == _wanted(folder, None)
    assert _drawn(made, "1") == _wanted(folder, folder / "a.safetensors")
    assert _drawn(made, "0.5") == _wanted(folder, folder / "a.safetensors", 0.5)
    assert len({_drawn(made, cell)[0] for cell in ("0", "0.5", "1")}) == 3
    assert result.metrics["images"] == 12

    rows = list(csv.DictReader(result.outputs["scores"].open()))
    assert list(rows[0]) == ["scale_a", "row", "seed", "prompt", "kb", "jpeg"]
    assert [(row["scale_a"], row["seed"]) for row in rows[:5]] == [
        ("0.0", "7"), ("0.0", "3"), ("0.0", "7"), ("0.0", "3"), ("1.0", "7"),
    ]  # fmt: skip
    found = json.loads(result.outputs["results"].read_text())
    assert found["cells"] == [[0.0], [1.0], [0.5]]
    for label in ("kb", "jpeg"):
        scores = [float(row[label]) for row in rows if row["scale_a"] == "1.0"]
        assert found["rewards"][label]["scores"][1] == pytest.approx(scores)
        assert found["rewards"][label]["curve"][1]["mean"] == pytest.approx(statistics.fmean(scores))
    page = result.outputs["report"].read_text()
    assert page.count("<figure>") == 12 and page.count("<svg") == 2 and LONG in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert run_pipeline(folder / "demo.yaml")["strip"].action == "reused"
    # The file's seed has no part in it.
    assert run_pipeline(folder / "demo.yaml", ["seed=9"])["strip"].action == "reused"


def test_two_adapters_make_a_grid_whose_cells_are_their_mixes(folder: Path) -> None:
    overrides = [
        "stages.strip.adapters.b={from: b.safetensors}", "stages.strip.scales_b=[0, -1]",
        "stages.strip.scales=[0, 0.5]", "stages.strip.rewards={jpeg: {quality: 50}}", "stages.strip.prompts=[a cat]",
    ]  # fmt: skip
    result = run_pipeline(folder / "demo.yaml", overrides)["strip"]
    made = result.outputs["strip"].parent
    assert sorted(path.name for path in (made / "images").iterdir()) == ["0.5_-1", "0.5_0", "0_-1", "0_0"]
    assert _drawn(made, "0_0") == _wanted(folder, None)[:2]
    assert _drawn(made, "0.5_0") == _wanted(folder, folder / "a.safetensors", 0.5)[:2]
    assert _drawn(made, "0_-1") == _wanted(folder, folder / "b.safetensors", -1.0)[:2]
    mix_files([(folder / "a.safetensors", 0.5), (folder / "b.safetensors", -1.0)], folder / "mix.safetensors")
    mixed = _wanted(folder, folder / "mix.safetensors")[:2]
    for ours, theirs in zip(_drawn(made, "0.5_-1"), mixed, strict=True):
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1  # rounding of 256 levels
    found = json.loads(result.outputs["results"].read_text())
    assert found["cells"] == [[0.0, 0.0], [0.5, 0.0], [0.0, -1.0], [0.5, -1.0]]
    page = result.outputs["report"].read_text()
    assert page.count("<figure>") == 8 and "color-mix" in page


def test_the_sheet_shows_every_image_unchanged_beneath_its_scale(folder: Path) -> None:
    overrides = ["stages.strip.rewards={}", "stages.strip.prompts=[a cat]", "stages.strip.seeds=[7]"]
    result = run_pipeline(folder / "demo.yaml", overrides)["strip"]
    sheet = Image.open(result.outputs["strip"]).convert("RGB")
    made = result.outputs["strip"].parent
    for column, cell in enumerate(("0", "1", "0.5")):
        with Image.open(next((made / "images" / cell).iterdir())) as picture:
            large = picture.resize((96, 96), Image.Resampling.NEAREST)
        x = 156 + column * 102
        assert sheet.crop((x, 46, x + 96, 142)).tobytes() == large.tobytes()
    assert "Rewards" not in result.outputs["report"].read_text()
    assert list(result.metrics) == ["images"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scales=[0, 1, 0]", "stages.strip.scales has 0 twice"),
        ("seeds=[1, 1]", "stages.strip.seeds has 1 twice"),
        ("scales=[]", "stages.strip.scales is empty"),
        ("scales=[.inf]", "stages.strip.scales.0 must be"),
        ("scales_b=[1]", "stages.strip.scales_b has no effect with one adapter"),
        ("adapters={}", "stages.strip.adapters is empty"),
        ("adapters.a.weight=0.5", "unknown key 'stages.strip.adapters.a.weight'"),
        ("adapters={a: {from: a.safetensors}, b: {from: b.safetensors}, c: {from: a.safetensors}}",
         "stages.strip.adapters must be one or two (got 3)"),
        ("seed=3", "unknown key 'stages.strip.seed'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_drawn(folder: Path, override: str, message: str) -> None:
    with pytest.raises(DraftError) as caught:
        load_pipeline(folder / "demo.yaml", [f"stages.strip.{override}"])
    found = caught.value.errors if isinstance(caught.value, ConfigErrors) else [caught.value]
    assert len(found) == 1 and message in found[0].what, found


def test_a_rehearsal_draws_two_seeds_and_refuses_foreign_files(folder: Path) -> None:
    with pytest.raises(DraftError, match="stages.strip.adapters.a.from was trained on another model"):
        load_pipeline(folder / "demo.yaml", rehearse=True)
    overrides = ["stages.strip.seeds=[4, 5, 6]", "stages.strip.model=emoji", "stages.strip.batch_size=99"]
    stage = load_pipeline(folder / "demo.yaml", overrides[:2], rehearse=True)
    assert stage.stages["strip"].config.seeds == (4, 5, 6)  # chosen for this rehearsal
    (folder / "demo.yaml").write_text((folder / "demo.yaml").read_text().replace("[7, 3]", "[4, 5, 6]"))
    stage = load_pipeline(folder / "demo.yaml", overrides[1:], rehearse=True)
    assert stage.stages["strip"].config.seeds == (4, 5)


def _strip(*scores: tuple[float, ...]) -> Strip:
    settings = StripSettings(scales=(0.0, 1.0, 2.0), seeds=tuple(range(len(scores[0]))))
    count = len(scores[0])
    return Strip("", "m", ("a",), cells_of(settings, 1), ("p",) * count, settings.seeds, {"r": scores}, {}, settings)


def test_curves_have_mean_deviation_and_range_and_leave_out_what_has_no_score() -> None:
    strip = _strip((1.0, 3.0), (math.nan, 5.0), (math.nan, math.nan))
    first, second, third = curve(strip, "r")
    assert (first.mean, first.deviation, first.least, first.greatest) == (2.0, 1.0, 1.0, 3.0)
    assert (second.mean, second.deviation) == (5.0, 0.0)
    assert math.isnan(third.mean)
    assert highest(strip, "r") == (1, 1)  # the first row is highest at scale 0, where it has its only score
    assert json.loads(json_text(strip))["rewards"]["r"]["curve"][2]["mean"] is None
    assert csv_text(strip).splitlines()[1] == "0.0,0,0,p,1.0"


def test_the_highest_cell_is_told_with_the_rows_that_agree() -> None:
    assert highest(_strip((1.0, 5.0), (4.0, 4.0), (3.0, 4.5)), "r") == (1, 1)
    assert highest(_strip((2.0, 2.0), (2.0, 2.0), (1.0, 2.0)), "r") == (0, 2)  # of equal ones the first
    assert highest(_strip((math.nan,), (math.nan,), (math.nan,)), "r") is None
    assert verdict(_strip((1.0, 5.0), (4.0, 4.0), (3.0, 4.5))) == "r is highest at 1 (by itself in 1 of 2 rows)."
    assert verdict(_strip((1.0,), (4.0,), (3.0,))) == "r is highest at 1."
    assert verdict(_strip((math.nan,), (math.nan,), (math.nan,))) == "a over 3 scales, 1 row."

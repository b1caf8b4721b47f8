"""The report page: one file, nothing foreign in it, right with odd data, and visible in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from draft.evaluation.charts import read_curves
from draft.evaluation.page import write_page
from draft.evaluation.results import Results, compare, verdict
from draft.evaluation.settings import EvaluateSettings
from draft.report.numbers import number

EVIL = "<script>document.title='hacked'</script> & \"quoted\" $5 {{ 7*7 }}"
NAN = float("nan")


def make_results(
    arms: int = 4, prompts: int = 12, size: int = 64, *, folder: Path, title: str = "A test"
) -> tuple[Results, dict]:
    generator = np.random.default_rng(0)
    names = ["base", *(f"adapter_{i}" for i in range(arms))]
    texts = [EVIL, "a cat " * 60, *(f"prompt {i}" for i in range(prompts - 2))][:prompts]
    scores, pictures = {}, {}
    for k, arm in enumerate(names):
        up = (0.5 + 0.3 * k + generator.normal(0, 0.01, prompts)).tolist()
        flat = [0.25] * prompts
        odd = [NAN] * prompts if k == 1 else generator.normal(0, 1, prompts).tolist()
        scores[arm] = {"up": up, "flat": flat, "all_missing_in_one": odd}
        (folder / arm).mkdir()
        pictures[arm] = []
        for i in range(prompts):
            path = folder / arm / f"{i}.png"
            noise = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
            pictures[arm].append(path)
    cells = compare(scores, range(prompts), samples=100, seed=0)
    weights = {name: 1.0 if i else 0.7 for i, name in enumerate(names[1:])}
    settings = EvaluateSettings(bootstrap_samples=100)
    descriptions = dict.fromkeys(["up", "flat", "all_missing_in_one"], "What it measures & <how>.")
    results = Results(
        title,
        "emoji",
        weights,
        tuple(texts),
        tuple(range(prompts)),
        tuple(range(prompts)),
        cells,
        settings,
        descriptions,
    )
    return results, pictures


def make_page(folder: Path, **options) -> Path:
    results, pictures = make_results(folder=folder, **options)
    metrics = folder / "metrics.jsonl"
    rows = [
        {"step": k + 1, "reward": k / 10, "reward/up": k / 10, "grad_norm": NAN if k == 3 else 1.0} for k in range(20)
    ]
    metrics.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 21, "rew')
    curves = {"adapter_0 <b>": metrics, "gone": folder / "none.jsonl"}
    write_page(results, pictures, folder / "report.html", curves=curves, config_text="name: x\nevil: </pre><b>")
    return folder / "report.html"


class Links(HTMLParser):
    """Collects everything a browser would fetch, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    text = make_page(tmp_path).read_text()
    parser = Links()
    parser.feed(text)
    outside = [link for link in parser.links if not link.startswith(("data:", "#"))]
    assert not outside and "script" not in parser.tags and "link" in parser.tags
    assert not re.search(r"url\((?!#)|@import", text)
    assert str(tmp_path) not in text


def test_the_page_forbids_everything_but_its_own_pictures_and_styles(tmp_path: Path) -> None:
    text = make_page(tmp_path).read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy and text.index(policy[0]) < text.index("<style>")
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    styles = set(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL))
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in styles}
    assert set(rules["style-src-elem"].split()) == hashes and len(hashes) > 1


def test_prompts_labels_and_configuration_are_shown_as_text(tmp_path: Path) -> None:
    text = make_page(tmp_path).read_text()
    assert "<script>" not in text and "&lt;script&gt;document.title=" in text and "{{ 7*7 }}" in text
    assert "evil: &lt;/pre&gt;&lt;b&gt;" in text and "adapter_0 &lt;b&gt;" in text


def test_twelve_prompts_and_five_arms_of_noise_stay_under_three_megabytes(tmp_path: Path) -> None:
    assert make_page(tmp_path).stat().st_size < 3_000_000


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    page = make_page(tmp_path, arms=1, prompts=2, size=512)
    assert "data:image/webp" in page.read_text() and page.stat().st_size < 1_000_000


@pytest.mark.parametrize(("arms", "prompts"), [(0, 1), (1, 1), (9, 3)])
def test_few_and_many_arms_work(tmp_path: Path, arms: int, prompts: int) -> None:
    text = make_page(tmp_path, arms=arms, prompts=prompts).read_text()
    assert text.count("<figure>") == (arms + 1) * prompts


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    results, pictures = make_results(folder=tmp_path, arms=2, prompts=3)
    for name in ("one.html", "two.html"):
        write_page(results, pictures, tmp_path / name, curves={}, config_text="")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert "Training" not in (tmp_path / "one.html").read_text()


def test_the_verdict_names_what_moved_beyond_chance_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    results, _ = make_results(folder=tmp_path / "two", arms=2)
    assert verdict(results).startswith("On 12 prompts, adapter_0 raises up; adapter_1 raises up")
    (tmp_path / "none").mkdir()
    alone, _ = make_results(folder=tmp_path / "none", arms=0, prompts=1)
    assert verdict(alone) == "emoji on its own, 1 prompt and 1 images."


def test_curves_leave_out_broken_lines_and_values_that_are_not_finite(tmp_path: Path) -> None:
    make_page(tmp_path)
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert list(curves) == ["reward", "reward/up", "grad_norm"]
    assert len(curves["reward"]) == 20 and len(curves["grad_norm"]) == 19
    assert read_curves(tmp_path / "none.jsonl") == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.27314, "0.2731"),
        (-1.5, "−1.500"),
        (12.345, "12.35"),
        (1234.5, "1234"),
        (1.2e6, "1.2e+06"),
        (0.0, "0.0000"),
        (NAN, "–"),
    ],
)
def test_numbers_are_short_and_keep_what_counts(value: float, text: str) -> None:
    assert number(value) == text


# The page itself has no script; this one, put into a copy, measures it from inside.
PROBE = """
window.problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("load", () => {
  const seen = selector => {
    const box = document.querySelector(selector)?.getBoundingClientRect();
    return box && box.width > 40 && box.height > 15;
  };
  const wanted = ["#verdict", "#results table", "#gains svg", "#pictures img", "#training svg", "pre"];
  document.documentElement.dataset.result = JSON.stringify({
    overflow: Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth),
    errors: problems,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    images: document.images.length,
    hidden: wanted.filter(selector => !seen(selector)),
    loaded: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
  });
});
"""
RELAY = """
setInterval(() => {
  const found = document.getElementById("frame").contentDocument?.documentElement?.dataset.result;
  if (found) document.documentElement.dataset.result = found;
}, 50);
"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_chromium_shows_the_page_without_errors_or_sideways_scrolling(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "needs Chromium: apt-get install chromium"
    page = make_page(tmp_path, title="A" * 120)
    probed = tmp_path / "probed.html"
    # The policy of the page, and beside it this one script.
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = page.read_text().replace("default-src 'none'", f"default-src 'none'; script-src 'sha256-{digest}'", 1)
    foreign = "<script>document.title = 'foreign'</script><style>main { display: none }</style>"
    probed.write_text(text.replace("<style>", f"<script>{PROBE}</script>{foreign}<style>", 1))
    # Chromium's windows are at least 500 pixels wide, so the page is shown in a frame of the wanted width.
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="frame" width="{width}" height="900" src="probed.html"></iframe><script>{RELAY}</script>'
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=8000 --enable-logging=stderr "
        "--allow-file-access-from-files --window-size=1400,1000 --dump-dom"
    )
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", outer.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # The foreign script and the foreign style are refused, and nothing else is.
    said = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert len(said) == 2 and all("Content Security Policy" in line for line in said), said
    found = re.search(r'data-result="([^"]*)"', shown.stdout)
    assert found, shown.stdout[:300]
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result == {"overflow": 0, "errors": [], "broken": 0, "images": 60, "hidden": [], "loaded": 0}

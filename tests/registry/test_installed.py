"""Real distributions in a folder of their own, seen from the command line as a user sees them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "plugins" / "example"
PIPELINE = """
name: posters
stages:
  train:
    kind: train
    model: {model}
    prompts: [a cat]
    rewards:
      palette: {{spot: {spot}}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, pip: list[str]) -> Path:
    """The example, built into a wheel and installed by pip into an empty folder."""
    pytest.importorskip("hatchling")
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "example")
    target = tmp_path_factory.mktemp("installed")
    command = [*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([*command, str(target), str(source)], check=True, capture_output=True, timeout=300)
    return target


@pytest.fixture
def example(installed: Path, site: Any) -> Any:
    site.folder = installed
    return site


def test_the_installed_example_is_listed_and_shown(example: Any) -> None:
    rows = json.loads(example.command("rewards", "list", "--json").stdout)
    row = next(row for row in rows if row["name"] == "palette")
    assert (row["package"], row["version"]) == ("draft-reward-palette", "0.1.0")
    assert row["summary"].startswith("How well a few inks print an image")
    shown = example.command("rewards", "show", "palette").stdout
    assert "draft-reward-palette 0.1.0" in shown
    assert "1 to 16" in shown
    assert 'rewards:\n    palette:\n      weight: 1.0\n      inks: "#000000 #ffffff"\n      spot: 1' in shown
    assert "draft_reward_palette" in example.command("plugins").stdout


def test_the_installed_example_keeps_the_contract(example: Any) -> None:
    checked = example.command("rewards", "check", "palette", "spot=2")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "palette: keeps its contract" in checked.stdout


def test_the_examples_own_tests_pass(example: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"), "-c", "/dev/null"],
        env={**os.environ, "PYTHONPATH": str(example.folder)},
        cwd=example.folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout


def test_a_pipeline_may_use_the_installed_example(example: Any, tmp_path: Path) -> None:
    file = tmp_path / "posters.yaml"
    file.write_text(PIPELINE.format(spot=2, model="emoji"), encoding="utf-8")
    good = example.command("check", str(file))
    assert good.returncode == 0, good.stderr
    file.write_text(PIPELINE.format(spot=17, model="emoji"), encoding="utf-8")
    bad = example.command("check", str(file))
    assert bad.returncode == 2
    assert "must be at most 16" in bad.stderr
    without = example.command("check", str(file), environment={"DRAFT_DISABLE_PLUGINS": "1"})
    assert without.returncode == 2
    assert "unknown reward (got 'palette')" in without.stderr
    assert "hint: DRAFT_DISABLE_PLUGINS=1 turns off draft-reward-palette 0.1.0, which offers it" in without.stderr


def test_a_package_that_uses_a_built_in_name_is_listed_shown_and_used_by_its_distribution(
    site: Any, tmp_path: Path
) -> None:
    site.reward("draft-shadow", "shadow_jpeg", "jpeg")
    rows = json.loads(site.command("rewards", "list", "--json").stdout)
    shared = [(row["use"], row["package"]) for row in rows if row["name"] == "jpeg"]
    assert shared == [("jpeg", "draft-diffusion"), ("draft-shadow:jpeg", "draft-shadow")]
    shown = site.command("rewards", "show", "jpeg")
    assert shown.returncode == 0 and shown.stdout.startswith("jpeg   draft-diffusion ")
    warning = "warning: reward 'jpeg' is the built-in one; that of draft-shadow 1.2.3 is 'draft-shadow:jpeg'\n"
    assert shown.stderr == warning
    other = site.command("rewards", "show", "draft-shadow:jpeg")
    assert other.stdout.startswith("jpeg   draft-shadow 1.2.3 ") and not other.stderr
    assert 'rewards:\n    jpeg:\n      use: "draft-shadow:jpeg"\n      weight: 1.0' in other.stdout
    file = tmp_path / "p.yaml"
    file.write_text(
        PIPELINE.format(spot=2, model="emoji").replace("palette: {spot: 2}", 'x: {use: "draft-shadow:jpeg"}')
    )
    checked = site.command("check", str(file))
    assert checked.returncode == 0, checked.stderr


def test_the_commands_survive_every_kind_of_bad_plugin(site: Any) -> None:
    site.reward("draft-one", "bad_one", "twin")
    site.reward("draft-two", "bad_two", "twin")
    site.install("draft-broken", "bad_import", "import no_such_module", rewards={"broken": "bad_import"})
    typo = "import draft\n@draft.hookimpl\ndef draft_reward():\n    return []\n"
    site.install("draft-typo", "bad_typo", typo, rewards={"typo": "bad_typo"}, extension="typo")

    listed = site.command("rewards")
    assert listed.returncode == 0
    assert all(word in listed.stdout for word in ("draft-one:twin", "draft-two:twin", "broken", "typo", "jpeg"))

    plugins = site.command("plugins")
    assert plugins.returncode == 1, plugins.stderr
    broken = f"No module named 'no_such_module' at {site.folder / 'bad_import.py'}:1"
    assert "plugin draft-broken 1.2.3 (bad_import): cannot be imported" in plugins.stdout and broken in plugins.stdout
    assert "3 of " in plugins.stdout.splitlines()[-1]
    assert "did you mean 'draft_rewards'?" in plugins.stdout

    models = site.command("models")
    assert models.returncode == 0
    assert "emoji" in models.stdout
    assert "unknown hook 'draft_reward'" in models.stderr

    for name, told in {
        "twin": "two plugins offer a reward 'twin': draft-one 1.2.3 and draft-two 1.2.3",
        "broken": "plugin draft-broken 1.2.3 (bad_import): cannot be imported: ModuleNotFoundError",
        "typo": "unknown hook 'draft_reward'",
        "jepg": "did you mean 'jpeg'?",
    }.items():
        shown = site.command("rewards", "show", name)
        assert shown.returncode == 2
        assert told in shown.stderr
        assert "Traceback" not in shown.stderr
    assert site.command("rewards", "show", "draft-two:twin").returncode == 0

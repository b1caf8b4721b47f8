"""Each module imports alone and without a warning of ours; what must be quick imports no torch."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"draft": "draft", "draft_cli": "cli/draft_cli", "draft_rewards": "plugins/draft_rewards"}
LIGHT = (
    "draft",
    "draft.errors",
    "draft.marks",
    "draft.files",
    "draft.processes",
    "draft.types",
    "draft.prompts",
    "draft.shelves",
    "draft.progress",
    "draft.rewards",
    "draft.isolation",
    "draft.pipeline",
    "draft.authoring.scaffold",
    "draft.authoring.stand_in",
    "draft.testing",
    "draft.diffusion.control.schedules",
    "draft.diffusion.control.values",
    "draft.methods.values",
    "draft.diffusion.settings",
    "draft.training.settings",
    "draft.evaluation.settings",
    "draft.comparison.settings",
    "draft.strips.settings",
    "draft_cli",
    "draft_rewards",
    "draft_emoji.plugin",
    "draft_emoji.judge",
)
HEAVY = (
    "draft.testing.checks",
    "draft.testing.elsewhere",
    "draft.testing.prompts",
    "draft.testing.side_effects",
    "draft.testing.subject",
    "draft.testing.pretended.answers",
    "draft.testing.pretended.calls",
    "draft.testing.pretended.moves",
    "draft.testing.pretended.pretence",
    "draft.testing.pretended.rules",
    "draft.testing.pretended.tensor",
    "draft.isolation.remote",
    "draft.isolation.tensors",
)


def modules() -> list[str]:
    found = []
    for package, folder in PACKAGES.items():
        walked = pkgutil.walk_packages([str(ROOT / folder)], f"{package}.", onerror=lambda name: None)
        found += [package, *(module.name for module in walked)]
    return sorted(name for name in found if not name.endswith("__main__"))


def light(name: str) -> bool:
    return name not in HEAVY and any(name == head or name.startswith(f"{head}.") for head in LIGHT if head != "draft")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)


# Every module gets a fresh set of the project's own modules, so that each is imported first once; the third-party
# ones stay, or this would take minutes.
ALONE = """
import importlib, json, sys, warnings
own = ("draft", "draft_cli", "draft_rewards", "draft_emoji")
failed = {{}}
for name in {names}:
    for known in [m for m in sys.modules if m.partition(".")[0] in own]:
        del sys.modules[known]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            importlib.import_module(name)
        ours = [str(w.message) for w in caught if any(f"/{{o}}/" in w.filename for o in own)]
        if ours:
            failed[name] = ours[0]
    except Exception as error:
        failed[name] = f"{{type(error).__name__}}: {{error}}"
    if {torch_free} and "torch" in sys.modules:
        failed[name] = "imports torch"
        break
print(json.dumps(failed))
"""


def alone(names: list[str], *, torch_free: bool) -> dict[str, str]:
    done = run(ALONE.format(names=names, torch_free=torch_free))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_module_imports_alone_and_without_a_warning_of_ours() -> None:
    assert alone([name for name in modules() if not light(name)], torch_free=False) == {}


def test_whatever_answers_quickly_imports_no_torch() -> None:
    names = ["draft", *(name for name in modules() if light(name)), "draft_emoji.plugin", "draft_emoji.judge"]
    assert alone(names, torch_free=True) == {}


# What Windows lacks. Other packages, which look at the system's name, are imported before it goes.
LESS = """
import importlib, json, os, signal, sys
names, first = {names}, {first}
for name in first:
    importlib.import_module(name)
for known in [m for m in sys.modules if m.partition(".")[0] in ("draft", "draft_cli", "draft_rewards", "draft_emoji")]:
    del sys.modules[known]
for name in ("fcntl", "pwd", "grp", "resource", "termios", "pty"):
    sys.modules[name] = None
for name in ("fork", "killpg", "setsid", "getpgrp", "getpgid", "getuid", "geteuid", "sysconf", "openpty"):
    delattr(os, name)
for name in ("SIGKILL", "SIGUSR1", "SIGHUP"):
    delattr(signal, name)
failed = {{}}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(failed))
"""


@pytest.mark.parametrize("quick", [True, False])
def test_each_module_imports_where_a_system_has_only_what_windows_has(quick: bool) -> None:
    names = [name for name in modules() if light(name)] if quick else modules()
    done = run(LESS.format(names=names, first=[] if quick else names))
    assert done.returncode == 0, done.stderr
    assert "draft_cli.app" in names and json.loads(done.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize("words", [["--help"], ["rewards", "list"], ["rewards", "show", "clip_score"], ["models"]])
def test_the_command_answers_without_importing_torch(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["draft", *{words!r}]
from draft_cli.app import main
try:
    main()
finally:
    heavy = [m for m in ("torch", "diffusers", "transformers", "scipy", "matplotlib") if m in sys.modules]
    print("heavy:", heavy, file=sys.stderr)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stderr


def test_listing_rewards_imports_no_plugin() -> None:
    code = """
import sys
sys.argv = ["draft", "rewards"]
from draft_cli.app import main
try:
    main()
finally:
    print("plugins:", [m for m in sys.modules if m.startswith(("draft_rewards", "draft_emoji"))], file=sys.stderr)
"""
    assert "plugins: []" in run(code).stderr


def test_python_dash_m_draft_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "draft", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "rewards" in done.stdout


def test_no_torchvision_on_a_machine_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU machine may have a torchvision that fits its torch")
    assert importlib.util.find_spec("torchvision") is None

"""What the command line says, word for word, and what it must not import to say it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from draft_cli import app as app_module
from draft_cli.app import COMMANDS, main

HELP = """\
Usage: draft [OPTIONS] COMMAND [ARGS]...

  Teach a diffusion model what you like: rewards backpropagated through
  sampling into LoRA adapters.

Options:
  --version    Show the version and exit.
  --traceback  Show where in the code an error comes from; goes anywhere in a
               line.
  --help       Show this message and exit.

Commands:
  run        Run a pipeline file.
  check      Check a pipeline file without running it.
  mix        Mix adapters, each with a weight, into one.
  merge      Merge adapters into a model's weights.
  extract    Extract an adapter from two models.
  inspect    Show what an adapter file holds: family, ranks, norms, metadata.
  diff       Compare two adapters module by module.
  convert    Write an adapter in another format or dtype.
  resize     Cut an adapter to a smaller rank, with a known error.
  verify     Check that an adapter loads everywhere, at the right strength.
  strip      Draw what an adapter does over its scale, or two over both.
  reproduce  Write the pipeline that made an adapter, out of its metadata.
  rewards    List, write, check, score with and try rewards.
  models     Show the models that pipelines may name.
  cache      Show or clear what Draft keeps on disk to save time.
  plugins    Show the installed plugins and their state.
  schema     Print the JSON Schema of pipeline files.
"""

PIPELINE = """\
name: small
stages:
  both:
    kind: mix
    adapters:
      a: {from: a.safetensors, weight: 0.7}
"""

Draft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Draft:
    """Call the command in a folder with a small pipeline; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    (tmp_path / "small.yaml").write_text(PIPELINE)
    (tmp_path / "a.safetensors").write_text("not an adapter")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["draft", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_help_lists_the_commands(draft: Draft) -> None:
    assert draft("--help") == (0, HELP, "")


def test_the_version_is_one_line(draft: Draft) -> None:
    code, out, err = draft("--version")
    assert (code, err) == (0, "")
    assert out.startswith("draft 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(draft: Draft, command: str) -> None:
    code, out, err = draft(command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: draft {command}" in out


def test_a_misspelt_command_is_told_with_the_right_one(draft: Draft) -> None:
    text = "error: command line: unknown command 'rnu'\n  hint: did you mean 'run'?\n"
    assert draft("rnu") == (2, "", text)


def test_a_missing_argument_is_told(draft: Draft) -> None:
    code, out, err = draft("check")
    assert (code, out) == (2, "")
    assert "Missing argument 'FILE'" in err


def test_a_good_file_is_ok(draft: Draft) -> None:
    assert draft("check", "small.yaml") == (0, "ok: 1 stage: both (mix)\n", "")
    assert draft("check", "small.yaml", "stages.both.adapters.a.weight=0.5")[0] == 0


def test_all_errors_of_a_file_are_printed_at_once(draft: Draft, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(PIPELINE.replace("weight: 0.7", "wieght: 0.7").replace("name:", "nmae:"))
    assert draft("check", "small.yaml", "stages.both.format=x") == (
        2,
        "",
        "error: small.yaml:1: unknown key 'nmae'\n"
        "  hint: did you mean 'name'?\n"
        "error: small.yaml:6: unknown key 'stages.both.adapters.a.wieght'\n"
        "  hint: did you mean 'weight'?\n"
        "error: command line, 'stages.both.format=x': stages.both.format must be 'auto', 'kohya', 'diffusers' or "
        "'peft' (got 'x')\n",
    )


def test_a_dry_run_prints_the_plan(draft: Draft, tmp_path: Path) -> None:
    assert draft("run", "small.yaml", "--dry-run") == (0, "both: will run (has not run)\n", "")
    assert not (tmp_path / "runs").exists()


LISTING = "rehearsal on the embedded models, all as in the file except:\n  name: small -> small-rehearsal\n"


def test_a_rehearsal_says_first_what_it_replaces(draft: Draft, tmp_path: Path) -> None:
    assert draft("check", "small.yaml", "--rehearse") == (0, f"{LISTING}ok: 1 stage: both (mix)\n", "")
    planned = f"{LISTING}both: will run (has not run)\n"
    assert draft("run", "small.yaml", "--rehearse", "--dry-run") == (0, planned, "")
    code, out, err = draft("run", "small.yaml", "--rehearse")
    assert (code, out) == (2, f"{LISTING}[1/1] both: runs (has not run)\n")
    assert err.endswith("a.safetensors: not a safetensors file\n")
    assert (tmp_path / "runs" / "small-rehearsal" / "both.partial").is_dir()


def test_a_machine_that_is_too_small_gets_the_command_of_a_rehearsal(draft: Draft, monkeypatch) -> None:
    from draft.errors import ResourceError
    from draft.pipeline import run

    def short(job) -> None:
        raise ResourceError("there is no GPU here", needs="a GPU", hint="buy one")

    monkeypatch.setitem(run.run_pipeline.__kwdefaults__, "executors", {"mix": short})
    code, _, err = draft("run", "small.yaml", "seed=1")
    assert (code, err) == (
        2,
        "error: stage 'both': there is no GPU here\n"
        "  needs: a GPU\n"
        "  hint: buy one; or try the same pipeline at small scale now: draft run small.yaml --rehearse\n"
        "  resume: draft run small.yaml seed=1\n",
    )


def test_a_failing_stage_says_how_to_go_on_where_it_has_begun(draft: Draft, tmp_path: Path, monkeypatch) -> None:
    from draft.errors import ConfigError, StageError
    from draft.pipeline import run

    def fail(job) -> None:
        (job.folder / "half").write_text("half")
        raise failure

    monkeypatch.setitem(run.run_pipeline.__kwdefaults__, "executors", {"mix": fail})
    failure = StageError("the disk is full")
    code, out, err = draft("run", "small.yaml", "seed=1", "--runs-dir", "elsewhere")
    assert (code, out) == (2, "[1/1] both: runs (has not run)\n")
    assert err == (
        "error: stage 'both': the disk is full\n  resume: draft run small.yaml seed=1 --runs-dir elsewhere\n"
    )
    assert not (tmp_path / "elsewhere" / "small" / "both").exists()
    failure = ConfigError("there are no prompts")
    assert draft("run", "small.yaml")[2] == "error: stage 'both': there are no prompts\n"


def test_a_file_that_cannot_be_read_is_an_error_without_a_way_to_go_on(draft: Draft) -> None:
    code, _, err = draft("run", "small.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert err.endswith("a.safetensors: not a safetensors file\n")


@pytest.mark.parametrize(
    ("name", "code", "word"), [("KeyboardInterrupt", 130, "interrupted"), ("Terminated", 143, "stopped")]
)
def test_an_interrupted_run_says_how_to_go_on(draft: Draft, monkeypatch, name: str, code: int, word: str) -> None:
    from draft.pipeline import interrupt, run

    def stop(job) -> None:
        raise {"KeyboardInterrupt": KeyboardInterrupt, "Terminated": interrupt.Terminated}[name]

    monkeypatch.setitem(run.run_pipeline.__kwdefaults__, "executors", {"mix": stop})
    assert draft("run", "small.yaml") == (
        code,
        "[1/1] both: runs (has not run)\n",
        f"{word}\n  resume: draft run small.yaml\n",
    )


def test_a_bug_shows_its_traceback(draft: Draft, monkeypatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(app_module, "COMMANDS", {"check": (f"{__name__}:unused", "")})
    monkeypatch.setattr(app_module.importlib, "import_module", lambda name: broken())
    with pytest.raises(ZeroDivisionError, match="a bug"):
        draft("check", "x")


def test_a_finished_run_lists_its_results_and_a_second_one_reuses_them(draft: Draft, monkeypatch) -> None:
    from draft.pipeline import run

    def write(job) -> dict[str, float]:
        (job.folder / "adapter.safetensors").write_text("x")
        return {}

    monkeypatch.setitem(run.run_pipeline.__kwdefaults__, "executors", {"mix": write})
    results = "results in runs/small:\n  both.adapter  runs/small/both/adapter.safetensors\n"
    code, out, err = draft("run", "small.yaml")
    assert (code, err) == (0, "")
    assert out == f"[1/1] both: runs (has not run)\n[1/1] both: done in 0 s\n{results}"
    assert draft("run", "small.yaml") == (0, f"[1/1] both: reused\n{results}", "")
    verified = "[1/1] both: reused (its files were read and are intact)\n"
    assert draft("run", "small.yaml", "--verify") == (0, f"{verified}{results}", "")
    adapter = Path("runs/small/both/adapter.safetensors")
    state = adapter.stat()
    adapter.write_text("y")
    os.utime(adapter, ns=(state.st_atime_ns, state.st_mtime_ns))
    planned = "both: will run (output changed: adapter.safetensors)\n"
    assert draft("run", "small.yaml", "--verify", "--dry-run") == (0, planned, "")


HEAVY = ("torch", "diffusers", "transformers", "peft", "rich", "matplotlib")
SCRIPT = """
import sys
from draft_cli.app import main
sys.argv = ["draft", *{arguments!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
found = [name for name in {heavy!r} if name in sys.modules]
assert not found, found
"""


def quietly(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(arguments=arguments, heavy=HEAVY)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["schema"], ["rewards", "list"]])
def test_help_and_lists_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    quietly(tmp_path, *arguments)


def test_checking_and_a_fully_reused_run_import_nothing_heavy(tmp_path: Path, tiny_module: ModuleType) -> None:
    tiny_module.save_outline(tmp_path / "model")
    (tmp_path / "small.yaml").write_text(
        "name: small\nstages:\n  train:\n    kind: train\n    model: model\n    prompts: [a cat]\n"
        "    rewards: {jpeg: {quality: 50}, clip_score: {model: model}}\n"
    )
    assert quietly(tmp_path, "check", "small.yaml") == "ok: 1 stage: train (train)\n"
    assert "model -> emoji/clip" in quietly(tmp_path, "check", "small.yaml", "--rehearse")
    from draft.pipeline.run import run_pipeline

    def write(job) -> dict[str, float]:
        for path in job.stage.outputs.values():
            (job.folder / path).write_text("x")
        return {}

    run_pipeline(tmp_path / "small.yaml", runs_dir=tmp_path / "runs", executors={"train": write})
    assert "[1/1] train: reused\n" in quietly(tmp_path, "run", "small.yaml")
    assert quietly(tmp_path, "run", "small.yaml", "--dry-run") == "train: reused\n"

"""`docs/writing-a-reward.md` is true: what it shows is written and run as a reader would, and compared."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

import draft
from draft.authoring.scaffold import Names, check_author, package_files
from draft.testing import run_checks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "writing-a-reward.md"
EXAMPLE = ROOT / "plugins" / "example"
QUICKER = {
    "--seconds 20": "--steps 2",
    "draft run posters/posters.yaml": (
        "draft run posters/posters.yaml stages.train.max_steps=1 stages.train.batch_size=2 stages.train.method.k=1 "
        "stages.evaluate.images_per_prompt=1 stages.train.sampler.num_inference_steps=2 "
        "stages.evaluate.sampler.num_inference_steps=2"
    ),
}
"""What takes minutes on the page, and what is run here instead."""


@dataclass(frozen=True)
class Block:
    """A fenced block of the page.

    Args:
        language: The word after the fence.
        note: What follows it: `file=PATH` is written, `run` is run, `measured` has numbers of the author's machine.
        text: The lines between the fences.
    """

    language: str
    note: str
    text: str

    @property
    def file(self) -> str:
        """The file that the block is, relative to the package; empty if it is none."""
        return self.note.removeprefix("file=") if self.note.startswith("file=") else ""


def blocks() -> list[Block]:
    found = re.findall(
        r"^(`{3,})(\w+) ?([^\n]*)\n(.*?)^\1$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [Block(language, note, text) for _, language, note, text in found]


def files(package: str = "draft-reward-palette") -> dict[str, str]:
    """The files of one of the page's packages, by their paths in it."""
    found, folder = {}, ""
    for block in blocks():
        for command, _ in commands(block.text) if block.language == "console" else ():
            folder = command.removeprefix("cd ") if command.startswith("cd ") else folder
        if block.file and folder == package:
            found[block.file] = block.text
    return found


@pytest.fixture
def workplace(tmp_path: Path, pip: list[str]) -> tuple[Path, dict[str, str]]:
    """An empty folder and an environment with Draft, into which packages can be installed without a network."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    there = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(there.stdout.strip()) / "ours.pth").write_text(ours, encoding="utf-8")
    offline = "--no-index --no-build-isolation"
    for name, line in {
        "draft": f'exec "{python}" -m draft "$@"',
        "pytest": f'exec "{python}" -m pytest -p no:cacheprovider "$@"',
        "pip": f'verb=$1; shift; exec "{python}" {shlex.join(pip[1:])} "$verb" {offline} "$@"',
        "ruff": f'exec "{Path(sys.executable).parent / "ruff"}" "$@" --no-cache',
    }.items():
        (scripts / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (scripts / name).chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    return folder, {**os.environ, "PATH": path, "COLUMNS": "200", "NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_whoever_follows_the_page_sees_what_it_says(workplace: tuple[Path, dict[str, str]]) -> None:
    start, environment = workplace
    folder, ran = start, 0
    for block in blocks():
        if block.file:
            (folder / block.file).parent.mkdir(exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif (block.language, block.note) == ("python", "run"):
            shell(f"python - <<'END'\n{block.text}END", folder, environment)
            ran += 1
        elif block.language == "console":
            for command, wanted in commands(block.text):
                if command.startswith("cd "):
                    folder = folder / command.removeprefix("cd ")
                    continue
                got = shell(quicker(command), folder, environment)
                assert alike(got, wanted, measured=block.note == "measured"), f"$ {command}\n{got}\nthe page:\n{wanted}"
                ran += 1
    assert ran >= 22
    for name in ("palette", "round"):
        assert (start / f"draft-reward-{name}" / f"{name}_try.png").stat().st_size > 1000


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console, each with what it prints."""
    return [(match[1], match[2]) for match in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)]


def quicker(command: str) -> str:
    for long, short in QUICKER.items():
        command = command.replace(long, short)
    return command


def shell(command: str, folder: Path, environment: dict[str, str]) -> str:
    """What a command prints on a terminal."""
    shown, terminal = os.openpty()
    with (
        os.fdopen(shown, "rb") as reader,
        subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment, stdout=terminal, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        os.close(terminal)
        printed = b""
        while chunk := _read(reader):
            printed += chunk
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, f"$ {command}\n{printed.decode()}{errors}"
    return printed.decode().replace("\r\n", "\n")


def _read(reader: object) -> bytes:
    try:
        return os.read(reader.fileno(), 65536)  # type: ignore[attr-defined]
    except OSError:  # the terminal is gone with its last program
        return b""


def alike(got: str, wanted: str, *, measured: bool) -> bool:
    """Whether an output is what the page shows: `...` is anything, and measured numbers may differ."""
    if measured:
        got, wanted = (re.sub(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", "#", text) for text in (got, wanted))
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(wanted, got, options)


def test_the_example_in_the_repository_is_what_the_page_leads_to() -> None:
    new = next(
        command for block in blocks() for command, _ in commands(block.text) if command.startswith("draft rewards new ")
    )
    name, *options = shlex.split(new)[3:]
    given = dict(zip(options[::2], options[1::2], strict=True))
    wanted = package_files(Names(name), check_author(given["--author"], given["--url"])) | files()
    there = {
        file.relative_to(EXAMPLE).as_posix(): file.read_text(encoding="utf-8")
        for file in EXAMPLE.rglob("*")
        if file.is_file() and not {"__pycache__", ".pytest_cache", ".ruff_cache"} & set(file.parts)
    }
    assert sorted(there) == sorted(wanted)
    assert {name for name, text in wanted.items() if there[name] != text} == set()


def test_the_kit_finds_the_mistake_that_the_page_warns_of() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    right, wrong = ".square().mean(dim=1)", ".square().mean(dim=1).sqrt()"
    source = files()["draft_reward_palette/__init__.py"]
    assert source.count(right) == 1 and f"`{wrong}`" in page
    namespace: dict[str, object] = {"__name__": "mistaken"}
    exec(compile(source.replace(right, wrong), "mistaken.py", "exec"), namespace)
    reward: type[draft.Reward] = namespace["Palette"]  # type: ignore[assignment]
    failed = [result for result in run_checks(reward(), size=(16, 16)) if not result.good]
    assert [result.check for result in failed] == ["finite"]
    assert f"`finite failed {failed[0].detail}`" in page


def test_every_command_of_the_kit_is_on_the_page() -> None:
    shown = PAGE.read_text(encoding="utf-8")
    assert all(f"$ draft rewards {name} " in shown for name in ("new", "check", "score", "try"))


def test_the_chapter_about_a_network_makes_a_reward_that_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = files("draft-reward-round")
    assert sorted(page) == ["draft_reward_round/__init__.py", "tests/test_round.py", "train.py"]
    # Fewer steps than on the page, which nobody waits for here.
    page["train.py"] = page["train.py"].replace("range(400)", "range(3)")
    (tmp_path / "draft_reward_round").mkdir()
    for name in ("draft_reward_round/__init__.py", "train.py"):
        (tmp_path / name).write_text(page[name], encoding="utf-8")
    trained = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert trained.stdout.endswith("of 1000 new drawings; wrote draft_reward_round/weights.safetensors\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    round_module = importlib.import_module("draft_reward_round")
    monkeypatch.delitem(sys.modules, "draft_reward_round")
    results = run_checks(round_module.Round())
    assert [result for result in results if not result.good] == []

"""An environment of its own with a reward package in it, made offline: it borrows PyTorch and Draft from this one."""

from __future__ import annotations

import importlib.util
import site
import time
import venv
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import draft
from draft.isolation import build, environment
from draft.isolation.environment import interpreter
from draft.isolation.reward import isolated_reward
from draft.isolation.settings import Isolation

WHERE = "stages.train.rewards.mine"
REWARDS = '''
"""Rewards that are installed nowhere but in their own environment."""

import ctypes
import faulthandler
import os
import subprocess
import sys
import time

import draft
from draft.rewards.reading import Reading, ReadingScore


class Glow(draft.Reward):
    """How much an image glows, as its prompt wants it.

    A smooth score of every pixel.
    """

    name = "glow"
    cite = "nobody"
    stand_in = {"model": "emoji/clip"}
    uses_prompt = True
    amount: float = draft.Field(1.0, ge=0, le=2, description="how much")
    target: str = draft.Field("{prompt}", description="what it looks at")
    model: str = draft.Field("large/weights", description="which weights it names")

    def load(self, device):
        import torch

        def score(images, prompts):
            lengths = [float(len(text)) for text in draft.per_prompt(self.target, prompts)]
            factors = torch.tensor(lengths, dtype=images.dtype, device=images.device)
            return ((images * 3).sin() * images.square()).mean(dim=(1, 2, 3)) * factors * self.amount

        def lengths(prompts):
            return [len(text) for text in draft.per_prompt(self.target, prompts)]

        return ReadingScore(score, (Reading(4, lengths),))


class Spread(draft.Reward):
    """How far an image is from the others of its batch."""

    name = "spread"
    per_image = False

    def load(self, device):
        return lambda images, prompts: (images - images.mean(0)).pow(4).mean(dim=(1, 2, 3))


class Counted(draft.Reward):
    """A metric: how many pixels are bright."""

    name = "counted"
    differentiable = False

    def load(self, device):
        return lambda images, prompts: (images.detach() > 0.5).flatten(1).sum(1)


class Faulty(draft.Reward):
    """Does what its prompt says, or while it is loaded what its option says."""

    name = "faulty"
    loading: str = draft.Field("", description="what to do while it is loaded")

    def load(self, device):
        import torch

        def act(what, images=None):
            if what == "raise":
                raise ValueError("the cat is upside down\\nand more")
            if what == "refuse":
                raise draft.DraftError("must be a cat (got a dog)", hint="try a cat")
            if what == "leave":
                sys.exit(3)
            if what == "close":
                raise GeneratorExit
            if what == "exit":
                print("about to go", file=sys.stderr)
                os._exit(7)
            if what == "crash":
                faulthandler._sigsegv()
            if what == "memory":
                raise torch.OutOfMemoryError("tried to allocate 99 GiB")
            if what == "print":
                print("hello on standard output")
            if what == "sleep":
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                time.sleep(600)
            if what == "hold":
                ctypes.PyDLL(None).sleep(600)  # keeps Python's lock, so that no thread and no handler ever runs
            return {"list": [0.0], "scalar": images.sum() if images is not None else 0}.get(what)

        act(self.loading)

        def score(images, prompts):
            if (found := act(prompts[0], images)) is not None:
                return found
            scores = images.mean(dim=(1, 2, 3))
            return {"nan": scores * float("nan"), "detached": scores.detach()}.get(prompts[0], scores)

        return score


@draft.hookimpl
def draft_rewards():
    return [Glow, Spread, Counted, Faulty]
'''
NAMES = ("glow", "spread", "counted", "faulty")


@dataclass(frozen=True)
class Room:
    """An environment with the rewards above."""

    folder: Path
    module: Path

    @property
    def python(self) -> Path:
        return interpreter(self.folder)

    def reward(self, name: str, options: dict[str, Any] | None = None, **limits: float) -> Any:
        isolation = Isolation(python=str(self.python), **limits)
        return isolated_reward(isolation, name, options or {}, where=WHERE)

    def original(self) -> ModuleType:
        """The same module in this process."""
        spec = importlib.util.spec_from_file_location("mine_in_process", self.module)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def make_room(folder: Path) -> Room:
    """An environment that sees this one's packages after its own, and one more distribution."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    sources = {str(Path(module.__file__ or "").parents[1]) for module in (draft, __import__("draft_rewards"))}
    (packages / "borrowed.pth").write_text("\n".join([*site.getsitepackages(), *sorted(sources)]) + "\n")
    (packages / "mine_rewards.py").write_text(REWARDS, encoding="utf-8")
    info = packages / "mine_rewards-4.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-rewards\nVersion: 4.2\n")
    (info / "entry_points.txt").write_text("[draft]\n" + "".join(f"{name} = mine_rewards\n" for name in NAMES))
    return Room(folder, packages / "mine_rewards.py")


def make_wheel(folder: Path, name: str, files: Mapping[str, str], *, entries: str = "", needs: str = "") -> Path:
    """A wheel, made without building anything."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (f"Requires-Dist: {needs}\n" if needs else "")
    content = {
        **files,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entries,
    }
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD")))
    return file


@pytest.fixture
def wheel() -> Callable[..., Path]:
    return make_wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a pip that asks nobody, and no Draft to install, which would need an index."""
    monkeypatch.setenv("DRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for module in (build, environment):
        monkeypatch.setattr(module, "draft_requirement", list)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return make_room(tmp_path_factory.mktemp("environment") / "mine")


def members(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue  # it has just ended
            if int(owner) == group and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.fixture
def group() -> Callable[[int], list[int]]:
    """The living processes of a process group."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("without /proc nobody can say what still runs")
    return members


@pytest.fixture
def gone(group: Callable[[int], list[int]]) -> Callable[[int], bool]:
    """Whether a process group is empty, or becomes so within seconds."""

    def gone(number: int) -> bool:
        deadline = time.monotonic() + 10
        while group(number) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not group(number)

    return gone

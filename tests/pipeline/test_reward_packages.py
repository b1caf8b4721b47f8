"""A stage's result depends on what its rewards are installed as: the version, the code, the files beside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from draft import digests
from draft.digests import code_digest, remembered_sha256
from draft.pipeline.sources import package_identity
from draft.rewards.loading import find_reward
from draft.rewards.packages import package_of

MODULE = """
import draft
from pathlib import Path

class Glow(draft.Reward):
    '''How much an image glows.'''
    name = "glow"

    def load(self, device):
        weights = Path(__file__).with_name("glow.pt").read_bytes()
        return lambda images, prompts: images.mean(dim=(1, 2, 3)) * len(weights)

@draft.hookimpl
def draft_rewards():
    return [Glow]
"""


class Installed:
    """A distribution with the reward `glow`, laid down as an installer does it."""

    def __init__(self, site: Path, *, files: Mapping[str, str], module: str, code: Path, record: bool) -> None:
        self.site, self.code = site, code
        for name, text in files.items():
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            (code / name).write_text(text)
        self.info = site / "glow_plugin-0.1.0.dist-info"
        self.info.mkdir(parents=True)
        (self.info / "entry_points.txt").write_text(f"[draft]\nglow = {module}\n")
        if record:
            listed = [*files, "../../bin/glow", "glow_plugin-0.1.0.dist-info/METADATA"]
            (self.info / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
        self.version("0.1.0")

    def version(self, text: str) -> None:
        (self.info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Glow_Plugin\nVersion: {text}\n")

    def identity(self) -> dict[str, str]:
        return package_identity(package_of(find_reward("glow")))

    def files(self) -> list[str]:
        return list(package_of(find_reward("glow")).files)


PACKAGE = {
    "glow_plugin/__init__.py": MODULE,
    "glow_plugin/other.py": "x = 1\n",
    "glow_plugin/glow.pt": "one",
    "glow_plugin/data/deep/table.csv": "a,b\n",
    "glow_plugin/__pycache__/other.cpython-311.pyc": "",
    "glow_plugin/.hidden": "",
}
SINGLE = {
    "glow_plugin.py": MODULE + "import glow_parts, torch\n",
    "glow_parts.py": "NAMES = [f'tables/{i}.csv' for i in range(3)]\nALL = '*.bin'\n",
    "glow.pt": "one",
    "large.bin": "two",
    "tables/0.csv": "a,b\n",
    "README.md": "glow",
    "runs/demo/train/stage.json": "{}",
    "tests/test_glow.py": "",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs the reward as a package or a single module, from a wheel or editable."""

    def install(layout: str) -> Installed:
        kind, how = layout.split(", ")
        files, module = (PACKAGE, "glow_plugin") if kind == "package" else (SINGLE, "glow_plugin")
        site = tmp_path / "site"
        code = site if how == "wheel" else tmp_path / "project"
        if how == "wheel":
            kept = ("glow_plugin", "glow_parts", "glow.pt", "large.bin", "tables")
            files = {name: text for name, text in files.items() if name.startswith(kept)}
            (site / "stranger").mkdir(parents=True)
            (site / "stranger" / "__init__.py").write_text("")
        for path in (site, code):
            monkeypatch.syspath_prepend(str(path))
        for name in ("glow_plugin", "glow_plugin.other", "glow_parts"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        return Installed(site, files=files, module=module, code=code, record=how == "wheel")

    return install


LAYOUTS = ["package, wheel", "package, editable", "module, wheel", "module, editable"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_version_the_code_and_every_file_of_a_package_count(install, layout: str) -> None:
    glow = install(layout)
    before = glow.identity()
    assert before["name"] == "glow-plugin" and before["version"] == "0.1.0"
    glow.version("0.2.0")
    assert glow.identity() == {**before, "version": "0.2.0"}
    glow.version("0.1.0")
    weights = next(glow.code.rglob("glow.pt"))
    weights.write_text("two")
    assert glow.identity()["data"] != before["data"] and glow.identity()["code"] == before["code"]
    weights.write_text("one")
    assert glow.identity() == before
    other = next(path for name in ("other.py", "glow_parts.py") for path in glow.code.rglob(name))
    other.write_text(other.read_text() + "y = 2\n")
    assert glow.identity()["code"] != before["code"] and glow.identity()["data"] == before["data"]


@pytest.mark.parametrize("kind", ["package", "module"])
def test_an_editable_install_counts_as_the_wheel_of_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    found = {}
    for how in ("wheel", "editable"):
        with pytest.MonkeyPatch.context() as patch:
            glow = install.__wrapped__(tmp_path_factory.mktemp(how), patch)(f"{kind}, {how}")
            found[how] = (glow.files(), glow.identity())
    assert found["wheel"] == found["editable"]


def test_a_single_module_counts_with_what_it_imports_and_names_and_nothing_else(install) -> None:
    glow = install("module, editable")
    assert glow.files() == ["glow.pt", "glow_parts.py", "glow_plugin.py", "large.bin", "tables/0.csv"]


def test_a_single_module_among_other_packages_does_not_count_with_them(install) -> None:
    glow = install("module, wheel")
    (glow.info / "RECORD").unlink()
    (glow.site / "glow_plugin.py").write_text(MODULE + "import stranger\nNAME = 'stranger'\n")
    assert glow.files() == ["glow.pt", "glow_plugin.py"]


def test_drafts_own_rewards_count_by_their_modules_and_not_by_drafts_version() -> None:
    found = {name: package_of(find_reward(name)) for name in ("jpeg", "clip_score", "emoji_judge")}
    assert {(package.name, package.version) for package in found.values()} == {("draft-diffusion", "")}
    assert "jpeg.py" in found["jpeg"].files and "clip_score.py" not in found["jpeg"].files
    assert {"judge.py", "vocabulary.py", "vocabulary.json"} <= set(found["emoji_judge"].files)
    assert all(len(package.files) < 15 for package in found.values())


def test_a_reward_that_is_no_plugin_counts_by_its_files(tmp_path: Path, load_module, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    module = load_module(tmp_path / "mine.py")
    monkeypatch.setitem(sys.modules, "mine", module)
    package = package_of(module.Glow)
    assert (package.name, list(package.files)) == ("", ["mine.py"])
    assert list(package_identity(package)) == ["code"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("def f(x):\n    '''Other words.'''\n    return   x + 1  # one\n", True),
        ("'''A module.'''\n\n\ndef f(x): return (x +\n  1)\n", True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(x):\n    return x + 1.0\n", False),
        ("def f(x):\n    return x + True\n", False),
        ("def f(x):\n    return x + 1\n'text'\n", False),
        ("def f(y):\n    return x + 1\n", False),
        ("def f(x, *, y=None):\n    return x + 1\n", False),
        ("async def f(x):\n    return x + 1\n", False),
        ("def f(x:\n", False),
    ],
)
def test_code_counts_and_words_about_it_do_not(tmp_path: Path, text: str, same: bool) -> None:
    (tmp_path / "a.py").write_text("def f(x):\n    '''Add one.'''\n    return x + 1\n")
    (tmp_path / "b.py").write_text(text)
    assert (code_digest(tmp_path / "a.py") == code_digest(tmp_path / "b.py")) == same


def test_constants_are_told_apart_from_what_the_digest_writes_around_them(tmp_path: Path) -> None:
    texts = ["f('a', 'b')", "f('a')", "f(')', 'b')", "f('a', b)", "f(None, 'b')", "f(b'a', 'b')", "f('ab')", "f(...)"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.py").write_text(text)
    assert len({code_digest(tmp_path / f"{number}.py") for number in range(len(texts))}) == len(texts)


def test_a_large_file_is_read_once_until_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path) or f"{len(read):064d}")
    monkeypatch.setattr(digests, "_LARGE", 10)
    monkeypatch.setattr(digests, "_FRESH", 0)
    monkeypatch.setenv("DRAFT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.pt"
    file.write_bytes(bytes(20))
    assert remembered_sha256(file) == remembered_sha256(file) and len(read) == 1
    os.utime(file, (1, 1))
    remembered_sha256(file)
    file.write_bytes(bytes(21))
    remembered_sha256(file)
    assert len(read) == 3
    monkeypatch.setattr(digests, "_FRESH", 10**12)  # changed a moment ago: it may change again at the same time stamp
    remembered_sha256(file)
    assert len(read) == 4
    monkeypatch.setattr(digests, "_FRESH", 0)
    (tmp_path / "cache" / "digests.sqlite").write_text("damaged")
    assert remembered_sha256(file) == f"{5:064d}"


def test_a_stage_runs_again_when_the_package_of_its_reward_is_another_one(workshop, plugin) -> None:
    module = plugin('self.model_file = "glow.pt"; return lambda images, prompts: images.mean(dim=(1, 2, 3))')
    (module.parent / "glow.pt").write_text("one")
    workshop.file.write_text(workshop.file.read_text().replace("jpeg: {quality: 50}", "glow: {target: shiny}"))
    workshop.run()
    record = json.loads((workshop.runs / "train" / "stage.json").read_text())
    package = record["identity"]["packages"]["glow"]
    assert (package["name"], package["version"]) == ("glow-plugin", "1.2")
    header = workshop.jobs[0].metadata
    assert json.loads(header["draft.config"])["packages"]["glow"] == package
    assert json.loads(header["draft.pipeline"])["packages"] == {"glow": package}
    assert workshop.plan()[0] == "train: reused"
    (module.parent / "glow.pt").write_text("two")
    assert workshop.plan()[0] == "train: will run (reward files changed: glow)"
    (module.parent / "glow.pt").write_text("one")
    info = module.parent / "glow_plugin-1.2.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("1.2", "1.3"))
    assert workshop.plan()[0] == ("train: will run (reward package changed: glow (glow-plugin 1.2 -> glow-plugin 1.3))")


SYNTAX = """
from __future__ import annotations
import a.b as c, d
@deco(1, *x, **y)
class A(B, metaclass=M):
    "words"
    n: int = 0
    def f(self, p, /, q=1, *r, s: str = 'x', **t) -> None:
        global g
        for i, j in enumerate([1, 2.5, 3j, b'\\x00', None, True, ...]):
            if not i < j <= 3 and (k := i @ j) or i is not None: continue
            else: break
        try: raise E(f'{p!r:>{q}} {s}') from e
        except* (V, W) as v: assert v, 'no'
        finally: del p[1:2, ::3]
        match p:
            case {'a': [1, *_], **rest} | A(n=2) as m if m: return lambda *u, w=None: (yield)
            case _: pass
async def h():
    async with z as y: return {x async for x in y if x}, {**a, 'b': 1}, [*c], u'text', -1 ** 2
"""


def test_every_python_has_the_same_digest_of_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SYNTAX)
    assert code_digest(tmp_path / "a.py") == "4824842d0db19938755dc202c0efa1037f5ecc9c9cf0965c48e2fb59117738ef"

"""Which Python runs a reward, and the environments that Draft makes: once, whole, and again when something changed."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draft.errors import ConfigError, ResourceError
from draft.isolation import build, environment
from draft.isolation.build import build_environment
from draft.isolation.environment import FINISHED, draft_requirement, environment_folder, locate, ready_python
from draft.isolation.failures import IsolatedError
from draft.isolation.settings import Isolation


def located(folder: Path, **settings: Any) -> Isolation:
    return locate(Isolation(**settings), lambda keys: folder, "r.isolated")


def test_paths_start_at_the_folder_of_the_pipeline_and_links_stay(tmp_path: Path, room) -> None:
    (tmp_path / "env").symlink_to(room.folder)
    assert located(tmp_path, python="env").python == str(tmp_path / "env/bin/python")
    assert located(tmp_path / "a", python="../env/bin/python").python == str(tmp_path / "env/bin/python")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "r.txt").write_text("numpy\n")
    assert located(tmp_path, requirements=("./pkg[all]", "b==2")).requirements == (f"{tmp_path}/pkg[all]", "b==2")
    assert located(tmp_path, requirements="r.txt").requirements == str(tmp_path / "r.txt")


@pytest.mark.parametrize(
    ("settings", "where", "told"),
    [
        ({}, "", "must have either 'python' or 'requirements' (got neither)"),
        ({"python": "x", "requirements": ("y",)}, "", "(got both)"),
        ({"python": "nothing"}, ".python", "must be a Python that is there"),
        ({"python": "."}, ".python", "must be a Python that is there"),
        ({"python": "plain.txt"}, ".python", "must be a program"),
        ({"requirements": "nothing.txt"}, ".requirements", "must be a requirements file or a list"),
        ({"requirements": ("numpy", "./nothing")}, ".requirements.1", "must be there"),
        ({"requirements": ("-r x.txt",)}, ".requirements.0", "must be a requirement such as"),
    ],
)
def test_what_is_not_there_is_refused_with_its_place(
    tmp_path: Path, settings: dict[str, Any], where: str, told: str
) -> None:
    (tmp_path / "plain.txt").write_text("")
    with pytest.raises(ConfigError) as raised:
        located(tmp_path, **settings)
    assert raised.value.where == f"r.isolated{where}"
    assert told in raised.value.what


def test_an_environment_is_made_once_and_half_a_one_counts_for_nothing(cache: Path, tmp_path: Path, wheel) -> None:
    made = wheel(tmp_path, "answering", {"answering.py": "ANSWER = 42\n"})
    isolation = located(tmp_path, requirements=(f"./{made.name}",))
    assert ready_python(isolation) is None
    said: list[str] = []
    python = build_environment(isolation, where="r.isolated", say=said.append)
    assert python == ready_python(isolation)
    assert cache in python.parents
    command = [str(python), "-c", "import answering; print(answering.ANSWER)"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "42\n"
    assert len(said) == 1 and str(environment_folder(isolation)) in said[0]
    assert build_environment(isolation, where="r.isolated", say=said.append) == python and len(said) == 1

    (environment_folder(isolation) / FINISHED).unlink()
    assert ready_python(isolation) is None


def test_its_name_is_what_goes_into_it(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "__pycache__").mkdir(parents=True)
    (package / "module.py").write_text("A = 1\n")
    (tmp_path / "r.txt").write_text("numpy\n")
    listed, filed = located(tmp_path, requirements=("./package", "numpy")), located(tmp_path, requirements="r.txt")
    before = environment_folder(listed), environment_folder(filed)
    (package / "__pycache__" / "module.pyc").write_text("")
    assert environment_folder(replace(listed, timeout=1, load_timeout=2)) == before[0]
    (package / "module.py").write_text("A = 2\n")
    (tmp_path / "r.txt").write_text("numpy<3\n")
    assert environment_folder(listed) != before[0]
    assert environment_folder(filed) != before[1]
    monkeypatch.setattr(environment, "draft_requirement", lambda: ["draft-diffusion==9"])
    assert environment_folder(located(tmp_path, requirements=("numpy",))) != before[0]


@pytest.mark.slow
def test_what_pip_refuses_is_told_with_its_last_lines_and_leaves_no_environment(
    cache: Path, tmp_path: Path, wheel
) -> None:
    isolation = located(tmp_path, requirements=(f"./{wheel(tmp_path, 'needy', {}, needs='no-such-package').name}",))
    with pytest.raises(IsolatedError) as raised:
        build_environment(isolation, where="r.isolated", say=lambda text: None)
    assert raised.value.where == "r.isolated.requirements"
    assert "No matching distribution found for no-such-package" in str(raised.value).partition("it wrote:")[2]
    assert ready_python(isolation) is None


@pytest.mark.slow
def test_a_draft_that_is_on_no_index_is_told_with_the_way_to_its_wheel(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel
) -> None:
    isolation = located(tmp_path, requirements=(f"./{wheel(tmp_path, 'content', {}).name}",))
    monkeypatch.setattr(build, "draft_requirement", lambda: ["draft-diffusion==0.1.0"])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(IsolatedError) as raised:
        build_environment(isolation, where="r.isolated", say=lambda text: None)
    assert raised.value.hint.startswith("draft-diffusion is on no index that pip asks: set PIP_FIND_LINKS")
    assert ready_python(isolation) is None


@pytest.mark.slow
def test_without_a_connection_it_says_so(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens at the port of `discard`
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ResourceError, match="pip cannot reach a package index") as raised:
        build_environment(located(tmp_path, requirements=("anything",)), where="r.isolated", say=lambda text: None)
    assert "a connection" in raised.value.needs


@pytest.mark.parametrize(
    ("origin", "arguments"),
    [
        ({"url": "file:///a%20b/c", "dir_info": {"editable": True}}, ["--editable", "/a b/c"]),
        ({"url": "file:///a/c", "dir_info": {}}, ["/a/c"]),
        (
            {"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
            ["draft-diffusion @ git+https://x/y.git@0a1b"],
        ),
        ({"url": "file:///d.whl", "archive_info": {}}, ["draft-diffusion @ file:///d.whl"]),
        (None, ["draft-diffusion==7.1"]),
    ],
)
def test_draft_itself_is_installed_as_it_is_installed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: Any, arguments: list[str]
) -> None:
    info = tmp_path / "draft_diffusion-7.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: draft-diffusion\nVersion: 7.1\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert draft_requirement() == arguments

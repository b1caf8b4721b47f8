"""`.ci/versions` makes the environments it names, goes on where it stopped and counts what pytest reports."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a script for POSIX systems")

# Writes its arguments down, and makes an environment whose pytest passes two tests and fails one.
UV = """#!{python}
import json, sys, pathlib
with open({calls!r}, "a") as file: file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "venv":
    python = pathlib.Path(sys.argv[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text({pytest!r})
    python.chmod(0o755)
if sys.argv[2] == "list":
    print(json.dumps([{{"name": "torch", "version": "2.13.0+cpu"}}, {{"name": "click", "version": "8"}}]))
"""
PYTEST = """#!{python}
import sys
(report,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--junitxml=")]
open(report, "w").write(
    '<testsuites><testsuite><testcase classname="a" name="b"/><testcase classname="a" name="c"/>'
    '<testcase classname="a" name="d"><failure/></testcase><testcase classname="a" name="e"><skipped/></testcase>'
    "</testsuite></testsuites>"
)
sys.exit(1)
"""


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with a `uv` that installs nothing and a commit that is not being worked on."""
    loader = SourceFileLoader("ci_versions", str(ROOT / ".ci" / "versions"))
    spec = importlib.util.spec_from_loader("ci_versions", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    tools = tmp_path / "tools"
    tools.mkdir()
    names = {
        "uv": UV.format(
            python=sys.executable, calls=str(tmp_path / "calls"), pytest=PYTEST.format(python=sys.executable)
        ),
        "git": "#!/bin/sh\necho 0123456789ab\n",
    }
    for name, text in names.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return module


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_each_python_is_tested_with_the_lowest_and_the_newest_libraries_and_only_once(
    versions: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert versions.main([str(tmp_path / "out"), "/opt/3.11.7/bin/python"]) == 1
    calls = [call for call in lines(tmp_path / "calls") if call[1] == "install"]
    assert [call[call.index("--resolution") + 1] for call in calls] == ["lowest-direct", "highest"]
    first, second = lines(tmp_path / "out" / "results.jsonl")
    assert (first["python"], first["resolution"], second["resolution"]) == ("3.11.7", "lowest", "newest")
    assert (first["passed"], first["failed"], first["skipped"], first["failures"]) == (2, 1, 1, ["a::d"])
    assert first["versions"] == {"torch": "2.13.0+cpu"}
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| 3.11.7 | lowest | 2.13.0+cpu |") and rows[2].endswith("| default | 2 | 1 | 1 |")

    assert versions.main([str(tmp_path / "out"), "/opt/3.11.7/bin/python", "3.13"]) == 1
    assert len(lines(tmp_path / "out" / "results.jsonl")) == 4, "3.11.7 is there already"
    assert versions.main([str(tmp_path / "out"), "3.13", "--only", "newest", "--keep", "--", "tests/cli"]) == 1
    assert lines(tmp_path / "out" / "results.jsonl")[-1]["selection"] == ["tests/cli"], (
        "another selection is another run"
    )
    assert len([call for call in lines(tmp_path / "calls") if call[1] == "install"]) == 4, "--keep makes none anew"


def test_an_environment_that_cannot_be_made_is_a_result(versions: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tools" / "uv").write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    assert versions.main([str(tmp_path / "out"), "3.13", "--only", "lowest"]) == 1
    (result,) = lines(tmp_path / "out" / "results.jsonl")
    assert result["error"] == "uv venv --clear ended with 2" and "passed" not in result


def test_torch_and_the_tools_are_those_of_the_constraints_and_nothing_else_is(versions: ModuleType) -> None:
    torch, tools = versions.constraints()
    assert Requirement(torch).name == "torch"
    assert {"pytest", "ruff", "pyright"} <= {Requirement(line).name for line in tools}
    assert not {"numpy", "transformers", "pydantic"} & {Requirement(line).name for line in tools}


def test_its_help_is_its_docstring() -> None:
    done = subprocess.run([str(ROOT / ".ci" / "versions"), "--help"], capture_output=True, text=True, check=True)
    assert "RESULTS/results.jsonl" in done.stdout


def test_another_pytorch_is_tested_beside_that_of_the_constraints(versions: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words in ([], ["--torch", "2.6.0"]):
        versions.main([str(out), "3.12", "--only", "lowest", *words])
    assert [result.get("torch") for result in lines(out / "results.jsonl")] == [None, "2.6.0"]
    assert (out / "3.12-lowest-2.6.0" / "torch.txt").read_text() == "torch==2.6.0\n"

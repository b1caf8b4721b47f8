"""Libraries of a version that is not supported are refused before anything is imported from them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from draft.errors import ResourceError
from draft.requirements import DISTRIBUTION, own_requirements, require, unmet


def test_what_is_installed_meets_drafts_own_requirements() -> None:
    declared = own_requirements()
    assert any(line.startswith("torch>=") for line in declared) and not any("extra" in line for line in declared)
    assert unmet(declared) == {}


def test_an_old_a_new_and_a_missing_library_are_named_with_both_versions() -> None:
    requirements = ["pluggy>=99", "pydantic<1", "no-such-library-here>=2", "rich>=1", "pluggy>=99; python_version<'3'"]
    assert unmet(requirements) == {
        "pluggy>=99": version("pluggy"),
        "pydantic<1": version("pydantic"),
        "no-such-library-here>=2": "",
    }
    with pytest.raises(ResourceError) as caught:
        require(requirements, of="the family 'toy'")
    assert f"the family 'toy' needs pluggy>=99 (got {version('pluggy')})" in caught.value.what
    assert "no-such-library-here>=2 (got none)" in caught.value.what
    assert caught.value.hint == "pip install --upgrade 'pluggy>=99' 'pydantic<1' 'no-such-library-here>=2'"


@pytest.mark.parametrize("command", [["check", "quickstart"], ["plugins"], ["run", "quickstart"]])
def test_a_command_refuses_old_libraries_in_one_line_and_imports_nothing_of_them(
    command: list[str], tmp_path: Path
) -> None:
    """The package's metadata is replaced by one that asks for more, in a process that has loaded nothing yet."""
    info = tmp_path / "draft_diffusion-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.3\nName: {DISTRIBUTION}\nVersion: 0.1.0\nRequires-Dist: transformers>=99\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['draft', *{command!r}]\n"
        "from draft_cli.app import main\n"
        "try: main()\nfinally: print('imported', 'transformers' in sys.modules or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert f"Draft needs transformers>=99 (got {version('transformers')})" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == "imported False\n"

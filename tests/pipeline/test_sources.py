"""A reward's source is its module and what that imports from its own folder."""

from __future__ import annotations

from pathlib import Path

from draft.files import weights_digest
from draft.pipeline.sources import source_digest


def test_the_digest_changes_with_the_module_and_its_neighbours_only(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    files = {
        "reward.py": "import math\nfrom pack._one import thing\nfrom ._two import other\n",
        "_one.py": "from pack import _three\n",
        "_two.py": "import pack._one\n",
        "_three.py": "x = 1\n",
        "stranger.py": "y = 1\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    before = source_digest(package / "reward.py")
    (package / "stranger.py").write_text("y = 2\n")
    assert source_digest(package / "reward.py") == before
    for name in ("reward.py", "_one.py", "_two.py", "_three.py"):
        old = (package / name).read_text()
        (package / name).write_text(old + "# more\n")
        assert source_digest(package / "reward.py") != before, name
        (package / name).write_text(old)


def test_a_module_that_does_not_parse_still_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def (\n")
    assert len(source_digest(tmp_path / "a.py")) == 64


def test_weights_are_told_apart_by_content_name_and_size_but_not_by_place(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        (folder / "w.bin").write_bytes(bytes(1000))
    assert weights_digest(a) == weights_digest(b)
    (b / "w.bin").write_bytes(bytes(999) + b"x")
    assert weights_digest(a) != weights_digest(b)
    (b / "w.bin").rename(b / "v.bin")
    (b / "v.bin").write_bytes(bytes(1000))
    assert weights_digest(a) != weights_digest(b)
    assert weights_digest(a / "w.bin") == weights_digest(b / "v.bin")


def test_a_large_file_is_sampled_from_its_first_to_its_last_byte(tmp_path: Path) -> None:
    file = tmp_path / "large"
    content = bytearray(20 * 2**20)
    file.write_bytes(content)
    before = weights_digest(file)
    for place in (0, len(content) - 1):
        content[place] = 1
        file.write_bytes(content)
        assert weights_digest(file) != before
        content[place] = 0


def test_the_folder_beside_a_single_file_counts_with_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(1000))
    before = weights_digest(file)
    (tmp_path / "model" / "scheduler").mkdir(parents=True)
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text("{}")
    assert weights_digest(file) != before

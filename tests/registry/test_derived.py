"""Models that are made from others when they are first loaded: once, completely, and never by a check or a list."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draft.errors import PluginError
from draft.rewards import derived
from draft.rewards.extensions import model_path, model_place, named_models
from draft.rewards.hookspecs import NamedModel
from draft_cli.app import app


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sample(tmp_path: Path, *, fail: bool = False) -> NamedModel:
    """A model whose making leaves a line in a log."""

    def write(folder: Path) -> None:
        with (tmp_path / "log").open("a", encoding="utf-8") as log:
            log.write("made\n")
        (folder / "unet").mkdir()
        (folder / "unet" / "weights").write_text("weights", encoding="utf-8")
        if fail:
            raise OSError(28, "No space left on device")

    return NamedModel("sample", derived.place(Path("sample-1")), "text-to-image", "a sample", derive=write)


def made(tmp_path: Path) -> int:
    log = tmp_path / "log"
    return log.read_text(encoding="utf-8").count("made") if log.exists() else 0


def test_a_derived_model_is_made_once(tmp_path: Path, own_cache: Path) -> None:
    model = sample(tmp_path)
    assert model.path == own_cache / "models" / "sample-1"
    derived.ensure_derived(model)
    derived.ensure_derived(model)
    assert made(tmp_path) == 1
    assert (model.path / "unet" / "weights").read_text(encoding="utf-8") == "weights"


def test_a_damaged_or_incomplete_one_is_made_again(tmp_path: Path) -> None:
    model = sample(tmp_path)
    derived.ensure_derived(model)
    (model.path / "unet" / "weights").write_text("broken!", encoding="utf-8")
    derived.ensure_derived(model)
    assert (model.path / "unet" / "weights").read_text(encoding="utf-8") == "weights"
    (model.path / "unet" / "weights").unlink()
    derived.ensure_derived(model)
    assert made(tmp_path) == 3


def test_a_making_that_fails_leaves_no_folder_and_says_where_it_wrote(tmp_path: Path, own_cache: Path) -> None:
    model = sample(tmp_path, fail=True)
    with pytest.raises(PluginError, match=r"'sample' cannot be made in '.*models': No space left") as raised:
        derived.ensure_derived(model)
    assert "DRAFT_CACHE" in raised.value.hint
    assert not model.path.exists()
    derived.ensure_derived(sample(tmp_path))
    assert json.loads((model.path / "draft.json").read_text(encoding="utf-8"))["sha256"].keys() == {"unet/weights"}


def _make(tmp_path: Path) -> None:
    derived.ensure_derived(sample(tmp_path))


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_make, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert made(tmp_path) == 1
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == ["sample-1"]


def test_listing_and_naming_a_derived_model_does_not_make_it(own_cache: Path) -> None:
    said = CliRunner().invoke(app, ["models"]).output
    assert "emoji_xl  (text-to-image, made when first used, Apache-2.0)" in said
    place = model_place("emoji_xl")
    assert place == str(named_models()["emoji_xl"].path) and Path(place).parent == own_cache / "models"
    assert not own_cache.exists()


def test_loading_it_by_name_makes_it() -> None:
    folder = Path(model_path("emoji_xl"))
    assert (folder / "model_index.json").is_file()
    assert "MB, Apache-2.0)" in CliRunner().invoke(app, ["models"]).output.partition("emoji_xl")[2].splitlines()[0]

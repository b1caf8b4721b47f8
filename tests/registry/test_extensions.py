"""What a run needs besides rewards: named models and observers, whatever the plugins do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draft.diffusion.families import family_named
from draft.errors import DraftError, PluginError, PluginWarning
from draft.pipeline.load import load_pipeline
from draft.rewards.extensions import extensions, model_path, named_models

MODELS = """
    from pathlib import Path
    import draft

    @draft.hookimpl
    def draft_models():
        return [draft.NamedModel("{name}", Path("{path}"), "clip", "a sample")]
"""


def test_a_registered_name_becomes_its_folder_and_anything_else_stays(site: Any, tmp_path: Path) -> None:
    site.install("draft-m", "ext_models", MODELS.format(name="sample", path=tmp_path.as_posix()), extension="m")
    assert named_models()["sample"].kind == "clip"
    assert model_path("sample") == str(tmp_path)
    assert model_path("runwayml/stable-diffusion-v1-5") == "runwayml/stable-diffusion-v1-5"


def test_a_broken_extension_is_a_warning_that_names_it(site: Any, tmp_path: Path) -> None:
    site.install("draft-bad", "ext_bad", "import no_such_module_here", extension="bad")
    site.install("draft-typo", "ext_typo", "import draft\n@draft.hookimpl\ndef draft_model(): ...\n", extension="typo")
    site.install("draft-good", "ext_good", MODELS.format(name="good", path=tmp_path.as_posix()), extension="good")
    with pytest.warns(PluginWarning) as caught:
        assert "good" in named_models()
    text = "\n".join(str(warning.message) for warning in caught)
    assert "plugin draft-bad 1.2.3 (ext_bad): cannot be imported" in text
    assert "plugin draft-typo 1.2.3 (ext_typo): unknown hook 'draft_model'" in text


def test_one_hook_that_raises_does_not_hide_the_others(site: Any, tmp_path: Path) -> None:
    raising = "import draft\n@draft.hookimpl\ndef draft_models():\n    raise OSError('disk')\n"
    site.install("draft-raising", "ext_raising", raising, extension="raising")
    site.install("draft-fine", "ext_fine", MODELS.format(name="fine", path=tmp_path.as_posix()), extension="fine")
    site.install("draft-ending", "ext_ending", raising.replace("OSError('disk')", "SystemExit(0)"), extension="ending")
    with pytest.warns(PluginWarning) as caught:
        assert "fine" in named_models()
    text = "\n".join(str(warning.message) for warning in caught)
    assert "plugin draft-raising: its hook 'draft_models' failed (OSError: disk)" in text
    assert "plugin draft-ending: its hook 'draft_models' failed (SystemExit: 0)" in text


def test_two_models_with_one_name_are_an_error_only_when_it_is_used(site: Any, tmp_path: Path) -> None:
    for letter in "xy":
        folder = (tmp_path / letter).as_posix()
        site.install(f"draft-{letter}", f"ext_{letter}", MODELS.format(name="twin", path=folder), extension=letter)
    assert {"draft-x:twin", "draft-y:twin"} <= set(named_models())
    assert model_path("draft-y:twin") == str(tmp_path / "y")
    with pytest.raises(PluginError, match="two plugins offer a model 'twin'") as raised:
        model_path("twin")
    assert raised.value.hint == "write 'draft-x:twin' or 'draft-y:twin'"


def test_a_built_in_model_keeps_its_name(site: Any, tmp_path: Path) -> None:
    before = model_path("emoji/clip")
    site.install("draft-z", "ext_z", MODELS.format(name="emoji/clip", path=tmp_path.as_posix()), extension="z")
    assert model_path("emoji/clip") == before
    assert model_path("draft-z:emoji/clip") == str(tmp_path)
    assert {"emoji/clip", "draft-z:emoji/clip"} <= set(named_models())


def test_a_model_may_be_missing_because_its_package_is_turned_off(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("draft-m", "ext_off", MODELS.format(name="quiet_one", path=tmp_path.as_posix()), extension="m")
    monkeypatch.setenv("DRAFT_DISABLE_PLUGINS", "1")
    (tmp_path / "a.yaml").write_text(
        "name: a\nstages:\n  train: {kind: train, model: quiet_one, prompts: [a cat], rewards: {jpeg: {}}}\n"
    )
    with pytest.raises(DraftError) as raised:
        load_pipeline(tmp_path / "a.yaml")
    assert "DRAFT_DISABLE_PLUGINS=1 turns off draft-m 1.2.3, which may offer it" in str(raised.value)
    with pytest.raises(DraftError) as raised:
        family_named("quiet")
    assert raised.value.hint == "DRAFT_DISABLE_PLUGINS=1 turns off draft-m 1.2.3, which may offer it"


def test_an_observer_is_told_of_stages_with_the_arguments_it_asks_for(site: Any, tmp_path: Path) -> None:
    source = """
        import draft
        seen = []

        @draft.hookimpl
        def draft_stage_started(stage):
            seen.append(("started", stage))

        @draft.hookimpl
        def draft_stage_finished(stage, metrics):
            seen.append((stage, dict(metrics)))
    """
    site.install("draft-watch", "ext_watch", source, extension="watch")
    hook = extensions().hook
    hook.draft_stage_started(stage="train", folder=tmp_path)
    hook.draft_stage_finished(stage="train", outputs={}, metrics={"loss": 1.0})
    import ext_watch  # pyright: ignore[reportMissingImports]

    assert ext_watch.seen == [("started", "train"), ("train", {"loss": 1.0})]

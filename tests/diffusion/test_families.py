"""Which family a model is of, what its folder must hold, and families that packages bring."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from draft.diffusion import families as module
from draft.diffusion.families import FAMILIES, Family, families, family_named, family_of, load_text_to_image, trainable
from draft.errors import DraftError, PluginError, ResourceError

CPU = torch.device("cpu")
TOY = Family(name="toy", title="Toy", pipeline="ToyPipeline", part="transformer", load="json:dumps")


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Rows as installed packages bring them."""

    def offer(*rows: tuple[str, Family]) -> None:
        monkeypatch.setattr(module, "offered_families", lambda: list(rows))

    return offer


@pytest.fixture
def folder(tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folders["epsilon"], tmp_path / "model"))


def _index(folder: Path, **changes: object) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(model: Path | str) -> DraftError:
    with pytest.raises(DraftError) as caught:
        family_of(str(model))
    return caught.value


def test_asking_for_a_family_imports_neither_torch_nor_diffusers(folder: Path) -> None:
    code = (
        "import sys; from draft.diffusion.families import family_of, families, problems;"
        f"assert family_of({str(folder)!r}) == families()['sd'];"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_folder_and_a_checkpoint_show_their_family_and_a_hub_id_does_not(folder: Path, tmp_path: Path) -> None:
    assert family_of(str(folder)) is FAMILIES[0] and FAMILIES[0] in trainable()
    file = tmp_path / "one.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, file)
    assert family_of(str(file)) is FAMILIES[0]
    assert family_of("owner/name") is None and family_of("not-there") is None


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_without_a_component_is_refused_by_its_name(folder: Path, component: str) -> None:
    shutil.rmtree(folder / component)
    error = refusal(folder)
    assert error.what == f"model '{folder}' has no {component}"
    assert error.hint == (
        "a StableDiffusionPipeline has unet, vae, text_encoder, tokenizer, scheduler; take the complete model"
    )
    with pytest.raises(DraftError, match=f"has no {component}"):
        load_text_to_image(str(folder), device=CPU, dtype=torch.float32)


def test_a_component_of_another_class_is_refused_by_both_classes(folder: Path) -> None:
    _index(folder, tokenizer=["transformers", "CLIPTokenizerFast"], scheduler=["diffusers", "EulerDiscreteScheduler"])
    assert family_of(str(folder)) is FAMILIES[0]
    _index(folder, vae=["diffusers", "ConsistencyDecoderVAE"])
    assert refusal(folder).what == (
        f"the vae of model '{folder}' must be of the class AutoencoderKL (got ConsistencyDecoderVAE)"
    )
    _index(folder, vae=[None, None])
    assert refusal(folder).what == f"model '{folder}' has no vae"


def test_a_broken_index_is_named(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")
    assert refusal(folder).what.startswith(f"{folder / 'model_index.json'} is no JSON")
    (folder / "model_index.json").write_text("[]")
    assert refusal(folder).what == f"{folder / 'model_index.json'} must hold a JSON object (got list)"


def test_a_package_brings_a_family_which_is_then_one_like_ours(offer, folder: Path) -> None:
    offer(("draft-toy", TOY))
    assert families()["toy"] is TOY and list(families())[: len(FAMILIES)] == [family.name for family in FAMILIES]
    assert family_named("toy") is TOY
    _index(folder, _class_name="ToyPipeline")
    assert family_of(str(folder)) is TOY
    _index(folder, _class_name="FluxPipeline")
    assert refusal(folder).hint == " and ".join(family.described for family in trainable()) + " can"
    assert TOY.described == "Toy (ToyPipeline)" and TOY in trainable()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "sd"}, "the name 'sd': 'sd' of draft-diffusion and 'sd' of draft-toy"),
        (
            {"pipeline": "FluxPipeline"},
            "the pipeline 'FluxPipeline': 'flux' of draft-diffusion and 'toy' of draft-toy",
        ),
    ],
)
def test_two_families_of_one_name_or_one_pipeline_are_an_error_that_names_both(offer, changes, what: str) -> None:
    from dataclasses import replace

    offer(("draft-toy", replace(TOY, **changes)))
    with pytest.raises(PluginError) as caught:
        families()
    assert caught.value.what == f"two model families have {what}"
    assert "draft-toy" in caught.value.hint


def test_two_packages_with_one_family_are_an_error_that_names_both(offer) -> None:
    offer(("draft-one", TOY), ("draft-two", TOY))
    with pytest.raises(PluginError, match="'toy' of draft-one and 'toy' of draft-two"):
        families()


def test_a_family_that_cannot_be_imported_is_named(offer, folder: Path) -> None:
    offer(("draft-toy", replace(TOY, load="no_such_module_here:load")))
    _index(folder, _class_name="ToyPipeline")
    with pytest.raises(PluginError, match="the family 'toy' cannot be loaded: No module named 'no_such_module_here'"):
        load_text_to_image(str(folder), device=CPU, dtype=torch.float32)


def test_a_family_is_not_imported_with_older_libraries_than_it_needs(offer, folder: Path) -> None:
    offer(("draft-toy", replace(TOY, load="no_such_module_here:load", needs="diffusers>=99")))
    _index(folder, _class_name="ToyPipeline")
    with pytest.raises(ResourceError, match=r"the family 'toy' needs diffusers>=99 \(got "):
        load_text_to_image(str(folder), device=CPU, dtype=torch.float32)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DraftError) as caught:
        family_named("sd9")
    assert caught.value.hint == "known: sd, sdxl, sd3, flux"

"""`aesthetic` against the published predictor's own code, on a tiny CLIP and a small head."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel

import draft
from draft.errors import ResourceError
from draft.testing import check_reward
from draft_rewards._aesthetic import load_head
from draft_rewards.aesthetic import Aesthetic

CPU = torch.device("cpu")
LAION = "sac+logos+ava1-l14-linearMSE.pth"
RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "aesthetic.json").read_text(encoding="utf-8"))


class Published(nn.Module):
    """The head as it is published, with its dropout, for the small head's widths."""

    def __init__(self, widths: tuple[int, ...] = (16, 12, 8, 6, 4, 1)) -> None:
        super().__init__()
        a, b, c, d, e, f = widths
        self.layers = nn.Sequential(
            *(nn.Linear(a, b), nn.Dropout(0.2), nn.Linear(b, c), nn.Dropout(0.2)),
            *(nn.Linear(c, d), nn.Dropout(0.1), nn.Linear(d, e), nn.Linear(e, f)),
        )


@pytest.fixture(scope="session")
def head(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_head(tmp_path_factory.mktemp("head"))


@pytest.mark.parametrize(("height", "width", "close"), [(24, 24, 1e-4), (61, 37, 0.05), (9, 131, 0.05), (131, 9, 0.05)])
def test_the_score_is_that_of_the_published_predictor(
    tiny: ModuleType, tiny_clip: Path, head: Path, height: int, width: int, close: float
) -> None:
    clip, mlp = CLIPModel.from_pretrained(tiny_clip).eval(), Published().eval()
    mlp.load_state_dict(load_file(head))
    images = [tiny.levels(height, width, seed) for seed in range(3)]
    pixels = tiny.pixels(tiny.published("CLIP").from_pretrained(tiny_clip), images)
    with torch.no_grad():
        vectors = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        wanted = mlp.layers(vectors / vectors.norm(dim=-1, keepdim=True))[:, 0]
    score = draft.load("aesthetic", model=str(tiny_clip), head=str(head))
    torch.testing.assert_close(score(torch.stack(images).float() / 255, [""] * 3), wanted, atol=close, rtol=close)
    assert wanted.std() > 0.1


def test_aesthetic_keeps_the_contract(tiny_clip: Path, head: Path) -> None:
    check_reward(Aesthetic(model=str(tiny_clip), head=str(head)), size=(40, 56))


def test_the_published_widths_are_read_from_the_weights(tmp_path: Path) -> None:
    published = Published((768, 1024, 128, 64, 16, 1)).eval()
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    vectors = torch.nn.functional.normalize(torch.randn(4, 768, generator=torch.Generator().manual_seed(0)))
    rate = load_head(str(tmp_path), 768, device=CPU, where="aesthetic")
    torch.testing.assert_close(rate(vectors), published.layers(vectors)[:, 0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "sac+logos+ava1-l14-linearMSE.safetensors", "head.pth"])
def test_a_head_may_be_a_folder_or_a_file_of_either_kind(
    tiny: ModuleType, head: Path, tmp_path: Path, name: str
) -> None:
    file = tiny.save_head(tmp_path, name=name)
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    wanted = load_head(str(head), 16, device=CPU, where="aesthetic")(vectors)
    for given in (tmp_path, file):
        assert torch.equal(load_head(str(given), 16, device=CPU, where="aesthetic")(vectors), wanted)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("owner/name", ("owner/name", "model.safetensors", "")),
        ("owner/name/folder/head.safetensors", ("owner/name", "folder/head.safetensors", "abc")),
        (
            "ttj/sac-logos-ava1-l14-linearMSE",
            ("ttj/sac-logos-ava1-l14-linearMSE", "model.safetensors", "1e77fa05081323d99725fc40a9bf9f88180490e7"),
        ),
        (
            "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
            ("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth", "cf4bd10345610935a80a5d3be9a3133c50f121e4"),
        ),
    ],
)
def test_a_head_on_the_hub_is_named_by_repository_and_file(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, asked: Any
) -> None:
    import transformers.utils.hub

    calls = []

    def cached_file(repository: str, file: str, revision: str = "") -> str:
        calls.append((repository, file, revision))
        return str(tiny.save_head(tmp_path, name=Path(file).name))

    monkeypatch.setattr(transformers.utils.hub, "cached_file", cached_file)
    load_head(given, 16, revision="abc" if asked[2] == "abc" else "", device=CPU, where="aesthetic")
    assert calls == [asked]


def test_a_head_of_another_shape_or_kind_is_refused(tiny: ModuleType, head: Path, tmp_path: Path) -> None:
    def load(path: Path | str, width: int = 16) -> Any:
        return load_head(str(path), width, device=CPU, where="aesthetic")

    with pytest.raises(draft.DraftError, match="wants vectors of length 16, and the CLIP gives 768"):
        load(head, 768)
    weights = load_file(head)
    # The ReLU variant of LAION's head has its layers elsewhere: its activations would be left out.
    other = {name.replace("layers.2.", "layers.3."): tensor for name, tensor in weights.items()}
    save_file(other, tmp_path / "relu.safetensors")
    with pytest.raises(draft.DraftError, match="must be layers.0, 2, 4, 6 and 7"):
        load(tmp_path / "relu.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(draft.DraftError, match="cannot load the aesthetic head"):
        load(tmp_path / "broken.safetensors")
    with pytest.raises(draft.DraftError, match="must hold one .safetensors or .pth file .got 2."):
        load(tmp_path)
    torch.save(Published(), tmp_path / "module.pth")
    with pytest.raises(draft.DraftError, match="a pickle of more than weights"):
        load(tmp_path / "module.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(draft.DraftError, match="must hold a state dict .got list."):
        load(tmp_path / "list.pth")
    for missing in (tmp_path / "nothing", "./nothing", "nothing"):
        with pytest.raises(draft.DraftError, match="there is no such file or folder") as raised:
            load(missing)
        assert (raised.value.where, "draft models" in raised.value.hint) == ("aesthetic", True)


def test_a_head_is_read_from_either_format_of_torchs_files(head: Path, tmp_path: Path) -> None:
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    wanted = load_head(str(head), 16, device=CPU, where="aesthetic")(vectors)
    for zipped in (True, False):
        torch.save(load_file(head), tmp_path / "head.pth", _use_new_zipfile_serialization=zipped)
        assert torch.equal(load_head(str(tmp_path / "head.pth"), 16, device=CPU, where="aesthetic")(vectors), wanted)


def test_the_card_says_what_was_recorded_of_laions_head() -> None:
    low, middle, high = (RECORDED["scores"][rating] for rating in ("0", "5", "9"))
    assert f"rated 0, 5 and 9 score {low:.2f}, {middle:.2f} and {high:.2f}" in Aesthetic.typical


@pytest.mark.weights
@pytest.mark.parametrize("head", [LAION, Aesthetic.model_fields["head"].default])
def test_laions_mean_embeddings_of_rated_pictures_score_as_recorded(head: str) -> None:
    if not (folder := os.environ.get("DRAFT_AESTHETIC_DATA")):
        pytest.skip("DRAFT_AESTHETIC_DATA must name the folder of tests/golden/record_aesthetic.py")
    for name, digest in RECORDED["sha256"].items():
        assert hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() == digest
    try:
        rate = load_head(str(Path(folder) / LAION) if head == LAION else head, 768, device=CPU, where="aesthetic")
    except ResourceError as missing:
        pytest.skip(missing.what)
    for rating, score in RECORDED["scores"].items():
        embedding = torch.from_numpy(np.load(Path(folder) / f"vit_l_14_embeddings_rating{rating}.npy"))
        found = rate(torch.nn.functional.normalize(embedding.float(), dim=-1)).item()
        assert found == pytest.approx(score, abs=2e-5)

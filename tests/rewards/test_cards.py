"""What the rewards say of themselves and of their weights: licence, size, the pinned commit, and how to get them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers

import draft
from draft.errors import ResourceError
from draft.rewards.describe import facts
from draft.rewards.discovery import DISTRIBUTION, reward_entries
from draft.rewards.loading import find_reward
from draft.rewards.reward import Reward
from draft_rewards._loading import explained, hub_options, load_frozen
from draft_rewards._weights import WEIGHTS, download_command, published_weights

CPU = torch.device("cpu")
REWARDS = [
    find_reward(entry.name)
    for entry in reward_entries()
    if entry.dist == DISTRIBUTION and entry.module.startswith("draft_rewards")
]
FROM_HUB = {
    reward.name: {
        name: field.default
        for name, field in reward.model_fields.items()
        if isinstance(field.default, str) and published_weights(field.default)
    }
    for reward in REWARDS
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
def test_every_reward_says_what_to_expect_and_what_its_weights_cost(reward: type[Reward]) -> None:
    assert reward.typical
    defaults = [field.default for field in reward.model_fields.values() if isinstance(field.default, str)]
    unknown = [
        default
        for default in defaults
        if re.fullmatch(r"[\w.-]+/[\w.+-]+(/.*)?", default) and not published_weights(default)
    ]
    assert not unknown, "a default from the hub belongs into draft_rewards/_weights.py, with its commit and licence"
    used = FROM_HUB[reward.name].values()
    for model in used:
        assert WEIGHTS[model].licence.split()[0] in reward.licence
    if used:
        assert reward.cite
        assert re.match(r"\d+\.\d GB of weights: \d+(\.\d)? [MB]", reward.memory), reward.memory


def clip(text: dict[str, Any], vision: dict[str, Any], projection_dim: int, hidden_act: str) -> Callable[[], Any]:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text, vision = (dict(zip(keys, sizes, strict=True)) | {"hidden_act": hidden_act} for sizes in (text, vision))
    towers = {"text_config": text, "vision_config": {**vision, "image_size": 224, "patch_size": 14}}
    return lambda: transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=projection_dim))


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "openai/clip-vit-large-patch14": clip((768, 3072, 12, 12), (1024, 4096, 24, 16), 768, "quick_gelu"),
    "yuvalkirstain/PickScore_v1": clip((1024, 4096, 24, 16), (1280, 5120, 32, 16), 1024, "gelu"),
    "google/owlvit-base-patch32": lambda: transformers.OwlViTForObjectDetection(transformers.OwlViTConfig()),
    "microsoft/resnet-50": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=1000)
    ),
    "Salesforce/blip-image-captioning-base": lambda: transformers.BlipForConditionalGeneration(
        transformers.BlipConfig()
    ),
    "Salesforce/blip-vqa-base": lambda: transformers.BlipForQuestionAnswering(transformers.BlipConfig()),
}


@pytest.mark.parametrize(
    "name", [reward.name for reward in REWARDS if set(FROM_HUB[reward.name].values()) & set(ARCHITECTURES)]
)
def test_sizes_and_memory_are_those_of_the_published_architecture(name: str) -> None:
    reward, model = find_reward(name), FROM_HUB[name]["model"]
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in ARCHITECTURES[model]().parameters())
    in_file = parameters
    if name == "aesthetic":
        parameters += 768 * 1024 + 1024 * 128 + 128 * 64 + 64 * 16 + 16 + 1024 + 128 + 64 + 16 + 1
    if "blip" in model:
        # These files hold the decoder's word embedding once more, for its last layer.
        in_file += 30524 * 768
    stated = f"{parameters * 4 / 1e9:.1f} GB of weights: {parameters / 1e6:.0f} M parameters in float32"
    assert reward.memory.startswith(stated)
    # The rest of the file is its header.
    assert WEIGHTS[model].megabytes == pytest.approx(in_file * 4 / 1e6, rel=0.005)


def test_the_card_has_the_facts_that_a_reward_states_and_no_others() -> None:
    told = dict(facts(find_reward("owlvit")))
    assert list(told) == ["source", "typical scores", "licence of the weights", "memory"]
    assert told["licence of the weights"] == "Apache-2.0"

    class Plain(Reward):
        name = "plain"

        def load(self, device: torch.device) -> Any: ...

    assert facts(Plain) == []


def test_an_empty_revision_means_the_pinned_commit_and_any_other_means_itself() -> None:
    for model, entry in WEIGHTS.items():
        assert re.fullmatch("[0-9a-f]{40}", entry.revision)
        assert hub_options("", model) == {"revision": entry.revision}
        assert hub_options("main", model) == {"revision": "main"}
    assert hub_options("", "somebody/else") == hub_options("", "/a/folder") == {}
    asked = []

    class Family:
        @staticmethod
        def from_pretrained(path: str, **options: Any) -> Any:
            asked.append((path, options.get("revision"), options["use_safetensors"]))
            return torch.nn.Linear(1, 1), {"missing_keys": []}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.hub.cached_file", lambda path, name, **_: f"/cache/{name}")
        for revision in ("", "abc"):
            load_frozen(Family, "microsoft/resnet-50", revision=revision, device=CPU, what="x", where="y")
    assert asked == [
        ("microsoft/resnet-50", "34c2154c194f829b11125337b98c8f5f9965ff19", True),
        ("microsoft/resnet-50", "abc", True),
    ]


def test_the_command_fetches_what_is_read_and_nothing_else() -> None:
    assert download_command("ttj/sac-logos-ava1-l14-linearMSE", "") == (
        "hf download ttj/sac-logos-ava1-l14-linearMSE --revision 1e77fa05081323d99725fc40a9bf9f88180490e7 "
        "--include 'model.safetensors'"
    )
    assert download_command("xswu/HPSv2/HPS_v2_compressed.pt", "main") == (
        "hf download xswu/HPSv2 HPS_v2_compressed.pt --revision main"
    )
    assert download_command("somebody/else", "") == "hf download somebody/else"
    assert download_command("somebody/else", "", ["*.json"]) == "hf download somebody/else --include '*.json'"


@pytest.mark.usefixtures("offline")
def test_offline_a_missing_model_is_told_with_size_licence_and_command() -> None:
    with pytest.raises(ResourceError) as raised:
        draft.load("owlvit")
    assert str(raised.value) == (
        "owlvit: cannot load the OWL-ViT detector 'google/owlvit-base-patch32': it is not on this machine, and "
        "HF_HUB_OFFLINE is set\n"
        "  needs: google/owlvit-base-patch32 of the hub (613 MB, licence: Apache-2.0), or a copy of it\n"
        "  hint: unset HF_HUB_OFFLINE, or run `hf download google/owlvit-base-patch32 --revision "
        "cbc355fb364588351c5d51c7f74465e8e7ec6f72 --include '*.json' --include '*.txt' --include 'model*.safetensors'` "
        "where there is a network and bring the hub's cache here; or give a name of `draft models`, a folder that "
        "holds the OWL-ViT detector, or a hub id you can reach"
    )


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("reward", [r for r in REWARDS if FROM_HUB[r.name]], ids=lambda reward: reward.name)
def test_offline_every_default_model_is_told_how_to_get_it(reward: type[Reward]) -> None:
    needed = {name: "cat" for name, field in reward.model_fields.items() if field.is_required()}
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE is set") as raised:
        draft.load(reward.name, **needed)
    assert raised.value.where == reward.name
    assert any(WEIGHTS[model].revision in raised.value.hint for model in FROM_HUB[reward.name].values())


def test_with_a_network_the_reason_is_the_hubs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # Of an earlier test's attempt this process may remember that there is none.
    monkeypatch.setattr("draft.hub.unreached", lambda: "")
    monkeypatch.setattr("draft.hub.switched_off", lambda: "")
    with (
        pytest.raises(ResourceError, match="'me/mine': no such repository") as raised,
        explained("CLIP model", "me/mine", where="clip_score", revision="v1"),
    ):
        raise OSError("no such repository\nsecond line")
    assert raised.value.hint.startswith("fetch it with `hf download me/mine --revision v1`; or give a name of")
    assert raised.value.needs == "me/mine of the hub, or a copy of it"


@pytest.mark.usefixtures("offline")
def test_a_licence_that_has_to_be_accepted_is_named() -> None:
    with pytest.raises(ResourceError) as raised, explained("model", "google/paligemma-3b-mix-224", where="vqa"):
        raise OSError("gated")
    accept = "accept its licence at https://huggingface.co/google/paligemma-3b-mix-224, log in with `hf auth login`"
    assert accept in raised.value.hint
    assert "Gemma terms of use" in raised.value.needs


def test_a_model_without_safetensors_is_read_as_weights_alone(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    wanted = draft.load("clip_score", model=str(tiny_clip))(images, ["a cat"])
    torch.testing.assert_close(draft.load("clip_score", model=str(folder))(images, ["a cat"]), wanted)
    torch.save({**weights, "logit_scale": Path("anything but a tensor")}, folder / "pytorch_model.bin")
    with pytest.raises(draft.DraftError, match="its file is a pickle of more than weights"):
        draft.load("clip_score", model=str(folder))

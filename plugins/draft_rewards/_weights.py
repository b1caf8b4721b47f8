"""The published weights behind the rewards: the commit that is meant, its licence, its size, and how to get it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TRANSFORMERS = ("*.json", "*.txt", "model*.safetensors")
"""The files of a hub repository that transformers reads, where its weights are safetensors."""


@dataclass(frozen=True)
class Weights:
    """One repository of the hub, as it was when its reward was written.

    Args:
        revision: The commit, 40 hexadecimal digits.
        licence: What its page says of the weights, or where that says nothing, what their authors' code is under.
        megabytes: Size of what has to be downloaded, 1 MB = 10^6 bytes.
        files: Patterns of the files that are read; the repository may hold the same weights in other formats.
        gated: Whether its licence has to be accepted on its page, by a user who is logged in.
    """

    revision: str
    licence: str
    megabytes: int
    files: tuple[str, ...] = TRANSFORMERS
    gated: bool = False


_BLIP = "BSD-3-Clause"
_IMAGE_REWARD = Weights(
    "5736be03b2652728fb87788c9797b0570450ab72", "Apache-2.0", 1787, ("ImageReward.pt", "med_config.json")
)
_BERT = Weights(
    # ImageReward reads its vocabulary alone.
    "86b5e0934494bd15c9632b12f734a8a67f723594",
    "Apache-2.0",
    1,
    ("config.json", "tokenizer*.json", "vocab.txt"),
)

WEIGHTS = {
    "Salesforce/blip-image-captioning-base": Weights(
        # This one has no safetensors.
        "82a37760796d32b1411fe092ab5d4e227313294b",
        _BLIP,
        990,
        ("*.json", "*.txt", "pytorch_model.bin"),
    ),
    "Salesforce/blip-image-captioning-large": Weights("353689b859fcf0523410b1806dace5fb46ecdf41", _BLIP, 1880),
    "Salesforce/blip-vqa-base": Weights("787b3d35d57e49572baabd22884b3d5a05acf072", _BLIP, 1540),
    "THUDM/ImageReward": _IMAGE_REWARD,
    "bert-base-uncased": _BERT,
    "google-bert/bert-base-uncased": _BERT,
    "google/owlv2-base-patch16-ensemble": Weights("cfd3195ba4ea9592eec887ded089f4c08eff231d", "Apache-2.0", 620),
    "google/owlvit-base-patch32": Weights("cbc355fb364588351c5d51c7f74465e8e7ec6f72", "Apache-2.0", 613),
    "google/paligemma-3b-mix-224": Weights(
        "d1d8734c9c3ad0ccfeea4afc270faa356c2ba515", "Gemma terms of use", 11690, gated=True
    ),
    "google/vit-base-patch16-224": Weights("3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3", "Apache-2.0", 346),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": Weights("1c2b8495b28150b8a4922ee1c8edee224c284c0c", "MIT", 3944),
    "microsoft/resnet-50": Weights("34c2154c194f829b11125337b98c8f5f9965ff19", "Apache-2.0", 102),
    "openai/clip-vit-large-patch14": Weights(
        "32bd64288804d66eefd0ccbe215aa642df71cc41", "MIT (its code's; the hub names none)", 1711
    ),
    "trl-lib/ddpo-aesthetic-predictor": Weights(
        "cf4bd10345610935a80a5d3be9a3133c50f121e4",
        "Apache-2.0 (its origin's; the hub names none)",
        4,
        ("aesthetic-model.pth",),
    ),
    "ttj/sac-logos-ava1-l14-linearMSE": Weights(
        "1e77fa05081323d99725fc40a9bf9f88180490e7", "Apache-2.0", 4, ("model.safetensors",)
    ),
    "xswu/HPSv2": Weights("697403c78157020a1ae59d23f111aa58ced35b0a", "Apache-2.0", 1972, ("HPS_v2.1_compressed.pt",)),
    "yuvalkirstain/PickScore_v1": Weights(
        "a4e4367c6dfa7288a00c550414478f865b875800", "MIT (its code's; the hub names none)", 3944
    ),
    "zai-org/ImageReward": _IMAGE_REWARD,
}
"""Hub id to what is known of it. A model that is not here works as well, in its newest revision."""


def published_weights(model: str) -> Weights | None:
    """What is known of a model of the hub.

    Args:
        model: A hub id, or a hub id and a file as ``"owner/name/file"``.

    Returns:
        Its entry, None where it has none.
    """
    return WEIGHTS.get(model) or WEIGHTS.get("/".join(model.split("/")[:2]))


def revision_of(model: str, revision: str) -> str:
    """The hub revision that is meant by an option, which empty means the known one.

    Args:
        model: A hub id, or a hub id and a file.
        revision: The option `revision`.

    Returns:
        The revision; empty for the newest one.

    Example:
        >>> revision_of("microsoft/resnet-50", "")
        '34c2154c194f829b11125337b98c8f5f9965ff19'
        >>> revision_of("microsoft/resnet-50", "main"), revision_of("me/mine", "")
        ('main', '')
    """
    entry = published_weights(model)
    return revision or (entry.revision if entry else "")


def download_command(model: str, revision: str, files: Sequence[str] = ()) -> str:
    """The command that brings a model of the hub onto a machine.

    Args:
        model: A hub id, or a hub id and a file.
        revision: The option `revision`.
        files: Patterns of the files that are wanted; none: those that the reward reads, or all where nobody knows.

    Returns:
        A line for a shell.
    """
    entry, meant = published_weights(model), revision_of(model, revision)
    owner, name, file = [*model.split("/", 2), "", ""][:3]
    words = ["hf", "download", f"{owner}/{name}" if name else owner, *([file] if file else [])]
    if meant:
        words += ["--revision", meant]
    for pattern in () if file else files or (entry.files if entry else ()):
        words += ["--include", f"'{pattern}'"]
    return " ".join(words)

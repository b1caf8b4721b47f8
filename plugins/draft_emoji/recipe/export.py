"""What was trained, written as the fp16 folders that ship with the package."""

# The libraries annotate tuples and dicts where objects with attributes come back.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOperatorIssue=false

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from draft_emoji.recipe.clip import image_processor
from draft_emoji.recipe.unet import load_smooth, make_scheduler

PARTS = {
    "judge": "judge",
    "detector": "owlvit",
    "resnet": "resnet",
    "convnext": "convnext",
    "preference": "preference",
    "aesthetic": "aesthetic",
    "caption": "caption",
    "vqa": "vqa",
    "image_reward": "image_reward",
}
"""Command that trains a part to the shipped folder's name."""


def export(out: Path, weights: Path) -> None:
    """Replace the shipped folders by what `out` holds now; a part that was not trained there stays as it shipped.

    Each file is put in place at once, so a reader never sees half of one.

    Args:
        out: The recipe's folder.
        weights: The package's folder of weights.
    """
    staged = out / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    if (out / "unet").exists():
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(out / "vae"),
            text_encoder=CLIPTextModel.from_pretrained(out / "text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
            unet=load_smooth(out / "unet"),
            scheduler=make_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(dtype=torch.float16).save_pretrained(staged / "text_to_image")
    if (out / "clip_model").exists():
        CLIPModel.from_pretrained(out / "clip_model").half().save_pretrained(staged / "clip")
        CLIPTokenizer.from_pretrained(out / "tokenizer").save_pretrained(staged / "clip")
        image_processor().save_pretrained(staged / "clip")
    for part, shipped in PARTS.items():
        if (out / f"{part}_model").exists():
            shutil.copytree(out / f"{part}_model", staged / shipped)
            weights_file = staged / shipped / "model.safetensors"
            halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(weights_file).items()}
            save_file(halves, weights_file, {"format": "pt"})
    put_in_place(staged, weights)
    write_manifest(weights)


def put_in_place(staged: Path, weights: Path) -> None:
    """Move every staged file over its shipped one; a plain rename would fail between file systems."""
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        if file.name in {"README.md", "special_tokens_map.json"}:
            continue
        target = weights / file.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        if file.name in {"config.json", "model_index.json"}:
            config = nameless(json.loads(file.read_text("utf-8")))
            part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(file, part)
        part.chmod(0o644)
        os.replace(part, target)
    shutil.rmtree(staged)


def nameless(config: dict) -> dict:
    """A configuration that names the shipped precision, and no folder it was once loaded from."""
    shipped = {
        key: nameless(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }
    return shipped | {"dtype": "float16"} if "dtype" in shipped else shipped


def write_manifest(weights: Path) -> None:
    """Write ``manifest.json``: the size in bytes and the sha256 of every shipped file."""
    rows = {}
    for file in sorted(path for path in weights.rglob("*") if path.is_file()):
        if file.name in {"manifest.json", "figures.json"} or file.name.endswith(".part"):
            continue
        data = file.read_bytes()
        rows[str(file.relative_to(weights))] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    total = sum(row["bytes"] for row in rows.values())
    part = weights / ".manifest.json.part"
    part.write_text(json.dumps({"bytes": total, "files": rows}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, weights / "manifest.json")
    print(f"{total / 1e6:.1f} MB in {len(rows)} files: {weights}")

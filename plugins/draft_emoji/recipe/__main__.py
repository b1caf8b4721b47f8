"""The recipe's commands, in the order in which they run: see `COMMANDS`."""

from __future__ import annotations

import argparse
from pathlib import Path

COMMANDS = {
    "prepare": "sprite sheet from the two unpacked npm packages (--sprites, --labels)",
    "text": "tokenizer and text tower",
    "vae": "autoencoder (--init FOLDER to start from one), whitened at the end",
    "decoder": "the autoencoder's decoder further, encoder frozen; may follow at any time",
    "latents": "encoded scenes for the denoiser",
    "unet": "denoiser",
    "judge": "independent classifier",
    "clip": "image tower towards the locked text tower",
    "detector": "OWL-ViT on the two towers of the CLIP",
    "resnet": "classifier of one object, to be attacked",
    "convnext": "classifier of another family, for transfer",
    "preference": "CLIP that prefers whole pictures with their own captions",
    "aesthetic": "rating head on the CLIP's embeddings",
    "caption": "BLIP whose likelihood of a caption is a score",
    "vqa": "BLIP that answers yes or no, from the captioner on",
    "image_reward": "BLIP that prefers whole pictures with their own captions, from the one that answers on",
    "adopt": "the shipped --weights into --out, to train them further",
    "export": "fp16 folders and manifest into --weights",
    "evaluate": "figures and contact sheet of --weights",
    "measure": "figures of the models of rewards in --weights, or of --parts of them; the others stay as they are",
}

TRAINING = {"preset", "out", "seed", "device", "minutes", "steps", "threads"}
TAKES = {
    "prepare": {"sprites", "labels"},
    "text": TRAINING,
    "vae": TRAINING | {"init"},
    "decoder": TRAINING,
    "latents": {"preset", "out", "seed", "device", "threads", "count"},
    "unet": TRAINING,
    "judge": TRAINING,
    "clip": TRAINING,
    "detector": TRAINING,
    "resnet": TRAINING,
    "convnext": TRAINING,
    "preference": TRAINING,
    "aesthetic": TRAINING,
    "caption": TRAINING,
    "vqa": TRAINING,
    "image_reward": TRAINING,
    "adopt": {"out", "weights"},
    "export": {"out", "weights"},
    "evaluate": {"weights", "sheet", "sampling_steps", "guidance", "seeds", "device", "threads"},
    "measure": {"weights", "parts", "threads"},
}
"""The options that each command reads; any other is an error there."""


def read(words: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line, and refuse an option that its command would not read."""
    parser = arguments()
    options = parser.parse_args(words)
    for name, value in vars(options).items():
        if name != "command" and name not in TAKES[options.command] and value != parser.get_default(name):
            accepted = ", ".join(f"--{option.replace('_', '-')}" for option in sorted(TAKES[options.command]))
            parser.error(
                f"{options.command} does not read --{name.replace('_', '-')} (got {value}); it reads {accepted}"
            )
    return options


def arguments() -> argparse.ArgumentParser:
    """The options of all commands; `TAKES` says which are whose."""
    from draft_emoji import WEIGHTS

    parser = argparse.ArgumentParser(
        prog="python -m draft_emoji.recipe",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(f"{name:12} {text}" for name, text in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"), help="checkpoints and what is not shipped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="stop, with a checkpoint, after so long")
    parser.add_argument("--steps", type=int, help="updates in place of the preset's")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--init", type=Path, help="autoencoder folder to start from")
    parser.add_argument("--count", type=int, help="scenes to encode, in place of the preset's")
    parser.add_argument("--sprites", type=Path, help="assets/ of @lobehub/fluent-emoji-3d")
    parser.add_argument("--labels", type=Path, help="en/data.json of emojibase-data")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--parts", nargs="+", help="shipped folders to measure")
    parser.add_argument("--sheet", type=Path, help="contact sheet to write")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each concept")
    parser.add_argument("--sampling-steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5, 2.0, 3.0], help="scales to try")
    return parser


def main() -> None:
    """Run one command; each imports only what it needs."""
    options = read()
    if options.command == "prepare":
        from draft_emoji.recipe.prepare import prepare
        from draft_emoji.scenes import SHEET

        if options.sprites is None or options.labels is None:
            raise SystemExit("prepare needs --sprites and --labels: docs/emoji.md says where they come from")
        prepare(options.sprites, options.labels, SHEET)
        return

    import torch

    from draft_emoji.recipe.loop import Sitting
    from draft_emoji.recipe.presets import PRESETS

    if options.threads:
        torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    sitting = Sitting(options.out, options.device, options.seed, options.minutes, options.steps)
    match options.command:
        case "text":
            from draft_emoji.recipe.text import train_text

            train_text(sitting, preset.text)
        case "vae":
            from draft_emoji.recipe.vae import train_vae

            train_vae(sitting, preset.vae, options.init)
        case "decoder":
            from draft_emoji.recipe.vae import train_decoder

            train_decoder(sitting, preset.decoder)
        case "latents":
            from draft_emoji.recipe.latents import encode_scenes

            encode_scenes(sitting, options.count or preset.latents)
        case "unet":
            from draft_emoji.recipe.unet import train_unet

            train_unet(sitting, preset.unet)
        case "judge":
            from draft_emoji.recipe.judge import train_judge

            train_judge(sitting, preset.judge)
        case "clip":
            from draft_emoji.recipe.clip import train_clip

            train_clip(sitting, preset.clip)
        case "detector":
            from draft_emoji.recipe.detector import train_detector

            train_detector(sitting, preset.detector)
        case "resnet" | "convnext":
            from draft_emoji.recipe.classifiers import train_classifier

            train_classifier(options.command, sitting, preset.classifier)
        case "preference":
            from draft_emoji.recipe.preference import train_preference

            train_preference(sitting, preset.preference)
        case "aesthetic":
            from draft_emoji.recipe.aesthetic import train_aesthetic

            train_aesthetic(sitting, preset.aesthetic)
        case "caption":
            from draft_emoji.recipe.blip import train_caption

            train_caption(sitting, preset.caption)
        case "vqa":
            from draft_emoji.recipe.vqa import train_vqa

            train_vqa(sitting, preset.vqa)
        case "image_reward":
            from draft_emoji.recipe.image_reward import train_image_reward

            train_image_reward(sitting, preset.image_reward)
        case "adopt":
            from draft_emoji.recipe.adopt import adopt

            adopt(options.weights, options.out)
        case "export":
            from draft_emoji.recipe.export import export

            export(options.out, options.weights)
        case "evaluate":
            from draft_emoji.recipe.evaluate import evaluate

            evaluate(
                options.weights, options.sheet, options.sampling_steps, options.guidance, options.seeds, options.device
            )
        case "measure":
            from draft_emoji.recipe.measures import measure

            measure(options.weights, options.parts)


if __name__ == "__main__":
    main()

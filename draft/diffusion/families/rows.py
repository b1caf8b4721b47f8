"""Draft's own model families, a row each. No torch."""

from __future__ import annotations

from draft.family import AdapterFiles, Family

FAMILIES: tuple[Family, ...] = (
    Family(
        name="sd",
        title="Stable Diffusion 1.x and 2.x",
        pipeline="StableDiffusionPipeline",
        load="draft.diffusion.families.sd:load_stable_diffusion",
        part="unet",
        markers=("model.diffusion_model.input_blocks.",),
        components={
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "tokenizer": "CLIPTokenizer",
            "scheduler": "",
        },
        files=AdapterFiles(format="kohya", architecture="stable-diffusion", reader="StableDiffusionLoraLoaderMixin"),
    ),
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        pipeline="StableDiffusionXLPipeline",
        load="draft.diffusion.families.sdxl:load",
        part="unet",
        markers=("model.diffusion_model.input_blocks.", "conditioner.embedders.1."),
        encoders=("text_encoder", "text_encoder_2"),
        files=AdapterFiles(
            format="kohya",
            architecture="stable-diffusion-xl-v1-base",
            base_version="sdxl_base_v1-0",
            resolution="1024x1024",
            reader="StableDiffusionXLLoraLoaderMixin",
        ),
        components={
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "CLIPTokenizer",
            "scheduler": "",
        },
        stand_in="emoji_xl",
    ),
    Family(
        name="sd3",
        title="Stable Diffusion 3",
        pipeline="StableDiffusion3Pipeline",
        part="transformer",
        markers=("model.diffusion_model.joint_blocks.",),
        encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        schedule="flow",
        files=AdapterFiles(architecture="stable-diffusion-3", resolution="1024x1024", reader="SD3LoraLoaderMixin"),
    ),
    Family(
        name="flux",
        title="FLUX.1",
        pipeline="FluxPipeline",
        part="transformer",
        markers=("double_blocks.", "single_blocks."),
        encoders=("text_encoder", "text_encoder_2"),
        schedule="flow",
        guidance="embedded",
        patch=2,
        files=AdapterFiles(
            architecture="flux-1-dev", base_version="flux1", resolution="1024x1024", reader="FluxLoraLoaderMixin"
        ),
    ),
)
"""Draft's own families; of those without `load` only adapter files are read and written."""

"""A rehearsal is the user's file at small scale: what has a stand-in is replaced and told, what has none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from draft.errors import ConfigErrors, DraftError
from draft.pipeline.check import Pipeline
from draft.pipeline.load import load_pipeline
from draft.pipeline.rehearsal import Replacement, is_embedded, listing

FULL = Path(__file__).with_name("full.yaml").read_text()
REHEARSAL = """\
rehearsal:
  vars.thing: cat
  stages.train.prompts: ["a ${vars.thing}", a dog]
  stages.train.max_steps: 12
"""


def rehearsed(full, *overrides: str, add: str = "", swap: tuple[str, str] = ("", "")) -> Pipeline:
    before = full.file.read_text()
    assert swap[0] in before
    full.file.write_text(before.replace(*swap) + add if swap[0] else before + add)
    return load_pipeline("demo.yaml", overrides, rehearse=True)


def refused(full, *overrides: str, rehearse: bool = True, **changes) -> list[str]:
    load = rehearsed if rehearse else lambda full, *overrides: load_pipeline("demo.yaml", overrides)
    with pytest.raises(DraftError) as caught:
        load(full, *overrides, **changes)
    found = caught.value.errors if isinstance(caught.value, ConfigErrors) else [caught.value]
    return [str(error) for error in found]


def test_models_sizes_and_steps_are_replaced_and_the_rest_is_the_users(full) -> None:
    pipeline = rehearsed(full)
    train, evaluate = pipeline.stages["train"], pipeline.stages["evaluate"]
    config = train.config
    assert (pipeline.name, train.data["model"], Path(train.model).is_dir()) == ("full-rehearsal", "emoji", True)
    assert (config.sampler.num_inference_steps, config.sampler.guidance_scale, config.method.k) == (10, 2.0, 10)
    assert (config.max_steps, config.warmup_steps, config.batch_size) == (40, 4, 4)
    assert (config.gradient_accumulation_steps, config.micro_batch_size, config.report_to) == (1, 0, ())
    assert (config.mixed_precision, config.resolution, config.device) == ("no", None, "auto")
    assert (config.checkpoint.every, config.preview.every) == (10, 10)
    assert (config.learning_rate, config.lora.rank) == (3e-4, 4)
    assert list(train.prompts) == ["a person in a park"]
    jpeg, clip = train.terms
    assert (jpeg.weight, clip.reward.model, clip.reward.text, clip.device) == (0.5, "emoji/clip", "a person", "")
    assert (evaluate.config.images_per_prompt, evaluate.config.batch_size) == (2, 16)
    assert evaluate.config.sampler.guidance_scale == 1.0
    assert evaluate.terms[1].reward.model == "emoji/judge", "what names an embedded model needs no stand-in"
    assert pipeline.stages["generate"].data["model"] == "emoji"


def test_without_rehearse_nothing_is_replaced(full) -> None:
    full.file.write_text(FULL + REHEARSAL)
    pipeline = load_pipeline("demo.yaml")
    assert (pipeline.name, pipeline.replacements) == ("full", ())
    assert list(pipeline.stages["train"].prompts) == ["a person in a park"]
    assert pipeline.stages["train"].model == "CompVis/stable-diffusion-v1-4"


def test_what_is_small_already_stays(full) -> None:
    full.file.write_text("""\
name: tiny
stages:
  train:
    kind: train
    model: emoji
    prompts: [a cat]
    max_steps: 20
    sampler: {num_inference_steps: 8, guidance_scale: 1.5}
    micro_batch_size: 0
    checkpoint: {every: 0}
    preview: {every: 10}
    rewards:
      clip_score: {model: emoji/clip}
""")
    assert [each.key for each in rehearsed(full).replacements] == ["name"]


def test_the_files_own_rehearsal_comes_after_stand_ins_and_the_command_line_after_both(full) -> None:
    pipeline = rehearsed(
        full, "stages.train.batch_size=9", "stages.evaluate.sampler={guidance_scale: 3}", add=REHEARSAL
    )
    config = pipeline.stages["train"].config
    assert (config.max_steps, config.batch_size, config.preview.every) == (12, 9, 3)
    assert pipeline.stages["evaluate"].config.sampler.guidance_scale == 3.0
    assert pipeline.stages["evaluate"].config.sampler.num_inference_steps == 10
    assert rehearsed(full, "stages.train.max_steps=7").stages["train"].config.max_steps == 7
    assert (
        rehearsed(full, "stages.train.rewards.clip_score.model=model").stages["train"].terms[1].reward.model == "model"
    )


def test_a_variable_that_somebody_set_for_the_rehearsal_counts_as_set(full) -> None:
    pipeline = rehearsed(full, "vars.steps=20")
    assert pipeline.stages["train"].config.sampler.num_inference_steps == 20
    assert pipeline.stages["train"].config.method.k == 20
    pipeline = rehearsed(full, add="rehearsal: {vars.model: ./model}\n")
    assert pipeline.stages["train"].model == str(full.folder / "model")


@pytest.mark.parametrize(
    ("steps", "chosen", "overrides", "window"),
    [
        ("", "", (), 2),
        ("sampler: {num_inference_steps: 40}", "", (), 2),
        ("sampler: {num_inference_steps: 20}", "", (), 5),
        ("", "stages.train.sampler.num_inference_steps: 10", (), 2),
        ("", "stages.train.sampler: {num_inference_steps: 20}", (), 4),
        ("", "stages.train.sampler.num_inference_steps: 3", (), 1),
        ("", "", ("stages.train.sampler.num_inference_steps=25",), 5),
        ("", "stages.train.method.window: 7", (), 7),
    ],
)
def test_a_window_of_steps_keeps_its_share_whoever_chose_the_number_of_steps(
    full, steps: str, chosen: str, overrides: tuple[str, ...], window: int
) -> None:
    full.file.write_text(f"""\
name: tiny
stages:
  train:
    kind: train
    model: emoji
    prompts: [a cat]
    method: {{kind: refl}}
    {steps}
    rewards: {{jpeg: {{}}}}
rehearsal: {{{chosen}}}
""")
    assert rehearsed(full, *overrides).stages["train"].config.method.window == window
    assert load_pipeline(full.file).stages["train"].config.method.window == 10


def test_values_under_rehearsal_resolve_and_prompts_stay_as_written(full) -> None:
    pipeline = rehearsed(full, add=REHEARSAL + "  stages.mix.adapters.a.from: ${out:train.adapter}\n")
    assert list(pipeline.stages["train"].prompts) == ["a ${vars.thing}", "a dog"]
    assert pipeline.stages["train"].terms[1].reward.text == "a cat"
    shown = {each.key: (each.before, each.after) for each in pipeline.replacements}
    assert shown["vars.thing"] == ("person", "cat")
    assert shown["stages.train.max_steps"] == (1000, 12)
    assert "stages.mix.adapters.a.from" not in shown, "it is what it was"


def test_what_a_mapping_under_rehearsal_changes_is_told_value_by_value(full) -> None:
    pipeline = rehearsed(full, add="rehearsal: {stages.evaluate.rewards.judge: {use: emoji_judge, top: 2}}\n")
    changes = [each for each in pipeline.replacements if "judge" in each.key]
    assert changes == [Replacement("stages.evaluate.rewards.judge.top", None, 2)]


def test_paths_under_rehearsal_start_from_the_files_folder(full, tmp_path: Path, monkeypatch) -> None:
    full.file.write_text(FULL + "rehearsal:\n  stages.train.prompts: {file: held.txt}\n")
    monkeypatch.chdir("/")
    pipeline = load_pipeline(full.file, rehearse=True)
    assert list(pipeline.stages["train"].prompts) == ["a fox", "a cow"]


def test_a_folder_called_like_the_stand_in_does_not_take_its_place(full) -> None:
    (full.folder / "emoji").mkdir()
    assert rehearsed(full).stages["train"].model != str(full.folder / "emoji")


@pytest.mark.parametrize("rehearse", [False, True])
@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("stages.trian.max_steps: 3", "unknown stage 'trian'\n  hint: did you mean 'train'?"),
        ("vars.thin: cat", "unknown variable 'thin'\n  hint: did you mean 'thing'?"),
        ("stages.train.max_step: 3", "unknown key 'stages.train.max_step'\n  hint: did you mean 'max_steps'?"),
        ("stages.train.sampler.steps: 3", "unknown key 'stages.train.sampler.steps'\n  hint: the keys here are "
         "num_inference_steps, guidance_scale, negative_prompt, spacing, final, eta"),
        ("stages.train.rewards.clip_scor.text: cat", "unknown key 'stages.train.rewards.clip_scor'\n"
         "  hint: did you mean 'clip_score'?"),
        ("max_steps: 3", "unknown key 'max_steps'\n  hint: keys are written in full: stages.train.max_steps"),
        ("rehearsal.seed: 3", "unknown key 'rehearsal'\n  hint: the keys here are name, stages, seed, vars"),
        ("stages: {train: {max_steps: 3}}", "'stages' is not the full key of a value\n"
         "  hint: one dotted key per value, e.g. stages.train.rewards.animal.queries: [cat]"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_told_in_every_run(full, entry: str, text: str, rehearse: bool) -> None:
    full.file.write_text(f"{FULL}rehearsal:\n  {entry}\n")
    line = len(FULL.splitlines()) + 2
    assert refused(full, rehearse=rehearse) == [f"demo.yaml:{line}: {text}"]


def test_a_rehearsal_that_is_no_mapping_is_told(full) -> None:
    full.file.write_text(f"{FULL}rehearsal: [a]\n")
    line = len(FULL.splitlines()) + 1
    assert refused(full, rehearse=False) == [f'demo.yaml:{line}: rehearsal must be a mapping (got ["a"])']


def test_a_wrong_value_under_rehearsal_is_told_with_its_line(full) -> None:
    line = len(FULL.splitlines()) + 3
    found = refused(full, add="rehearsal:\n  stages.train.prompts: [a cat]\n  stages.train.max_steps: few\n")
    assert found == [f"demo.yaml:{line}: stages.train.max_steps must be an integer (got 'few')"]


def test_a_stand_in_does_not_hide_a_mistake(full) -> None:
    assert refused(full, swap=("mixed_precision: bf16", "mixed_precision: fp16")) == [
        "demo.yaml:18: stages.train.mixed_precision must be 'no' or 'bf16' (got 'fp16')"
    ]


def glow(plugin, *, option: str = 'model: str = "owner/glow"', stand_in: str = "") -> None:
    module = plugin()
    text = module.read_text().replace('target: str = "{thing}"', option)
    module.write_text(text.replace('name = "glow"\n', f'name = "glow"\n    {stand_in}\n'))


def test_a_reward_without_stand_in_is_refused_by_name(full, plugin) -> None:
    glow(plugin)
    full.file.write_text(FULL.replace("jpeg: {quality: 50, weight: 0.5}", "light: {use: glow}"))
    assert refused(full) == [
        "demo.yaml:24: reward 'glow' has no stand-in, so it cannot be rehearsed\n"
        "  hint: give its class a `stand_in`, or set stages.train.rewards.light.model under `rehearsal:`"
    ]
    pipeline = rehearsed(full, add="rehearsal:\n  stages.train.rewards.light.model: emoji/glow\n")
    assert pipeline.stages["train"].terms[0].reward.model == "emoji/glow"


@pytest.mark.parametrize("option", ["clip_model: str = 'a/b'", "revision: str = ''", "head: str = 'a/b'"])
def test_an_option_that_names_weights_asks_for_a_stand_in(full, plugin, option: str) -> None:
    glow(plugin, option=option)
    assert "reward 'glow' has no stand-in" in refused(full, swap=("jpeg: {quality: 50, weight: 0.5}", "glow:"))[0]


@pytest.mark.parametrize(
    ("option", "stand_in", "options"),
    [
        ("target: float = 1.0", "", "{}"),
        ('model: str = "owner/glow"', "stand_in = {}", "{}"),
        ('model: str = "emoji/glow"', "", "{}"),
        ("model: str", "", "{model: emoji/glow}"),
    ],
)
def test_a_reward_that_needs_no_stand_in_runs_as_it_is(full, plugin, option: str, stand_in: str, options: str) -> None:
    glow(plugin, option=option, stand_in=stand_in)
    pipeline = rehearsed(full, swap=("jpeg: {quality: 50, weight: 0.5}", f"glow: {options}"))
    assert not [each for each in pipeline.replacements if "glow" in each.key]


def test_a_stand_in_replaces_what_the_file_says_and_what_it_leaves_out(full, plugin) -> None:
    glow(plugin, stand_in='stand_in = {"model": "emoji/glow", "amount": 0.5}')
    pipeline = rehearsed(full, swap=("jpeg: {quality: 50, weight: 0.5}", "glow: {amount: 2}"))
    shown = {each.key: (each.before, each.after) for each in pipeline.replacements if "glow" in each.key}
    assert shown == {
        "stages.train.rewards.glow.model": ("owner/glow", "emoji/glow"),
        "stages.train.rewards.glow.amount": (2, 0.5),
    }


def test_an_adapter_of_a_full_size_model_is_refused_by_its_key(full) -> None:
    (full.folder / "mine.safetensors").write_text("")
    full.file.write_text(FULL.replace('{a: {from: "${out:train.adapter}"}}', "{a: {from: mine.safetensors}}"))
    assert refused(full) == [
        "demo.yaml:28: stages.mix.adapters.a.from was trained on another model than the embedded one, so it cannot be "
        "rehearsed (got 'mine.safetensors')\n  hint: set stages.mix.adapters.a.from under `rehearsal:`, e.g. to the "
        "output of a stage, ${out:train.adapter}"
    ]
    add = 'rehearsal: {stages.mix.adapters.a.from: "${out:train.adapter}"}\n'
    assert rehearsed(full, add=add).stages["mix"].upstream == ("train",)


def test_an_adapter_of_the_embedded_model_stays(full) -> None:
    (full.folder / "mine.safetensors").write_text("")
    text = FULL.replace('{mix: {from: "${out:mix.adapter}"}}', "{a: {from: mine.safetensors}}")
    full.file.write_text(text.replace("CompVis/stable-diffusion-v1-4", "emoji"))
    (file,) = rehearsed(full).stages["evaluate"].files
    assert (file.keys, file.source) == (("adapters", "a", "from"), str(full.folder / "mine.safetensors"))


def test_a_family_without_stand_in_is_refused_by_name(full) -> None:
    (full.folder / "model" / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    found = refused(full, swap=("CompVis/stable-diffusion-v1-4", "./model"))
    assert found[0] == (
        "demo.yaml:9: model './model' is a OtherPipeline, a family without a stand-in, so it cannot be rehearsed\n"
        "  hint: set stages.train.model under `rehearsal:`, e.g. to emoji"
    )


def test_names_of_the_embedded_world_are_known() -> None:
    assert all(is_embedded(name) for name in ("emoji", "emoji/clip", "draft-diffusion:emoji"))
    assert not any(is_embedded(name) for name in ("owner/emoji", "./emoji", "emojis", "", None, 3))


def test_the_listing_is_aligned_and_goes_stage_by_stage(full) -> None:
    text = FULL[: FULL.index("  evaluate:")].replace("jpeg:", "jpeg_size: {use: jpeg}\n      jpeg:")
    full.file.write_text(text + "rehearsal: {vars.thing: cat}\n")
    assert listing(rehearsed(full, "stages.train.batch_size=2").replacements) == (
        "rehearsal on the embedded models, all as in the file except:\n"
        "  vars.thing:                  person -> cat\n"
        "  name:                        full -> full-rehearsal\n"
        "  train\n"
        "    model:                       CompVis/stable-diffusion-v1-4 -> emoji\n"
        "    sampler.num_inference_steps: 50 -> 10\n"
        "    sampler.guidance_scale:      7.5 -> 2.0\n"
        "    warmup_steps:                100 -> 4\n"
        "    gradient_accumulation_steps: 4 -> 1\n"
        "    mixed_precision:             bf16 -> no\n"
        "    micro_batch_size:            1 -> 0\n"
        "    resolution:                  512 -> null\n"
        "    device:                      cuda:1 -> auto\n"
        "    method.k:                    20 -> 10\n"
        "    max_steps:                   1000 -> 40\n"
        "    checkpoint.every:            50 -> 10\n"
        "    preview.every:               100 -> 10\n"
        '    report_to:                   ["tensorboard"] -> []\n'
        "    rewards.clip_score.model:    openai/clip-vit-large-patch14 -> emoji/clip\n"
        '    rewards.clip_score.device:   cuda:0 -> ""'
    )

"""Facts about other tools' configurations: what becomes of each of their settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune import importers, recipe
from captune.errors import RecipeError
from captune.importers import Translation
from captune.importers.civitai import Civitai
from captune.importers.dreambooth import DreamBooth
from captune.importers.kohya import Kohya, folder_words

FLUX_MAN = {  # the parameters that civitai shows for a FLUX LoRA of a person
    "engine": "kohya",
    "unetLR": 0.0005,
    "clipSkip": 1,
    "loraType": "lora",
    "keepTokens": 0,
    "networkDim": 2,
    "numRepeats": 30,
    "resolution": 1024,
    "lrScheduler": "cosine_with_restarts",
    "minSnrGamma": 5,
    "noiseOffset": 0.1,
    "targetSteps": 1900,
    "enableBucket": True,
    "networkAlpha": 16,
    "optimizerType": "AdamW8Bit",
    "textEncoderLR": 0,
    "maxTrainEpochs": 13,
    "shuffleCaption": False,
    "trainBatchSize": 4,
    "flipAugmentation": True,
    "lrSchedulerNumCycles": 3,
}


def section(found: Translation, name: str) -> dict[str, Any]:
    values: dict[str, Any] = found.values[name]
    return values


def line(lines: list[str], word: str) -> str:
    (only,) = [text for text in lines if word in text]
    return only


def read_today(found: Translation) -> recipe.Recipe:
    """The recipe of those values whose fields the schema has."""
    known = {name: field.annotation.model_fields for name, field in recipe.Recipe.model_fields.items()
             if hasattr(field.annotation, "model_fields")}  # fmt: skip
    values = {
        name: {k: v for k, v in value.items() if k in known[name]} if isinstance(value, dict) else value
        for name, value in found.values.items()
    }
    values.setdefault("dataset", {}).setdefault("path", "photos")
    values["train"] = {k: v for k, v in values["train"].items() if k != "lr_scheduler" or v != "polynomial"}
    return recipe.from_values(values)


def everything_said(found: Translation) -> list[str]:
    return [*found.translated, *found.missing, *found.ignored_there]


def test_the_civitai_form_of_a_flux_person_becomes_a_recipe() -> None:
    found = Civitai().translate(json.dumps({"base": "FLUX.1-dev", **FLUX_MAN}))
    assert section(found, "base") == {"family": "flux", "model": "black-forest-labs/FLUX.1-dev"}
    assert section(found, "dataset") == {"repeats": 30, "resolution": 1024}
    assert section(found, "prepare") == {"crop": "bucket", "bucket_min": 256, "bucket_max": 1024, "bucket_step": 64}
    assert section(found, "train") == {
        "kind": "lora",
        "rank": 2,
        "alpha": 16.0,
        "targets": "attention+feed_forward",
        "learning_rate": 0.0005,
        "optimizer": "adamw8bit",
        "weight_decay": 0.01,
        "epochs": 13,
        "lr_scheduler": "cosine_with_restarts",
        "lr_scheduler_cycles": 3,
        "batch_size": 4,
        "flip": True,
    }
    assert read_today(found).train.lr_scheduler_cycles == 3


def test_what_civitai_shows_for_flux_and_nothing_reads_is_said() -> None:
    found = Civitai().translate(json.dumps(FLUX_MAN), "FLUX.1-dev")
    assert "does not weigh by signal-to-noise" in line(found.ignored_there, "minSnrGamma 5")
    assert "takes plain noise" in line(found.ignored_there, "noiseOffset 0.1")
    assert "CLIP's pooled output" in line(found.ignored_there, "clipSkip 1")
    # 30 x 13 / 4 is 97.5 steps an image: 19 images make 1853, 20 make 1950
    assert "no number of images gives 1900 (97.5 steps an image)" in line(found.ignored_there, "targetSteps")
    said = everything_said(found)
    assert all(any(text.startswith(name) for text in said) for name in FLUX_MAN if name != "keepTokens")


def test_civitais_target_is_compared_with_what_trains() -> None:
    form = {"numRepeats": 10, "maxTrainEpochs": 10, "trainBatchSize": 4, "targetSteps": 500, "networkDim": 32}
    assert "so there were 20 images" in line(Civitai().translate(json.dumps(form)).ignored_there, "targetSteps")
    wrong = Civitai().translate(json.dumps({**form, "images": 21}))
    assert "for 21 images is 525, not 500" in line(wrong.ignored_there, "targetSteps")


def test_civitais_sdxl_keeps_what_flux_cannot_use() -> None:
    form = {"minSnrGamma": 5, "noiseOffset": 0.1, "clipSkip": 2, "keepTokens": 2, "shuffleCaption": True, "cute": 1}
    found = Civitai().translate(json.dumps({"params": form, "baseModel": "SDXL"}))
    train = section(found, "train")
    assert (train["min_snr_gamma"], train["noise_offset"], train["keep_tokens"], train["shuffle_caption"]) == (
        5,
        0.1,
        2,
        True,
    )
    assert "last but one layer" in line(found.ignored_there, "clipSkip 2")
    assert line(found.missing, "cute") == "cute 1: has no counterpart here"


COMMAND = """accelerate launch --num_cpu_threads_per_process 1 sdxl_train_network.py \\
 --pretrained_model_name_or_path=base.safetensors --train_data_dir "{photos}" --reg_data_dir reg --output_name "my lora" \\
 --output_dir out --network_module networks.lora --network_dim 16 --network_alpha 8 --network_args conv_dim=8 conv_alpha=4 \\
 --unet_lr 1e-4 --text_encoder_lr 5e-5 4e-5 --lr_scheduler cosine --lr_scheduler_num_cycles 4 --lr_warmup_steps 50 \\
 --max_train_epochs 8 --max_train_steps 900 --train_batch_size 2 --optimizer_type AdamW \\
 --optimizer_args weight_decay=0.05 betas=0.9,0.95 --resolution 1024,768 --enable_bucket --min_bucket_reso 512 \\
 --keep_tokens 1 --min_snr_gamma 5 --mixed_precision bf16 --save_precision fp16 --cache_latents --sdpa --clip_skip 2 \\
 --caption_extension .txt --seed 7 --flip_aug --max_token_length 225 --save_every_n_epochs 2 --fancy_new_option 3"""


def test_kohyas_command_line_becomes_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "30_zorblax creature").mkdir()
    found = Kohya().translate("", COMMAND.format(photos=tmp_path))
    assert found.values["name"] == "my_lora"
    assert section(found, "base") == {"family": "sdxl", "model": "base.safetensors", "precision": "bf16"}
    assert section(found, "dataset") == {
        "trigger_word": "zorblax", "class_word": "creature", "path": str(tmp_path), "resolution": 887,
    }  # fmt: skip
    assert section(found, "regularization") == {"path": "reg"}
    assert section(found, "train") == {
        "kind": "lora", "rank": 16, "alpha": 8.0, "targets": "all", "ranks": {r"\.conv[12]?$": 8}, "learning_rate": 1e-4,
        "text_encoder_learning_rate": 5e-5, "optimizer": "adamw", "weight_decay": 0.05, "betas": [0.9, 0.95], "epochs": 8,
        "lr_scheduler": "cosine", "min_snr_gamma": 5.0, "caption_chunks": 3, "lr_warmup_steps": 50, "batch_size": 2,
        "flip": True, "seed": 7, "save_every_epochs": 2,
    }  # fmt: skip
    assert found.values["arm"] == [
        {"name": "captions", "captioner": {"name": "sidecar", "extension": ".txt", "trigger": "none"}}
    ]
    for option in ("--lr_scheduler_num_cycles 4", "--max_train_steps 900", "--keep_tokens 1", "--clip_skip 2"):
        assert line(found.ignored_there, option)
    assert line(found.missing, "--fancy_new_option 3").endswith("has no counterpart here")
    assert "captune run --out" in line(found.missing, "--output_dir out")
    assert line(found.translated, "--cache_latents") and line(found.translated, "--sdpa")
    assert read_today(found).export.precision == "fp16"


def test_every_option_of_a_command_line_is_accounted_for(tmp_path: Path) -> None:
    found = Kohya().translate("", COMMAND.format(photos=tmp_path))
    said = "\n".join(everything_said(found))
    given = {word.split("=")[0] for word in COMMAND.split() if word.startswith("--")} - {
        "--num_cpu_threads_per_process"
    }
    assert {option for option in given - {"--network_args", "--optimizer_args"} if option not in said} == set()
    assert all(argument in said for argument in ("conv_dim=8", "conv_alpha=4", "weight_decay=0.05", "betas=0.9,0.95"))


def test_kohyas_own_defaults_are_written_out() -> None:
    found = Kohya().translate(
        "", ["train_network.py", "--pretrained_model_name_or_path", "x/y", "--train_data_dir", "photos"]
    )
    train = section(found, "train")
    assert (train["rank"], train["alpha"], train["steps"]) == (4, 1, 1600)
    assert (train["learning_rate"], train["text_encoder_learning_rate"]) == (2e-6, 2e-6)
    assert found.values["arm"][0]["captioner"]["extension"] == ".caption"  # and not .txt
    assert section(found, "prepare")["crop"] == "square"


@pytest.mark.parametrize(
    ("options", "kind", "optimizer"),
    [
        ("--network_module lycoris.kohya --network_args algo=loha", "loha", "adamw"),
        ("--network_module lycoris.kohya --network_args algo=lokr --optimizer_type Prodigy", "lokr", "prodigy"),
        ("--network_module lycoris.kohya --network_args dora_wd=True --use_8bit_adam", "dora", "adamw8bit"),
        ("--network_module networks.lora --optimizer_type AdamWScheduleFree", "lora", "schedule_free_adamw"),
        ("--network_module networks.lora --optimizer_type my.package.Adan", "lora", "my.package:Adan"),
    ],
)
def test_kinds_of_networks_and_optimizers_have_our_names(options: str, kind: str, optimizer: str) -> None:
    train = section(Kohya().translate("", f"train_network.py {options}"), "train")
    assert (train["kind"], train["optimizer"]) == (kind, optimizer)


def test_text_encoders_are_left_alone_where_kohya_leaves_them() -> None:
    for options in ("--network_train_unet_only", "--text_encoder_lr 0"):
        train = section(Kohya().translate("", f"train_network.py --unet_lr 1e-4 {options}"), "train")
        assert "text_encoder_learning_rate" not in train and train["learning_rate"] == 1e-4


def test_kohyas_flux_trainer_ignores_what_ours_would_refuse() -> None:
    options = "--min_snr_gamma 5 --noise_offset 0.1 --debiased_estimation_loss --clip_skip 2 --zero_terminal_snr"
    found = Kohya().translate("", f"flux_train_network.py {options}")
    assert len(found.ignored_there) == 5
    refused = {"min_snr_gamma", "noise_offset", "debiased_estimation", "clip_skip", "zero_terminal_snr"}
    assert not refused & set(section(found, "train"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--timestep_sampling uniform --discrete_flow_shift 3", {"timestep_sampling": "uniform"}),
        ("--timestep_sampling sigmoid --sigmoid_scale 2", {"timestep_sampling": "sigmoid", "timestep_scale": 2.0}),
        ("--timestep_sampling shift", {"timestep_sampling": "shift", "timestep_shift": 3.0}),
        ("--timestep_sampling flux_shift", {"timestep_sampling": "shift"}),  # by each picture's size, there and here
        ("--discrete_flow_shift 1 --weighting_scheme none", {"timestep_sampling": "uniform"}),
        (
            "--weighting_scheme logit_normal --logit_mean 0.5 --logit_std 2",
            {"timestep_sampling": "logit_normal", "timestep_mean": 0.598612, "timestep_scale": 2.0},
        ),
        ("", {"timestep_sampling": "shift", "timestep_shift": 3.0}),
    ],
)
def test_flux_timesteps_are_drawn_as_there(options: str, expected: dict[str, Any]) -> None:
    found = Kohya().translate("", f"flux_train_network.py --guidance_scale 1 --model_prediction_type raw {options}")
    assert {k: v for k, v in section(found, "train").items() if k.startswith("timestep_")} == expected
    assert bool(found.missing) == (not options)  # uniform draws that are moved have no exact counterpart
    if options:
        assert read_today(found).train.timestep_sampling == expected["timestep_sampling"]


def test_flux_draws_of_a_logit_normal_are_those_of_sd_scripts() -> None:
    """There u = sigmoid(N(mean, std)) counts from noise to picture, and sigma = s (1 - u) / (1 + (s - 1) (1 - u))."""
    normals = np.linspace(-3, 3, 13)
    sigmas = 1 - 1 / (1 + np.exp(-(0.5 + 2 * normals)))
    there = 3 * sigmas / (1 + 2 * sigmas)
    found = Kohya().translate(
        "",
        "flux_train_network.py --timestep_sampling sigma --weighting_scheme logit_normal --logit_mean 0.5 --logit_std 2",
    )
    train = section(found, "train")
    here = 1 / (1 + np.exp(-(train["timestep_mean"] - train["timestep_scale"] * normals)))  # the normal is symmetric
    assert here == pytest.approx(there, abs=1e-6)


DATASET = """
[general]
shuffle_caption = true
keep_tokens = 2
caption_extension = ".txt"
[[datasets]]
resolution = 768
batch_size = 3
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "photos"
  class_tokens = "zorblax creature"
  num_repeats = 10
  [[datasets.subsets]]
  image_dir = "creatures"
  is_reg = true
  num_repeats = 2
  [[datasets.subsets]]
  image_dir = "more"
[[datasets]]
resolution = 512
"""


def test_kohyas_dataset_file_stands_above_the_command_line() -> None:
    found = Kohya().translate(DATASET, "train_network.py --train_batch_size 9 --network_dim 8")
    assert section(found, "dataset") == {
        "trigger_word": "zorblax", "class_word": "creature", "path": "photos", "resolution": 768, "repeats": 10,
    }  # fmt: skip
    assert section(found, "regularization") == {"path": "creatures", "repeats": 2}
    train = section(found, "train")
    assert (train["batch_size"], train["rank"], train["keep_tokens"], train["shuffle_caption"]) == (3, 8, 2, True)
    assert line(found.missing, "the subset more") and line(found.missing, "datasets[1]")
    assert read_today(found).regularization.repeats == 2


def test_kohyas_config_file_is_read_as_a_command_line_that_stands_above_it() -> None:
    config = "[network]\nnetwork_dim = 32\nunet_lr = 3e-4\n[other]\nmax_train_epochs = 5\nv2 = false\n"
    train = section(Kohya().translate(config, "train_network.py --network_dim 8"), "train")
    assert (train["rank"], train["learning_rate"], train["epochs"]) == (8, 3e-4, 5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("30_jefpajot man", (30, "jefpajot", "man")),
        ("1_zorblax", (1, "zorblax", "")),
        ("10_a_b old dog", (10, "a_b", "old dog")),
        ("photos", None),
    ],
)
def test_folder_names_hold_repeats_and_words(name: str, words: tuple[int, str, str] | None) -> None:
    assert folder_words(name) == words


JOE = """python "main.py" --project_name "rabbit" --debug False --max_training_steps 2000 --token "tiantian" \\
 --training_model "sd-v1-4.ckpt" --training_images "rabbit_pictures" --regularization_images "reg" --class_word "rabbit" \\
 --flip_p 0.5 --learning_rate 1e-06 --save_every_x_steps 500"""


def test_joepennas_command_line_becomes_a_lora_with_prior_preservation() -> None:
    found = DreamBooth().translate("", JOE)
    assert section(found, "dataset") == {
        "trigger_word": "tiantian", "class_word": "rabbit", "path": "rabbit_pictures", "resolution": 512,
    }  # fmt: skip
    assert section(found, "regularization") == {"path": "reg"}
    assert section(found, "base") == {"family": "sd", "model": "sd-v1-4.ckpt"}
    train = section(found, "train")
    assert (train["steps"], train["flip"], train["batch_size"], train["seed"]) == (2000, True, 2, 23)
    assert train["learning_rate"] == pytest.approx(1e-4) and train["text_encoder_learning_rate"] == pytest.approx(1e-5)
    assert "full fine-tune" in line(found.missing, "--learning_rate 1e-06")
    assert train["save_every_steps"] == 500 and line(found.missing, "squashed")
    assert "pictures x repeats" in line(found.missing, "--regularization_images reg")
    assert "0.5 whatever is given" in line(found.ignored_there, "--flip_p 0.5")
    chosen = read_today(found)
    assert chosen.arm[0].trigger_only and chosen.regularization.wanted and chosen.name == "rabbit"


def test_joepennas_token_only_drops_the_class() -> None:
    found = DreamBooth().translate(
        "main.py --token x --class_word dog --regularization_images reg --token_only --flip_p 0"
    )
    assert section(found, "dataset")["class_word"] == "" and "regularization" not in found.values
    assert line(found.ignored_there, "--regularization_images reg") and "flip" not in section(found, "train")
    assert section(found, "train")["batch_size"] == 1  # nothing stands beside the picture


def test_a_translation_written_as_a_recipe_says_what_it_leaves_out() -> None:
    found = DreamBooth().translate("", JOE)
    text = importers.as_toml(found)
    assert tomllib.loads(text) == found.values
    assert all(f"# no counterpart: {said}" in text for said in found.missing)
    odd = Translation(
        {"dataset": {"path": 'a "b" \\ \u00e9\x7f\n'}, "train": {"learning_rate": 1e-7, "betas": [0.9, 0.95]}}
    )
    assert tomllib.loads(importers.as_toml(odd)) == odd.values


def test_configurations_that_are_none_are_told_so() -> None:
    for read, source in ((Kohya().translate, "not = = toml"), (Civitai().translate, "{"), (Civitai().translate, "[1]")):
        with pytest.raises(RecipeError, match="valid TOML|JSON"):
            read(source)
    with pytest.raises(RecipeError, match="'loose' where an option"):
        Kohya().translate("", "train_network.py loose --network_dim 4")
    with pytest.raises(RecipeError, match="no option of JoePenna's main.py"):
        DreamBooth().translate("")
    with pytest.raises(RecipeError, match="unknown configuration 'civtai'.*did you mean 'civitai'"):
        importers.load("civtai")

"""Facts about sd-scripts' options: every one that a recipe has a counterpart for becomes it, the others are told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from captune import importers, recipe
from captune.importers import Translation
from captune.importers.kohya import Kohya
from captune.prepare import buckets
from captune.recipe import PrepareSection
from captune.train import optimizers


def translated(options: str, script: str = "train_network.py") -> Translation:
    return Kohya().translate("", f"{script} --train_data_dir photos {options}")


def read(found: Translation) -> recipe.Recipe:
    return recipe.from_values(found.values)


def at(chosen: recipe.Recipe, place: str) -> Any:
    name, field = place.split(".")
    return getattr(getattr(chosen, name), field)


# Options of a command line, and every field that they set.
COUNTERPARTS: dict[str, dict[str, Any]] = {
    "--network_dropout 0.1": {"train.dropout": 0.1},
    "--network_args conv_dim=4 conv_alpha=1": {"train.targets": "all"},
    "--network_dim 8 --network_args conv_dim=4 conv_alpha=0.5": {"train.ranks": {r"\.conv[12]?$": 4}},
    "--loss_type huber --huber_c 0.3 --huber_schedule constant": {"train.loss": "huber", "train.huber_c": 0.3},
    "--loss_type smooth_l1": {"train.loss": "smooth_l1"},
    "--ip_noise_gamma 0.1": {"train.ip_noise_gamma": 0.1},
    "--min_timestep 100 --max_timestep 900": {"train.min_timestep": 100, "train.max_timestep": 900},
    "--noise_offset 0.05 --min_snr_gamma 5": {"train.noise_offset": 0.05, "train.min_snr_gamma": 5.0},
    "--masked_loss": {"train.masked_loss": True},
    "--debiased_estimation_loss --zero_terminal_snr": {
        "train.debiased_estimation": True,
        "train.zero_terminal_snr": True,
    },
    "--gradient_checkpointing --torch_compile": {"train.gradient_checkpointing": True, "train.compile": True},
    "--gradient_accumulation_steps 4": {"train.gradient_accumulation": 4},
    "--caption_tag_dropout_rate 0.2 --keep_tokens 2": {"train.tag_dropout": 0.2, "train.keep_tokens": 2},
    "--caption_dropout_rate 0.1": {"train.caption_dropout": 0.1},
    "--max_token_length 150": {"train.caption_chunks": 2},
    "--clip_skip 2": {"train.clip_skip": 2},
    "--max_grad_norm 0": {"train.max_grad_norm": 0.0},
    "--save_every_n_steps 100 --save_last_n_steps 300": {"train.save_every_steps": 100, "train.keep_last": 4},
    "--save_every_n_epochs 2 --save_last_n_epochs 3": {"train.save_every_epochs": 2, "train.keep_last": 3},
    "--max_train_epochs 10 --save_n_epoch_ratio 4": {"train.epochs": 10, "train.save_every_epochs": 2},
    "--lr_scheduler polynomial --lr_scheduler_power 2": {"train.lr_scheduler": "polynomial", "train.lr_power": 2.0},
    "--lr_scheduler cosine --max_train_steps 500 --lr_warmup_steps 0.1": {"train.lr_warmup_steps": 50},
    "--lr_scheduler constant_with_warmup --lr_warmup_steps 20": {"train.lr_warmup_steps": 20},
    "--optimizer_args betas=0.9,0.95 weight_decay=1e-2 eps=1e-6 amsgrad=True": {
        "train.betas": (0.9, 0.95),
        "train.weight_decay": 0.01,
        "train.optimizer_options": {"eps": 1e-6, "amsgrad": True},
    },
    "--optimizer_type Prodigy --learning_rate 1 --text_encoder_lr 1 --optimizer_args d_coef=2 use_bias_correction=True": {
        "train.optimizer": "prodigy",
        "train.optimizer_options": {"d_coef": 2, "use_bias_correction": True},
        "train.weight_decay": 0.0,  # Prodigy's own, where AdamW's is 0.01
    },
    "--optimizer_type Adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False": {
        "train.optimizer": "adafactor",
        "train.optimizer_options": {},
    },
    "--optimizer_type SGDNesterov": {
        "train.optimizer": "torch.optim:SGD",
        "train.optimizer_options": {"momentum": 0.9, "nesterov": True},
    },
    "--optimizer_type RAdam": {"train.optimizer": "torch.optim:RAdam"},
    "--optimizer_type torch.optim.NAdam --optimizer_args momentum_decay=0.01": {
        "train.optimizer": "torch.optim:NAdam",
        "train.optimizer_options": {"momentum_decay": 0.01},
    },
    "--enable_bucket --bucket_no_upscale --bucket_reso_steps 32": {
        "prepare.bucket_no_upscale": True,
        "prepare.bucket_step": 32,
        "prepare.bucket_min": None,
    },
    "--reg_data_dir reg --prior_loss_weight 0.5": {"regularization.weight": 0.5},
    "--sample_every_n_epochs 2": {"sample.every_epochs": 2},
}


@pytest.mark.parametrize("options", COUNTERPARTS)
def test_an_option_with_a_counterpart_becomes_it(options: str) -> None:
    chosen = read(translated(options))
    assert {place: at(chosen, place) for place in COUNTERPARTS[options]} == COUNTERPARTS[options]
    if "8bit" not in chosen.train.optimizer:
        optimizers.check(chosen.train)  # with options that its class has


@pytest.mark.parametrize(
    "word", ["AdamW8bit", "PagedAdamW8bit", "Lion8bit", "PagedAdamW", "DAdaptAdam", "SGDScheduleFree"]
)
def test_optimizers_of_packages_are_found_by_their_class(word: str) -> None:
    found = translated(f"--optimizer_type {word}")
    train = found.values["train"]
    known = optimizers.OPTIMIZERS.get(train["optimizer"])
    assert (known.place if known else train["optimizer"]).endswith(f":{word}")
    assert ("weight_decay" in train) == ("AdamW" not in word)


# Options that have no counterpart or no effect, where that is said, and in which words.
TOLD = {
    "--optimizer_type Adafactor": ("missing", "it finds its own learning rate there"),
    "--optimizer_type CAME": ("missing", "give train.optimizer its class as `module:Class`"),
    "--optimizer_args eps=None": ("missing", "numbers, words and true or false"),
    "--loss_type l1": ("missing", "the losses here are l2, huber and smooth_l1"),
    "--loss_type huber": ("missing", "huber_schedule not given, snr there"),
    "--huber_c 0.2": ("ignored_there", "only the losses huber and smooth_l1 read it"),
    "--masked_loss": ("missing", "divided by its whole area there"),
    "--alpha_mask": ("missing", "NAME.mask.png"),
    "--network_args conv_alpha=1": ("ignored_there", "nothing reads it without conv_dim"),
    "--network_dim 8 --network_alpha 8 --network_args conv_dim=4 conv_alpha=1": ("missing", "0.25 there"),
    "--save_last_n_epochs 3": ("ignored_there", "nothing is saved on the way without save_every_n_epochs"),
    "--lr_scheduler_power 2": ("ignored_there", "only polynomial reads it"),
    "--max_train_epochs 3 --lr_scheduler cosine --lr_warmup_steps 0.1": ("missing", "a share of all steps"),
    "--bucket_no_upscale": ("ignored_there", "nothing reads it without enable_bucket"),
    "--enable_bucket --bucket_no_upscale --max_bucket_reso 2048": ("ignored_there", "follow from the pictures"),
    "--caption_prefix zorblax": ("missing", "write it into the captions"),
    "--caption_separator |": ("missing", "parts are what stands between commas here"),
    "--keep_tokens_separator |||": ("missing", "train.keep_tokens counts parts"),
    "--color_aug": ("missing", "pictures keep their colours"),
    "--random_crop": ("missing", "the middle is cut out"),
    "--scale_weight_norms 1": ("missing", "captune inspect"),
    "--network_weights old.safetensors": ("missing", "starts at no change"),
    "--full_bf16": ("missing", "trained in fp32"),
    "--blocks_to_swap 18": ("missing", "lies whole on base.device"),
    "--reg_data_dir reg": ("missing", "visited as often as the pictures"),
    "--validation_split 0.1": ("missing", "study.held_out"),
}


@pytest.mark.parametrize("options", TOLD)
def test_an_option_without_a_counterpart_is_told(options: str) -> None:
    place, sentence = TOLD[options]
    found = translated(options)
    assert [line for line in getattr(found, place) if sentence in line]
    read(found)


def test_the_flux_trainer_ignores_ranges_of_timesteps() -> None:
    found = translated("--min_timestep 100 --max_timestep 900", "flux_train_network.py")
    assert sum("draws from all timesteps" in line for line in found.ignored_there) == 2
    assert not {"min_timestep", "max_timestep"} & set(found.values["train"])


def test_ranks_by_pattern_are_written_as_toml(tmp_path: Path) -> None:
    found = translated("--network_dim 8 --network_args conv_dim=4 conv_alpha=0.5")
    file = tmp_path / "recipe.toml"
    file.write_text(importers.as_toml(found))
    chosen = recipe.read(file)
    assert chosen.train.ranks == {r"\.conv[12]?$": 4}
    file.write_text(recipe.as_toml(chosen))
    assert recipe.read(file) == chosen


def select_bucket(width: int, height: int, resolution: int, step: int) -> tuple[int, int]:
    """sd-scripts' BucketManager.select_bucket with no_upscale, retold."""
    ratio, area = width / height, resolution * resolution
    if width * height > area:
        wide = math.sqrt(area * ratio)
        high = area / wide
        wide_rounded, high_rounded = int(wide / step + 0.5) * step, int(high / step + 0.5) * step
        by_width = wide_rounded / (int(wide_rounded / ratio / step + 0.5) * step)
        by_height = int(high_rounded * ratio / step + 0.5) * step / high_rounded
        if abs(by_width - ratio) < abs(by_height - ratio):
            width, height = wide_rounded, int(wide_rounded / ratio + 0.5)
        else:
            width, height = int(high_rounded * ratio + 0.5), high_rounded
    return width - width % step, height - height % step


@pytest.mark.parametrize(
    "size", [(512, 512), (300, 200), (70, 500), (640, 480), (1000, 700), (4000, 3000), (1920, 1080), (700, 1500)]
)
def test_buckets_without_enlarging_are_kohyas(size: tuple[int, int]) -> None:
    section = PrepareSection(crop="bucket", bucket_no_upscale=True)
    found = buckets.chooser(512, section, 8)(*size)
    assert found == select_bucket(*size, 512, 64)
    assert found[0] <= max(size[0], 64) and found[1] <= max(size[1], 64)

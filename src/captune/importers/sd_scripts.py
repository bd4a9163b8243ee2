"""What sd-scripts' options mean in a recipe; kohya's command lines and civitai's forms both end here. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from captune.importers import Translation


class Setting(NamedTuple):
    """One option of the other tool: its value, and how it was written there."""

    value: Any
    said: str


Settings = dict[str, Setting]  # sd-scripts' name of an option, without the dashes -> what was given
NEVER_GIVEN = "not given"

OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "prodigy": "prodigy",
    "adafactor": "adafactor",
    "lion": "lion",
    "adamwschedulefree": "schedule_free_adamw",
}
SCHEDULERS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
PRECISIONS = {"no": "fp32", "float": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}

# An option whose value goes into a field as it is.
SAME: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "network_dropout": ("train.dropout", float),
    "lr_warmup_steps": ("train.lr_warmup_steps", int),
    "train_batch_size": ("train.batch_size", int),
    "gradient_accumulation_steps": ("train.gradient_accumulation", int),
    "max_grad_norm": ("train.max_grad_norm", float),
    "seed": ("train.seed", int),
    "flip_aug": ("train.flip", bool),
    "caption_dropout_rate": ("train.caption_dropout", float),
    "save_every_n_epochs": ("train.save_every_epochs", int),
    "bucket_reso_steps": ("prepare.bucket_step", int),
    "min_bucket_reso": ("prepare.bucket_min", int),
    "max_bucket_reso": ("prepare.bucket_max", int),
    "num_repeats": ("dataset.repeats", int),
    "prior_loss_weight": ("regularization.weight", float),
    "sample_every_n_epochs": ("sample.every_epochs", int),
}
SWITCHES = {
    "debiased_estimation_loss": "train.debiased_estimation",
    "zero_terminal_snr": "train.zero_terminal_snr",
}
# What needs no setting, and why.
ALWAYS = {
    **dict.fromkeys(
        ("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"),
        "frozen work is always done once",
    ),
    **dict.fromkeys(("vae_batch_size", "text_encoder_batch_size", "skip_cache_check"), "the cache sees to itself"),
    **dict.fromkeys(("xformers", "sdpa", "mem_eff_attn"), "torch's own fused attention is used"),
    **dict.fromkeys(
        ("max_data_loader_n_workers", "persistent_data_loader_workers", "lowram", "highvram"),
        "pictures are read once, before training",
    ),
    **dict.fromkeys(("logging_dir", "log_with", "log_prefix"), "losses are written into the run folder"),
    **dict.fromkeys(("save_model_as", "no_metadata"), "files are safetensors with a full header"),
    "no_half_vae": "the VAE always computes in fp32",
    "save_state": "the whole state is saved every train.checkpoint_every_steps",
    "sdxl": "base.family says so",
    "v2": "base.family = sd reads 1.x and 2.x, and tells which from the model",
    "v_parameterization": "the base's own scheduler says what it predicts",
}
# What these families' trainers of sd-scripts do not read, and say nothing (or a warning) about.
UNREAD_BY = {
    "flux": {
        "min_snr_gamma": "its FLUX trainer does not weigh by signal-to-noise",
        "debiased_estimation_loss": "its FLUX trainer does not weigh by signal-to-noise",
        "noise_offset": "its FLUX trainer takes plain noise",
        "zero_terminal_snr": "its FLUX trainer has no noise schedule to rescale",
        "clip_skip": "its FLUX trainer takes CLIP's pooled output",
        "max_token_length": "its FLUX trainer reads T5's tokens",
        "v_parameterization": "its FLUX trainer always predicts the flow",
    },
    "sdxl": {"clip_skip": "its SDXL trainer always takes the last but one layer"},
    "sd": {},
}


def apply(found: Translation, settings: Settings, family: str) -> None:
    """Put the options into the recipe's values; every one is then in one of the translation's lists.

    `settings` is used up. The base, the folders and the captions are the caller's, who knows where they are.
    """
    for name, reason in UNREAD_BY[family].items():
        if name in settings and not _off(settings[name].value):
            found.ignored_there.append(f"{settings.pop(name).said}: {reason}")
        settings.pop(name, None)
    _network(found, settings, family)
    _learning_rates(found, settings)
    _optimizer(found, settings)
    _length(found, settings)
    _scheduler(found, settings)
    _captions(found, settings)
    _pictures(found, settings)
    _loss(found, settings)
    _timesteps(found, settings, family)
    _text(found, settings, family)
    _precision(found, settings)
    for name, setting in list(settings.items()):
        del settings[name]
        if _off(setting.value):
            found.translated.append(f"{setting.said} -> nothing to set: it is off here too")
        elif name in ALWAYS:
            found.translated.append(f"{setting.said} -> nothing to set: {ALWAYS[name]}")
        elif name in SWITCHES:
            found.put(setting.said, SWITCHES[name], True)
        elif name in SAME:
            place, kind = SAME[name]
            found.put(setting.said, place, kind(setting.value))
        else:
            found.missing.append(f"{setting.said}: has no counterpart here")


def _off(value: Any) -> bool:
    """Whether an option is there but says nothing: a switch that is off, or a number for "none"."""
    return value is None or value is False or value == ""


def _network(found: Translation, settings: Settings, family: str) -> None:
    module = settings.pop("network_module", Setting("networks.lora", NEVER_GIVEN))
    arguments = _arguments(settings.pop("network_args", Setting([], NEVER_GIVEN)))
    kind, word = "lora", str(module.value)
    if word.startswith("lycoris"):
        algorithm = arguments.pop("algo", Setting("lora", NEVER_GIVEN))
        kind = {"locon": "lora", "lora": "lora", "loha": "loha", "lokr": "lokr"}.get(str(algorithm.value).lower(), "")
        if not kind:
            found.missing.append(f"{algorithm.said}: there is LoRA, DoRA, LoHa and LoKr here; a plain LoRA is set")
            kind = "lora"
        if str(arguments.pop("dora_wd", Setting("", "")).value).lower() == "true":
            kind = "dora"
    elif word not in ("networks.lora", "networks.lora_flux", "networks.lora_fa"):
        found.missing.append(f"{module.said}: networks of this kind are not trained here; a plain LoRA is set")
    if module.said != NEVER_GIVEN or kind != "lora":
        found.put(module.said, "train.kind", kind)
    for name, place, default in (("network_dim", "train.rank", 4), ("network_alpha", "train.alpha", 1)):
        given = settings.pop(name, None)
        if given is None or _off(given.value):
            found.put(f"{name} not given", place, default, "sd-scripts' own default")
        elif name == "network_alpha" and float(given.value) == 0:
            found.put(given.said, place, float(found.values["train"]["rank"]), "0 means alpha = rank there")
        else:
            number = int(given.value) if name == "network_dim" else float(given.value)
            found.put(given.said, place, number)
    wide = [arguments.pop(name) for name in ("conv_dim", "conv_alpha") if name in arguments]
    targets = "all" if wide and family != "flux" else "attention+feed_forward"
    found.put(
        ", ".join(s.said for s in wide) or "the modules that sd-scripts trains",
        "train.targets",
        targets,
        "convolutions get train.rank and train.alpha too" if wide else "",
    )
    if "dropout" in arguments:
        settings.setdefault("network_dropout", arguments.pop("dropout"))
    for setting in arguments.values():
        found.missing.append(f"{setting.said}: has no counterpart here")


def _arguments(given: Setting) -> Settings:
    """`name=value` pairs, as --network_args and --optimizer_args take them."""
    pairs = given.value if isinstance(given.value, list) else str(given.value).split()
    found = {}
    for pair in pairs:
        name, _, value = str(pair).partition("=")
        found[name] = Setting(value, str(pair))
    return found


def _learning_rates(found: Translation, settings: Settings) -> None:
    common = settings.pop("learning_rate", Setting(2e-6, "learning_rate not given"))
    unet = settings.pop("unet_lr", None)
    if unet is not None and not _off(unet.value):
        found.put(unet.said, "train.learning_rate", float(unet.value))
        if common.said != "learning_rate not given":
            found.translated.append(f"{common.said} -> nothing to set: the more particular rates stand above it")
    else:
        note = "sd-scripts' own default" if common.said == "learning_rate not given" else ""
        found.put(common.said, "train.learning_rate", float(common.value), note)
    denoiser_only = settings.pop("network_train_unet_only", Setting(False, ""))
    text = settings.pop("text_encoder_lr", None)
    if denoiser_only.value:
        found.translated.append(
            f"{denoiser_only.said} -> nothing to set: text encoders are trained only when asked for"
        )
        if text is not None and not _off(text.value):
            found.ignored_there.append(f"{text.said}: no text encoder is trained with network_train_unet_only")
        return
    rates = [float(rate) for rate in (text.value if isinstance(text.value, list) else [text.value])] if text else []
    if text is None:
        found.put(
            "text_encoder_lr not given", "train.text_encoder_learning_rate", float(common.value), "they are trained too"
        )
    elif not any(rates):
        found.translated.append(f"{text.said} -> nothing to set: the text encoders stay as they are")
    else:
        found.put(text.said, "train.text_encoder_learning_rate", max(rates))
        if len(set(rates)) > 1:
            found.missing.append(f"{text.said}: all text encoders have one learning rate here; the largest is set")


def _optimizer(found: Translation, settings: Settings) -> None:
    given = settings.pop("optimizer_type", Setting("AdamW", "optimizer_type not given"))
    for old in ("use_8bit_adam", "use_lion_optimizer"):
        if settings.pop(old, Setting(False, "")).value:
            given = Setting({"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}[old], f"--{old}")
    word = str(given.value) or "AdamW"
    if "." in word:
        found.put(given.said, "train.optimizer", word)
    elif word.lower() in OPTIMIZERS:
        found.put(given.said, "train.optimizer", OPTIMIZERS[word.lower()])
    else:
        found.missing.append(f"{given.said}: give train.optimizer the full path of its class to use it; adamw is set")
        found.put(given.said, "train.optimizer", "adamw")
    for name, setting in _arguments(settings.pop("optimizer_args", Setting([], ""))).items():
        if name == "weight_decay":
            found.put(setting.said, "train.weight_decay", float(setting.value))
        elif name == "betas":
            found.put(
                setting.said, "train.betas", [float(number) for number in re.findall(r"[\d.eE-]+", setting.value)][:2]
            )
        else:
            found.missing.append(f"{setting.said}: this argument of the optimizer has no field here")


def _length(found: Translation, settings: Settings) -> None:
    epochs, steps = settings.pop("max_train_epochs", None), settings.pop("max_train_steps", None)
    if epochs is not None and not _off(epochs.value):
        found.put(epochs.said, "train.epochs", int(epochs.value))
        if steps is not None:
            found.ignored_there.append(f"{steps.said}: max_train_epochs stands above it")
    elif steps is not None:
        found.put(steps.said, "train.steps", int(steps.value))
    else:
        found.put("neither epochs nor steps given", "train.steps", 1600, "sd-scripts' own default")


def _scheduler(found: Translation, settings: Settings) -> None:
    given = settings.pop("lr_scheduler", Setting("constant", NEVER_GIVEN))
    cycles = settings.pop("lr_scheduler_num_cycles", None)
    warmup = settings.get("lr_warmup_steps")
    word = str(given.value)
    if warmup is not None and 0 < float(warmup.value or 0) < 1:
        found.missing.append(
            f"{warmup.said}: a share of all steps; set train.lr_warmup_steps once `captune plan` tells them"
        )
        del settings["lr_warmup_steps"]
    elif word == "constant" and warmup is not None and float(warmup.value or 0):
        found.ignored_there.append(f"{warmup.said}: the scheduler constant has no warm-up; constant_with_warmup has")
        del settings["lr_warmup_steps"]
    if word == "constant_with_warmup":
        word = "constant"
    if word in SCHEDULERS:
        if given.said != NEVER_GIVEN:
            found.put(given.said, "train.lr_scheduler", word)
    else:
        found.missing.append(f"{given.said}: the schedulers here are {', '.join(SCHEDULERS)}; constant is set")
        found.put(given.said, "train.lr_scheduler", "constant")
    if cycles is not None and word == "cosine_with_restarts":
        found.put(cycles.said, "train.lr_scheduler_cycles", int(cycles.value))
    elif cycles is not None and int(cycles.value or 1) != 1:
        found.ignored_there.append(f"{cycles.said}: only cosine_with_restarts reads it")


def _captions(found: Translation, settings: Settings) -> None:
    shuffle = settings.pop("shuffle_caption", Setting(False, ""))
    keep = settings.pop("keep_tokens", None)
    if shuffle.value:
        found.put(shuffle.said, "train.shuffle_caption", True)
    elif shuffle.said:
        found.translated.append(f"{shuffle.said} -> nothing to set: captions keep their order")
    others = any(settings[n].value for n in ("caption_tag_dropout_rate", "token_warmup_step") if n in settings)
    if keep is not None and int(keep.value or 0):
        if shuffle.value:
            found.put(keep.said, "train.keep_tokens", int(keep.value))
        elif not others:
            found.ignored_there.append(f"{keep.said}: without shuffle_caption there is nothing to keep tags from")
    elif keep is not None:
        found.translated.append(f"{keep.said} -> nothing to set: no tag is kept in its place")


def _pictures(found: Translation, settings: Settings) -> None:
    given = settings.pop("resolution", None)
    if given is not None:
        sides = [
            int(n) for n in (given.value if isinstance(given.value, list) else re.findall(r"\d+", str(given.value)))
        ]
        side = round(math.sqrt(sides[0] * sides[-1]))
        found.put(
            given.said, "dataset.resolution", side, "" if sides[0] == sides[-1] else "the same area, as a square's side"
        )
    bucket = settings.pop("enable_bucket", Setting(False, "enable_bucket not given"))
    found.put(bucket.said, "prepare.crop", "bucket" if bucket.value else "square")
    for name, default in (("min_bucket_reso", 256), ("max_bucket_reso", 1024), ("bucket_reso_steps", 64)):
        setting = settings.get(name)
        if not bucket.value and setting is not None:
            found.ignored_there.append(f"{setting.said}: nothing reads it without enable_bucket")
            del settings[name]
        elif bucket.value and setting is None:
            settings[name] = Setting(default, f"{name} not given, {default} there")


def _loss(found: Translation, settings: Settings) -> None:
    for name, place in (("min_snr_gamma", "train.min_snr_gamma"), ("noise_offset", "train.noise_offset")):
        given = settings.pop(name, None)
        if given is None:
            continue
        if _off(given.value) or float(given.value) == 0:
            found.translated.append(f"{given.said} -> nothing to set: it is off here too")
        else:
            found.put(given.said, place, float(given.value))


def _timesteps(found: Translation, settings: Settings, family: str) -> None:
    """How FLUX's timesteps are drawn; the other trainers of sd-scripts draw them uniformly and read none of this."""
    how, scale, shift = (settings.pop(n, None) for n in ("timestep_sampling", "sigmoid_scale", "discrete_flow_shift"))
    if family != "flux":
        for given in (how, scale, shift):
            if given is not None:
                found.ignored_there.append(f"{given.said}: only its trainers for flow matching read it")
        return
    if how is None:
        return
    word = str(how.value)
    if word not in ("uniform", "sigmoid", "shift", "flux_shift"):
        found.missing.append(
            f"{how.said}: {word} draws uniformly and moves towards noise by discrete_flow_shift (3 unless given); here only "
            "sigmoid draws are moved. train.timestep_sampling = 'shift' is set, which draws the ends more seldom"
        )
    found.put(how.said, "train.timestep_sampling", word if word in ("uniform", "sigmoid") else "shift")
    if scale is not None and word != "uniform":
        found.put(scale.said, "train.timestep_scale", float(scale.value))
    elif scale is not None:
        found.ignored_there.append(f"{scale.said}: uniform draws have no scale")
    if word == "flux_shift":
        side = found.values.get("dataset", {}).get("resolution", 1024)
        tokens = (side // 16) ** 2
        moved = math.exp(
            0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        )  # Black Forest Labs' line through two sizes
        found.put(
            f"{how.said}, {side} pixels", "train.timestep_shift", round(moved, 4), "there by each picture's own size"
        )
    elif word not in ("uniform", "sigmoid"):
        found.put(
            shift.said if shift else "discrete_flow_shift not given",
            "train.timestep_shift",
            float(shift.value if shift else 3),
        )
    if shift is not None and word in ("uniform", "sigmoid", "flux_shift"):
        found.ignored_there.append(f"{shift.said}: {word} does not read it")


def _text(found: Translation, settings: Settings, family: str) -> None:
    skip = settings.pop("clip_skip", None)
    if skip is not None and int(skip.value or 1) > 1:
        found.put(skip.said, "train.clip_skip", int(skip.value))
    elif skip is not None:
        found.translated.append(f"{skip.said} -> nothing to set: the last layer is read")
    length = settings.pop("max_token_length", None)
    if length is not None and not _off(length.value):
        chunks = max(1, round(int(length.value) / 75))
        if chunks > 1:
            found.put(length.said, "train.caption_chunks", chunks)
        else:
            found.translated.append(f"{length.said} -> nothing to set: captions are read up to 75 tokens")


def _precision(found: Translation, settings: Settings) -> None:
    for name, place in (("mixed_precision", "base.precision"), ("save_precision", "export.precision")):
        given = settings.pop(name, None)
        if given is not None and not _off(given.value):
            if str(given.value) in PRECISIONS:
                found.put(given.said, place, PRECISIONS[str(given.value)])
            else:
                found.missing.append(f"{given.said}: number formats here are fp32, fp16 and bf16")


def step_count(images: int, repeats: int, epochs: int, batch_size: int) -> int:
    """Steps of a training with one bucket: epochs x ceil(images x repeats / batch); ragged buckets make it more."""
    return epochs * math.ceil(images * repeats / batch_size)

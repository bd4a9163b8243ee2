"""What sd-scripts' options mean in a recipe; kohya's command lines and civitai's forms both end here. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from captune.importers import Translation, networks, optimization
from captune.importers.settings import Setting, Settings, off

PRECISIONS = {"no": "fp32", "float": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}

# An option whose value goes into a field as it is.
SAME: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "network_dropout": ("train.dropout", float),
    "train_batch_size": ("train.batch_size", int),
    "gradient_accumulation_steps": ("train.gradient_accumulation", int),
    "max_grad_norm": ("train.max_grad_norm", float),
    "seed": ("train.seed", int),
    "flip_aug": ("train.flip", bool),
    "caption_dropout_rate": ("train.caption_dropout", float),
    "caption_tag_dropout_rate": ("train.tag_dropout", float),
    "ip_noise_gamma": ("train.ip_noise_gamma", float),
    "min_timestep": ("train.min_timestep", int),
    "max_timestep": ("train.max_timestep", int),
    "bucket_reso_steps": ("prepare.bucket_step", int),
    "min_bucket_reso": ("prepare.bucket_min", int),
    "max_bucket_reso": ("prepare.bucket_max", int),
    "num_repeats": ("dataset.repeats", int),
    "dataset_repeats": ("dataset.repeats", int),
    "prior_loss_weight": ("regularization.weight", float),
    "sample_every_n_epochs": ("sample.every_epochs", int),
}
SWITCHES = {
    "debiased_estimation_loss": "train.debiased_estimation",
    "zero_terminal_snr": "train.zero_terminal_snr",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "torch_compile": "train.compile",
    "bucket_no_upscale": "prepare.bucket_no_upscale",
    "masked_loss": "train.masked_loss",
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
    **dict.fromkeys(
        ("save_state", "save_state_on_train_end", "save_last_n_epochs_state", "save_last_n_steps_state", "resume"),
        "the whole state is saved every train.checkpoint_every_steps, and the same command continues",
    ),
    "dynamo_backend": "train.compile takes torch's own",
    "console_log_level": "what matters is said",
    "console_log_simple": "what matters is said",
    "training_comment": "the file's header says how it was trained",
    "sdxl": "base.family says so",
    "v2": "base.family = sd reads 1.x and 2.x, and tells which from the model",
    "v_parameterization": "the base's own scheduler says what it predicts",
}
# What has no counterpart, and what to do about it.
WAYS = {
    "adaptive_noise_scale": "train.noise_offset is the same for all pictures",
    "alpha_mask": "transparent pixels are laid on prepare.background; masks of their own (NAME.mask.png) leave them out",
    "blocks_to_swap": "the base lies whole on base.device",
    "caption_dropout_every_n_epochs": "train.caption_dropout drops captions at random",
    "caption_prefix": "write it into the captions; a trigger word is put in front by arm.captioner.trigger = 'prefix'",
    "caption_suffix": "write it into the captions",
    "color_aug": "pictures keep their colours",
    "conditioning_data_dir": "put the masks beside their pictures, as NAME.mask.png",
    "cpu_offload_checkpointing": "train.gradient_checkpointing keeps activations on the device",
    "enable_wildcard": "a caption file is one caption",
    "face_crop_aug_range": "the same part of a picture is cut out at each visit",
    "fp8_base": "the base is held in base.precision",
    "full_bf16": "a LoRA's own weights are trained in fp32",
    "full_fp16": "a LoRA's own weights are trained in fp32",
    "in_json": "write the captions into files beside the pictures, or into metadata.jsonl",
    "ip_noise_gamma_random_strength": "train.ip_noise_gamma is the same at each visit",
    "keep_tokens_separator": "train.keep_tokens counts parts between commas",
    "multires_noise_iterations": "noise is drawn at one size",
    "network_train_text_encoder_only": "the UNet or transformer is always trained",
    "network_weights": "a training starts at no change",
    "noise_offset_random_strength": "train.noise_offset is the same at each visit",
    "random_crop": "the middle is cut out at each visit",
    "sample_at_first": "pictures without a LoRA are drawn anyway",
    "sample_every_n_steps": "sample.every_epochs counts epochs",
    "sample_prompts": "write its prompts into sample.prompts",
    "scale_weight_norms": "norms are not held below a limit; `captune inspect` tells them",
    "token_warmup_step": "all parts of a caption are read from the first step",
    "validation_split": "study.held_out counts pictures",
    "weighted_captions": "captions are read without weights",
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
        "min_timestep": "its FLUX trainer draws from all timesteps",
        "max_timestep": "its FLUX trainer draws from all timesteps",
        "scale_v_pred_loss_like_noise_pred": "its FLUX trainer always predicts the flow",
        "adaptive_noise_scale": "its FLUX trainer takes plain noise",
        "multires_noise_iterations": "its FLUX trainer takes plain noise",
    },
    "sdxl": {"clip_skip": "its SDXL trainer always takes the last but one layer"},
    "sd": {},
}


def apply(found: Translation, settings: Settings, family: str) -> None:
    """Put the options into the recipe's values; every one is then in one of the translation's lists.

    `settings` is used up. The base, the folders and the captions are the caller's, who knows where they are.
    """
    for name, reason in UNREAD_BY[family].items():
        if name in settings and not off(settings[name].value):
            found.ignored_there.append(f"{settings.pop(name).said}: {reason}")
        settings.pop(name, None)
    networks.network(found, settings, family)
    networks.learning_rates(found, settings)
    optimization.optimizer(found, settings)
    optimization.length(found, settings)
    optimization.scheduler(found, settings)
    optimization.saving(found, settings)
    _captions(found, settings)
    _pictures(found, settings)
    _loss(found, settings)
    _timesteps(found, settings, family)
    _text(found, settings, family)
    _precision(found, settings)
    for name, setting in list(settings.items()):
        del settings[name]
        if off(setting.value):
            found.translated.append(f"{setting.said} -> nothing to set: it is off here too")
        elif name in ALWAYS:
            found.translated.append(f"{setting.said} -> nothing to set: {ALWAYS[name]}")
        elif name in SWITCHES:
            found.put(setting.said, SWITCHES[name], True)
        elif name in SAME:
            place, kind = SAME[name]
            found.put(setting.said, place, kind(setting.value))
        else:
            found.missing.append(f"{setting.said}: {WAYS.get(name, 'has no counterpart here')}")


def _captions(found: Translation, settings: Settings) -> None:
    shuffle, keep = settings.pop("shuffle_caption", Setting(False, "")), settings.pop("keep_tokens", None)
    separator = settings.pop("caption_separator", None)
    if shuffle.value:
        found.put(shuffle.said, "train.shuffle_caption", True)
    elif shuffle.said:
        found.translated.append(f"{shuffle.said} -> nothing to set: captions keep their order")
    if separator is not None and str(separator.value).strip() == ",":
        found.translated.append(f"{separator.said} -> nothing to set: parts are what stands between commas")
    elif separator is not None:
        found.missing.append(f"{separator.said}: parts are what stands between commas here")
    if keep is None:
        return
    thinned = float(settings.get("caption_tag_dropout_rate", Setting(0, "")).value or 0) > 0
    if not int(keep.value or 0):
        found.translated.append(f"{keep.said} -> nothing to set: no tag is kept in its place")
    elif shuffle.value or thinned:
        found.put(keep.said, "train.keep_tokens", int(keep.value))
    elif not settings.get("token_warmup_step", Setting(0, "")).value:
        found.ignored_there.append(f"{keep.said}: without shuffle_caption there is nothing to keep tags from")
    else:
        found.missing.append(f"{keep.said}: {WAYS['token_warmup_step']}")


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
    keeps_size = settings.get("bucket_no_upscale", Setting(False, "")).value
    if keeps_size and not bucket.value:
        found.ignored_there.append(f"{settings.pop('bucket_no_upscale').said}: nothing reads it without enable_bucket")
    for name, default in (("min_bucket_reso", 256), ("max_bucket_reso", 1024), ("bucket_reso_steps", 64)):
        setting = settings.get(name)
        if bucket.value and keeps_size and name != "bucket_reso_steps":
            if setting is not None:
                found.ignored_there.append(f"{setting.said}: with bucket_no_upscale buckets follow from the pictures")
                del settings[name]
        elif not bucket.value and setting is not None:
            found.ignored_there.append(f"{setting.said}: nothing reads it without enable_bucket")
            del settings[name]
        elif bucket.value and setting is None:
            settings[name] = Setting(default, f"{name} not given, {default} there")


def _loss(found: Translation, settings: Settings) -> None:
    for name in ("min_snr_gamma", "noise_offset"):
        given = settings.pop(name, None)
        if given is None:
            continue
        if off(given.value) or float(given.value) == 0:
            found.translated.append(f"{given.said} -> nothing to set: it is off here too")
        else:
            found.put(given.said, f"train.{name}", float(given.value))
    if settings.get("masked_loss", Setting(False, "")).value:
        found.missing.append(
            f"{settings['masked_loss'].said}: a picture's loss is divided by its whole area there, here by what is learned"
        )
    kind, c, schedule = (settings.pop(name, None) for name in ("loss_type", "huber_c", "huber_schedule"))
    word = str(kind.value) if kind is not None else "l2"
    if kind is not None and word in ("l2", "huber", "smooth_l1"):
        found.put(kind.said, "train.loss", word)
    elif kind is not None:
        found.missing.append(f"{kind.said}: the losses here are l2, huber and smooth_l1; l2 is set")
    robust = word in ("huber", "smooth_l1")
    for setting in (c, schedule):
        if setting is not None and not robust:
            found.ignored_there.append(f"{setting.said}: only the losses huber and smooth_l1 read it")
    if robust and c is not None:
        found.put(c.said, "train.huber_c", float(c.value))
    if robust and (schedule is None or schedule.value != "constant"):
        said = schedule.said if schedule else "huber_schedule not given, snr there"
        found.missing.append(f"{said}: train.huber_c is the same at every timestep here, as with constant there")
    elif robust and schedule is not None:
        found.translated.append(f"{schedule.said} -> nothing to set: train.huber_c is the same at every timestep")


FLOWS = ("timestep_sampling", "sigmoid_scale", "discrete_flow_shift", "weighting_scheme", "logit_mean", "logit_std")


def _timesteps(found: Translation, settings: Settings, family: str) -> None:
    """How FLUX's timesteps are drawn; the other trainers of sd-scripts draw them uniformly and read none of this."""
    given = {name: settings.pop(name, None) for name in FLOWS}
    if family != "flux":
        for setting in given.values():
            if setting is not None:
                found.ignored_there.append(f"{setting.said}: only its trainers for flow matching read it")
        return
    how = given.pop("timestep_sampling")
    if how is None:
        return
    word = str(how.value)
    read: tuple[str, ...] = ()
    if word == "uniform":
        found.put(how.said, "train.timestep_sampling", "uniform")
    elif word in ("sigmoid", "shift", "flux_shift"):
        found.put(how.said, "train.timestep_sampling", "sigmoid" if word == "sigmoid" else "shift")
        read = ("sigmoid_scale", "discrete_flow_shift") if word == "shift" else ("sigmoid_scale",)
        if given["sigmoid_scale"] is not None:
            found.put(given["sigmoid_scale"].said, "train.timestep_scale", float(given["sigmoid_scale"].value))
        if word == "shift":  # flux_shift goes by each picture's size, as an absent timestep_shift does here
            said, shift = _number(given["discrete_flow_shift"], "discrete_flow_shift", 3.0)
            found.put(said, "train.timestep_shift", shift)
    else:
        read = _sigmas(found, how, given)
    for name, setting in given.items():
        if setting is not None and name not in read:
            found.ignored_there.append(f"{setting.said}: timestep_sampling {word} does not read it")


def _sigmas(found: Translation, how: Setting, given: Mapping[str, Setting | None]) -> tuple[str, ...]:
    """timestep_sampling sigma: draws of weighting_scheme, moved towards noise by discrete_flow_shift; which were read.

    A normal number's logit moves by ln(shift), so logit_normal has an exact counterpart; uniform draws have one at shift 1.
    """
    said, shift = _number(given["discrete_flow_shift"], "discrete_flow_shift", 3.0)
    scheme = given["weighting_scheme"]
    name = str(scheme.value) if scheme is not None else "none"
    if name == "logit_normal" and scheme is not None:
        (of_mean, mean), (of_std, std) = (_number(given[n], n, d) for n, d in (("logit_mean", 0.0), ("logit_std", 1.0)))
        found.put(f"{how.said}, {scheme.said}", "train.timestep_sampling", "logit_normal")
        # there the draw counts from noise to picture
        found.put(f"{of_mean}, {said}", "train.timestep_mean", round(math.log(shift) - mean, 6))
        found.put(of_std, "train.timestep_scale", std)
        return ("discrete_flow_shift", "weighting_scheme", "logit_mean", "logit_std")
    if scheme is not None and name not in ("none", "uniform"):
        found.missing.append(f"{scheme.said}: draws and weights of this kind are not here")
    elif scheme is not None:
        found.translated.append(f"{scheme.said} -> nothing to set: all timesteps weigh the same")
    if shift == 1:
        found.put(f"{how.said}, {said}", "train.timestep_sampling", "uniform")
    else:
        found.missing.append(
            f"{how.said}: {how.value} draws uniformly and moves towards noise by discrete_flow_shift (3 unless given); here "
            "only sigmoid draws are moved. train.timestep_sampling = 'shift' is set, which draws the ends more seldom"
        )
        found.put(how.said, "train.timestep_sampling", "shift")
        found.put(said, "train.timestep_shift", shift)
    return ("discrete_flow_shift", "weighting_scheme")


def _number(given: Setting | None, name: str, default: float) -> tuple[str, float]:
    return (given.said, float(given.value)) if given is not None else (f"{name} not given", default)


def _text(found: Translation, settings: Settings, family: str) -> None:
    skip = settings.pop("clip_skip", None)
    if skip is not None and int(skip.value or 1) > 1:
        found.put(skip.said, "train.clip_skip", int(skip.value))
    elif skip is not None:
        found.translated.append(f"{skip.said} -> nothing to set: the last layer is read")
    length = settings.pop("max_token_length", None)
    if length is not None and not off(length.value):
        chunks = max(1, round(int(length.value) / 75))
        if chunks > 1:
            found.put(length.said, "train.caption_chunks", chunks)
        else:
            found.translated.append(f"{length.said} -> nothing to set: captions are read up to 75 tokens")


def _precision(found: Translation, settings: Settings) -> None:
    for name, place in (("mixed_precision", "base.precision"), ("save_precision", "export.precision")):
        given = settings.pop(name, None)
        if given is not None and not off(given.value):
            if str(given.value) in PRECISIONS:
                found.put(given.said, place, PRECISIONS[str(given.value)])
            else:
                found.missing.append(f"{given.said}: number formats here are fp32, fp16 and bf16")


def step_count(images: int, repeats: int, epochs: int, batch_size: int) -> int:
    """Steps of a training with one bucket: epochs x ceil(images x repeats / batch); ragged buckets make it more."""
    return epochs * math.ceil(images * repeats / batch_size)

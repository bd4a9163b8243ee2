"""civitai's training form: the JSON of its parameters, as the site shows it beside a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from captune.errors import RecipeError
from captune.importers import Translation, sd_scripts
from captune.importers.settings import Setting, Settings

# civitai's name of a parameter -> sd-scripts' option
NAMES = {
    "unetLR": "unet_lr",
    "textEncoderLR": "text_encoder_lr",
    "clipSkip": "clip_skip",
    "keepTokens": "keep_tokens",
    "networkDim": "network_dim",
    "networkAlpha": "network_alpha",
    "numRepeats": "num_repeats",
    "resolution": "resolution",
    "lrScheduler": "lr_scheduler",
    "lrSchedulerNumCycles": "lr_scheduler_num_cycles",
    "minSnrGamma": "min_snr_gamma",
    "noiseOffset": "noise_offset",
    "enableBucket": "enable_bucket",
    "optimizerType": "optimizer_type",
    "optimizerArgs": "optimizer_args",
    "maxTrainEpochs": "max_train_epochs",
    "shuffleCaption": "shuffle_caption",
    "trainBatchSize": "train_batch_size",
    "flipAugmentation": "flip_aug",
}
WEIGHT_DECAY = {"flux": 0.01, "sdxl": 0.1, "sd": 0.1}  # added there to AdamW8Bit without saying so


class Civitai:
    """Reads the form's JSON; what belongs to the site and not to the training is said to have no counterpart."""

    def translate(self, source: str, arguments: Sequence[str] | str = ()) -> Translation:
        """`source` is the JSON, on its own or under "params"; its base under "base", "baseModel" or as an argument."""
        given = _read(source)
        found = Translation()
        base = _base(given, arguments)
        family = _family(base)
        images = given.pop("images", given.pop("imageCount", None))
        if base:
            found.put(f"base {base}", "base.model", _hub_name(base))
        found.put(f"base {base}" if base else "no base is named", "base.family", family)
        kind = given.pop("loraType", None)
        if kind is not None:
            found.put(f"loraType {kind}", "train.kind", "lora")
        engine = given.pop("engine", None)
        if engine is not None:
            found.translated.append(f"engine {engine} -> nothing to set: this is the engine")
        target = given.pop("targetSteps", None)
        settings: Settings = {NAMES[n]: Setting(v, f"{n} {_written(v)}") for n, v in given.items() if n in NAMES}
        for name, value in given.items():
            if name not in NAMES:
                found.missing.append(f"{name} {_written(value)}: has no counterpart here")
        if target is not None:
            _check_target(found, int(target), images, settings)
        optimizer = settings.get("optimizer_type")
        if optimizer and str(optimizer.value).lower() == "adamw8bit" and "optimizer_args" not in settings:
            found.put(f"{optimizer.said} there", "train.weight_decay", WEIGHT_DECAY[family], "its own argument there")
        source_of_captions = {"name": "sidecar", "extension": ".txt", "trigger": "none"}
        found.values["arm"] = [{"name": "captions", "captioner": source_of_captions}]
        sd_scripts.apply(found, settings, family)
        return found


def _read(source: str) -> dict[str, Any]:
    try:
        given = json.loads(source)
    except ValueError as error:
        raise RecipeError(f"the training parameters are not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise RecipeError('the training parameters must be a JSON object, such as {"networkDim": 2, ...}')
    inner = given.pop("params", None)
    return {**given, **inner} if isinstance(inner, Mapping) else given


def _base(given: dict[str, Any], arguments: Sequence[str] | str) -> str:
    words = [arguments] if isinstance(arguments, str) else list(arguments)
    told = [str(given.pop(name)) for name in ("base", "baseModel", "model") if name in given]
    return next((word for word in [*words, *told] if word), "")


def _family(base: str) -> str:
    word = base.lower()
    if "flux" in word:
        return "flux"
    return "sdxl" if any(part in word for part in ("xl", "pony", "illustrious")) else "sd"


def _hub_name(base: str) -> str:
    """The hub's name of a base as civitai calls it; other names stay."""
    known = {
        "flux.1-dev": "black-forest-labs/FLUX.1-dev",
        "flux_dev": "black-forest-labs/FLUX.1-dev",
        "flux": "black-forest-labs/FLUX.1-dev",
        "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
        "sd_1_5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    }
    return known.get(base.lower().replace(" ", "-"), base)


def _check_target(found: Translation, target: int, images: Any, settings: Mapping[str, Setting]) -> None:
    """targetSteps = ceil(images x repeats x epochs / batch) is shown there, and not what trains."""
    parts = {n: settings[n].value for n in ("num_repeats", "max_train_epochs", "train_batch_size") if n in settings}
    said = f"targetSteps {target}"
    if len(parts) < 3:
        found.ignored_there.append(f"{said}: kohya's scripts never see it")
        return
    repeats, epochs, batch = (int(parts[n]) for n in ("num_repeats", "max_train_epochs", "train_batch_size"))
    per_image = repeats * epochs / batch
    counts = [int(images)] if images is not None else _counts(target, repeats, epochs, batch)
    words = f"{said}: kohya's scripts never see it; it is ceil(images x {repeats} repeats x {epochs} epochs / {batch})"
    if images is not None and -(-counts[0] * repeats * epochs // batch) != target:
        right = -(-counts[0] * repeats * epochs // batch)
        found.ignored_there.append(f"{words}, which for {counts[0]} images is {right}, not {target}")
    elif counts:
        steps = sd_scripts.step_count(counts[0], repeats, epochs, batch)
        more = f"; one bucket gives {steps} steps" if steps != target else ""
        found.ignored_there.append(f"{words}, so there were {' or '.join(map(str, counts))} images{more}")
    else:
        found.ignored_there.append(f"{words}: no number of images gives {target} ({per_image:g} steps an image)")


def _counts(target: int, repeats: int, epochs: int, batch: int) -> list[int]:
    """The numbers of images that give this target."""
    highest = target * batch // (repeats * epochs) + 1
    return [n for n in range(1, highest + 1) if -(-n * repeats * epochs // batch) == target]


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list | dict) or value is None else str(value)

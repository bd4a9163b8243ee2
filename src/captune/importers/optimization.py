"""What sd-scripts' optimizer, length, schedule and saving options mean here."""

from __future__ import annotations

import math
import re
from typing import Any

from captune.importers import Translation
from captune.importers.settings import NEVER_GIVEN, Setting, Settings, literal, off, pairs

OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "pagedadamw8bit": "paged_adamw8bit",
    "pagedadamw": "bitsandbytes.optim:PagedAdamW",
    "pagedadamw32bit": "bitsandbytes.optim:PagedAdamW32bit",
    "prodigy": "prodigy",
    "adafactor": "adafactor",
    "lion": "lion",
    "lion8bit": "lion8bit",
    "pagedlion8bit": "bitsandbytes.optim:PagedLion8bit",
    "sgdnesterov": "torch.optim:SGD",
    "sgdnesterov8bit": "bitsandbytes.optim:SGD8bit",
    "dadaptation": "dadaptation.experimental:DAdaptAdamPreprint",
    "dadaptadampreprint": "dadaptation.experimental:DAdaptAdamPreprint",
    "dadaptadam": "dadaptation:DAdaptAdam",
    "dadaptadagrad": "dadaptation:DAdaptAdaGrad",
    "dadaptadan": "dadaptation:DAdaptAdan",
    "dadaptlion": "dadaptation:DAdaptLion",
    "dadaptsgd": "dadaptation:DAdaptSGD",
    "adamwschedulefree": "schedule_free_adamw",
    "radamschedulefree": "schedulefree:RAdamScheduleFree",
    "sgdschedulefree": "schedulefree:SGDScheduleFree",
}
TORCH = ("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
ADAMW = ("adamw", "adamw8bit", "pagedadamw8bit", "pagedadamw", "pagedadamw32bit")  # 0.01 is their own weight decay
ADAFACTORS_OWN = ("relative_step", "scale_parameter", "warmup_init")
SCHEDULERS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
USUAL_STEPS = 1600


def optimizer(found: Translation, settings: Settings) -> None:
    """optimizer_type and optimizer_args."""
    given = settings.pop("optimizer_type", Setting("AdamW", "optimizer_type not given"))
    for old, name in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if settings.pop(old, Setting(False, "")).value:
            given = Setting(name, f"--{old}")
    word = str(given.value) or "AdamW"
    found.put(given.said, "train.optimizer", _class(found, given, word))
    arguments = pairs(settings.pop("optimizer_args", Setting([], "")))
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if word.lower() == "sgdnesterov" else {}
    if word.lower() == "adafactor":
        _own_rates(found, given, arguments)
    _decay(found, given, word, arguments.pop("weight_decay", None))
    betas = arguments.pop("betas", None)
    if betas is not None:
        numbers = [float(number) for number in re.findall(r"[\d.]+(?:[eE][+-]?\d+)?", betas.value)]
        found.put(betas.said, "train.betas", numbers[:2])
        if len(numbers) > 2:
            found.missing.append(f"{betas.said}: train.betas are two numbers; the first two are set")
    for name, setting in arguments.items():
        value = literal(setting.value)
        if isinstance(value, bool | int | float | str):
            options[name] = value
            found.translated.append(f"{setting.said} -> train.optimizer_options.{name} = {value!r}")
        else:
            found.missing.append(f"{setting.said}: an optimizer's options are numbers, words and true or false here")
    if options:
        found.values["train"]["optimizer_options"] = options


def _class(found: Translation, given: Setting, word: str) -> str:
    """A recipe's word for the optimizer; sd-scripts takes classes of torch.optim by their name alone."""
    if word.lower() in OPTIMIZERS:
        return OPTIMIZERS[word.lower()]
    if "." in word:
        module, _, name = word.rpartition(".")
        return f"{module}:{name}"
    if word in TORCH:
        return f"torch.optim:{word}"
    found.missing.append(f"{given.said}: give train.optimizer its class as `module:Class` to use it; adamw is set")
    return "adamw"


def _own_rates(found: Translation, given: Setting, arguments: Settings) -> None:
    """Adafactor follows the recipe's rate here; there only when it is told to leave its own."""
    own = [arguments.pop(name) for name in ADAFACTORS_OWN if name in arguments]
    still = [setting for setting in own if literal(setting.value) is not False]
    for setting in own:
        if setting not in still:
            found.translated.append(f"{setting.said} -> nothing to set: adafactor keeps to train.learning_rate here")
    if still or not any(setting.said.startswith("relative_step") for setting in own):
        said = " ".join(setting.said for setting in still) or f"{given.said}, relative_step not given, True there"
        found.missing.append(f"{said}: it finds its own learning rate there; here it keeps to train.learning_rate")


def _decay(found: Translation, given: Setting, word: str, decay: Setting | None) -> None:
    """Weight decay: where none is given the class's own there, which is 0 but for AdamW's."""
    if decay is not None:
        found.put(decay.said, "train.weight_decay", float(decay.value))
    elif word.lower() not in ADAMW and "weight_decay" not in found.values["train"]:
        found.put(f"{given.said} without weight_decay", "train.weight_decay", 0.0, "the class's own default there")


def length(found: Translation, settings: Settings) -> None:
    """max_train_epochs and max_train_steps, of which the first stands above the second."""
    epochs, steps = settings.pop("max_train_epochs", None), settings.pop("max_train_steps", None)
    if epochs is not None and not off(epochs.value):
        found.put(epochs.said, "train.epochs", int(epochs.value))
        if steps is not None:
            found.ignored_there.append(f"{steps.said}: max_train_epochs stands above it")
    elif steps is not None:
        found.put(steps.said, "train.steps", int(steps.value))
    else:
        found.put("neither epochs nor steps given", "train.steps", USUAL_STEPS, "sd-scripts' own default")


def saving(found: Translation, settings: Settings) -> None:
    """Which files are kept on the way; the length is known by now."""
    train, ratio = found.values["train"], settings.pop("save_n_epoch_ratio", None)
    every = {n: settings.pop(f"save_every_n_{n}", None) for n in ("epochs", "steps")}
    last = {n: settings.pop(f"save_last_n_{n}", None) for n in ("epochs", "steps")}
    if ratio is not None and not off(ratio.value) and "epochs" in train:
        found.put(ratio.said, "train.save_every_epochs", max(1, train["epochs"] // int(ratio.value)))
    elif ratio is not None and not off(ratio.value):
        found.missing.append(f"{ratio.said}: set train.save_every_epochs once `captune plan` tells the epochs")
    for name, setting in every.items():
        if setting is not None and not off(setting.value):
            found.put(setting.said, f"train.save_every_{name}", int(setting.value))
    for name, setting in last.items():
        if setting is None or off(setting.value):
            continue
        step = train.get(f"save_every_{name}")
        if step is None:
            found.ignored_there.append(f"{setting.said}: nothing is saved on the way without save_every_n_{name}")
        elif "keep_last" in train:
            found.missing.append(f"{setting.said}: train.keep_last counts files of epochs and of steps together")
        else:  # there a number of epochs' files, but a number of steps that the oldest file may be behind
            count = int(setting.value) if name == "epochs" else int(setting.value) // int(step) + 1
            found.put(setting.said, "train.keep_last", count, "files" if name == "steps" else "")


def scheduler(found: Translation, settings: Settings) -> None:
    """lr_scheduler with its cycles, power and warm-up."""
    given = settings.pop("lr_scheduler", Setting("constant", NEVER_GIVEN))
    cycles, power = settings.pop("lr_scheduler_num_cycles", None), settings.pop("lr_scheduler_power", None)
    word = str(given.value)
    _warmup(found, settings.pop("lr_warmup_steps", None), word)
    if word == "constant_with_warmup":
        word = "constant"
    if word not in SCHEDULERS:
        found.missing.append(f"{given.said}: the schedulers here are {', '.join(SCHEDULERS)}; constant is set")
        word = "constant"
    if given.said != NEVER_GIVEN:
        found.put(given.said, "train.lr_scheduler", word)
    if cycles is not None and word == "cosine_with_restarts":
        found.put(cycles.said, "train.lr_scheduler_cycles", int(cycles.value))
    elif cycles is not None and int(cycles.value or 1) != 1:
        found.ignored_there.append(f"{cycles.said}: only cosine_with_restarts reads it")
    elif cycles is not None:
        found.translated.append(f"{cycles.said} -> nothing to set: there are no restarts")
    if power is not None and word == "polynomial":
        found.put(power.said, "train.lr_power", float(power.value))
    elif power is not None and not off(power.value):
        found.ignored_there.append(f"{power.said}: only polynomial reads it")


def _warmup(found: Translation, warmup: Setting | None, scheduler: str) -> None:
    if warmup is None:
        return
    number, steps = float(warmup.value or 0), found.values["train"].get("steps")
    if number == 0:
        found.translated.append(f"{warmup.said} -> nothing to set: there is no warm-up")
    elif scheduler == "constant":
        found.ignored_there.append(f"{warmup.said}: the scheduler constant has no warm-up; constant_with_warmup has")
    elif number >= 1:
        found.put(warmup.said, "train.lr_warmup_steps", int(number))
    elif steps is not None:
        found.put(warmup.said, "train.lr_warmup_steps", math.floor(number * steps), f"that share of {steps} steps")
    else:
        found.missing.append(
            f"{warmup.said}: a share of all steps; set train.lr_warmup_steps once `captune plan` tells them"
        )

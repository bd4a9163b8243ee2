"""kohya's sd-scripts: command lines, config files, dataset TOML, and folders named `30_token class`."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captune.errors import RecipeError
from captune.importers import Translation, sd_scripts
from captune.importers.settings import Setting, Settings

FAMILIES = {
    "train_network.py": "sd",
    "train_db.py": "sd",
    "fine_tune.py": "sd",
    "sdxl_train_network.py": "sdxl",
    "sdxl_train.py": "sdxl",
    "flux_train_network.py": "flux",
    "flux_train.py": "flux",
}
FULL = ("train_db.py", "fine_tune.py", "sdxl_train.py", "flux_train.py")
_FOLDER = re.compile(r"(\d+)_(.+)")
CAPTIONS = ".caption"  # what sd-scripts reads unless told; half of its users write .txt

# Options that the base, the folders and the run's name come from.
_PLACES = {
    "output_name": "name",
    "pretrained_model_name_or_path": "base.model",
    "train_data_dir": "dataset.path",
    "image_dir": "dataset.path",
}
_ELSEWHERE = {
    "output_dir": "give it to `captune run --out`",
    "config_file": "give its content as the source",
    "dataset_config": "give its content as the source",
    "clip_l": "base.model names a whole model: a diffusers folder or a hub name holds its text encoders",
    "t5xxl": "base.model names a whole model: a diffusers folder or a hub name holds its text encoders",
    "ae": "base.model names a whole model: a diffusers folder or a hub name holds its VAE",
    "vae": "base.model names a whole model: a diffusers folder or a hub name holds its VAE",
}


class Kohya:
    """Reads what one would type after `accelerate launch`, with the TOML files that it names."""

    def translate(self, source: str, arguments: Sequence[str] | str = ()) -> Translation:
        """`source` is the text of a dataset TOML or a config file ("" for none), `arguments` the command line."""
        script, settings = read_arguments(arguments)
        given = _read_toml(source)
        found = Translation()
        subsets: list[Settings] = []
        if "datasets" in given or "general" in given:
            shared, subsets = _datasets(found, given)
            settings |= shared  # a dataset file stands above the command line
        else:
            settings = {**_flat(given), **settings}
        family = FAMILIES.get(script) or _guess_family(settings)
        if script in FULL:
            found.missing.append(f"{script}: it trains all weights of the model; a LoRA is trained here")
        found.put(script or "the script is not named", "base.family", family)
        _places(found, settings, subsets)
        if family == "flux":
            _flux(found, settings)
        sd_scripts.apply(found, settings, family)
        return found


def _flux(found: Translation, settings: Settings) -> None:
    """What the FLUX trainer takes where it is told nothing: sigma's timesteps, guidance 3.5, a scaled prediction."""
    settings.setdefault("timestep_sampling", Setting("sigma", "timestep_sampling not given, sigma there"))
    guidance = settings.pop("guidance_scale", Setting(3.5, "guidance_scale not given, 3.5 there"))
    if float(guidance.value) == 1:
        found.translated.append(f"{guidance.said} -> nothing to set: FLUX is trained at guidance 1")
    else:
        found.missing.append(f"{guidance.said}: FLUX is trained at guidance 1 here, what its flow asks for")
    predicted = settings.pop("model_prediction_type", Setting("sigma_scaled", "model_prediction_type not given"))
    if predicted.value == "raw":
        found.translated.append(f"{predicted.said} -> nothing to set: the flow itself is what is predicted")
    else:
        found.missing.append(f"{predicted.said}: the flow itself is what is predicted here, as with raw there")


def read_arguments(arguments: Sequence[str] | str) -> tuple[str, Settings]:
    """The script's name ("" if none is named) and its options; what `accelerate launch` itself takes is passed over."""
    try:
        words = shlex.split(arguments.replace("\\\n", " ")) if isinstance(arguments, str) else list(arguments)
    except ValueError as error:
        raise RecipeError(f"the command line cannot be taken apart: {error}") from None
    script = ""
    for index, word in enumerate(words):
        if word.endswith(".py"):
            script, words = Path(word).name, words[index + 1 :]
            break
    settings: Settings = {}
    index = 0
    while index < len(words):
        if not words[index].startswith("--"):
            raise RecipeError(f"the command line has {words[index]!r} where an option such as --network_dim should be")
        name, equals, value = words[index][2:].partition("=")
        index += 1
        values = [value] if equals else []
        while not equals and index < len(words) and not re.match(r"--[a-z]", words[index]):
            values.append(words[index])
            index += 1
        listed = name in ("network_args", "optimizer_args", "text_encoder_lr")
        value_of: Any = True if not values else (values if listed else values[0] if len(values) == 1 else values)
        settings[name] = Setting(value_of, " ".join([f"--{name}", *values]))
    return script, settings


def folder_words(name: str) -> tuple[int, str, str] | None:
    """Repeats, trigger word and class word of a folder named `30_token class`; None for another name."""
    match = _FOLDER.fullmatch(name)
    if not match:
        return None
    trigger, _, class_word = match[2].strip().partition(" ")
    return int(match[1]), trigger, class_word.strip()


def _read_toml(source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the configuration is not valid TOML: {error}") from None


def _flat(given: Mapping[str, Any]) -> Settings:
    """A config file's options; its sections are only there for the eye."""
    found: Settings = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found |= _flat(value)
        else:
            found[name] = Setting(value, f"{name} = {value!r}")
    return found


def _datasets(found: Translation, given: Mapping[str, Any]) -> tuple[Settings, list[Settings]]:
    """Options of the first data set, the general ones beneath them, and each of its subsets' own."""
    shared = {name: Setting(value, f"general.{name} = {value!r}") for name, value in given.get("general", {}).items()}
    datasets = given.get("datasets", [])
    for index in range(1, len(datasets)):
        found.missing.append(f"datasets[{index}]: a recipe has one data set; make a recipe of its own for it")
    subsets: list[Settings] = []
    for first in datasets[:1]:
        for name, value in first.items():
            if name != "subsets":
                shared["train_batch_size" if name == "batch_size" else name] = Setting(
                    value, f"datasets.{name} = {value!r}"
                )
        for subset in first.get("subsets", []):
            subsets.append({n: Setting(v, f"datasets.subsets.{n} = {v!r}") for n, v in subset.items()})
    return shared, subsets


def _guess_family(settings: Mapping[str, Setting]) -> str:
    model = str(settings.get("pretrained_model_name_or_path", Setting("", "")).value).lower()
    module = str(settings.get("network_module", Setting("", "")).value)
    if "flux" in model or module == "networks.lora_flux" or "t5xxl" in settings:
        return "flux"
    return "sdxl" if "xl" in model or "sdxl" in settings else "sd"


def _places(found: Translation, settings: Settings, subsets: Sequence[Settings]) -> None:
    """Where things are: the base, the pictures, regularization images, captions."""
    own = [s for s in subsets if not s.get("is_reg", Setting(False, "")).value]
    prior = [s for s in subsets if s.get("is_reg", Setting(False, "")).value]
    for extra in own[1:]:
        name = extra.get("image_dir", Setting("?", "?")).value
        found.missing.append(f"the subset {name}: a recipe has one folder; put it beside the first as `N_token class`")
    for subset in own[:1]:
        settings |= subset
    for subset in prior[:1]:
        _regularization(found, subset)
    for extra in prior[1:]:
        found.missing.append(
            f"the subset {extra.get('image_dir', Setting('?', '')).value}: there is one regularization folder"
        )
    reg = settings.pop("reg_data_dir", None)
    if reg is not None:
        found.put(reg.said, "regularization.path", str(reg.value))
    if reg is not None or prior:
        found.missing.append(
            "regularization images are repeated or left out there until they are visited as often as the pictures; here "
            "every one is visited regularization.repeats times an epoch: choose it, or dataset.repeats, to the same end"
        )
    words = settings.pop("class_tokens", None)
    folder = settings.get("image_dir") or settings.get("train_data_dir")
    named = _named_folder(folder)
    if words is not None:
        trigger, _, class_word = str(words.value).partition(" ")
        found.put(words.said, "dataset.trigger_word", trigger)
        found.put(words.said, "dataset.class_word", class_word)
    elif folder is not None and named is not None:
        said = f"the folder {named[0]}"
        found.put(said, "dataset.trigger_word", named[1][1])
        found.put(said, "dataset.class_word", named[1][2])
        found.translated.append(
            f"{said} -> nothing to set: its pictures are visited {named[1][0]} times an epoch here too"
        )
    for name, place in _PLACES.items():
        if name in settings:
            setting = settings.pop(name)
            found.put(setting.said, place, _name(setting.value) if name == "output_name" else str(setting.value))
    extension = settings.pop("caption_extension", None)
    captions = str(extension.value) if extension else CAPTIONS
    source = {"name": "sidecar", "extension": captions, "trigger": "none"}
    found.values["arm"] = [{"name": "captions", "captioner": source}]
    said = extension.said if extension else "caption_extension not given, .caption there"
    found.translated.append(f"{said} -> arm.captioner = {source!r}")
    settings.pop("is_reg", None)
    for name, way in _ELSEWHERE.items():
        if name in settings and settings[name].value:
            found.missing.append(f"{settings.pop(name).said}: {way}")


def _regularization(found: Translation, subset: Settings) -> None:
    for name, setting in subset.items():
        if name == "image_dir":
            found.put(setting.said, "regularization.path", str(setting.value))
        elif name == "num_repeats":
            found.put(setting.said, "regularization.repeats", int(setting.value))
        elif name != "is_reg":
            found.missing.append(f"{setting.said}: regularization images have no such setting")


def _named_folder(folder: Setting | None) -> tuple[str, tuple[int, str, str]] | None:
    """The first `N_token class` folder: the one given, or one within it."""
    if folder is None:
        return None
    path = Path(str(folder.value)).expanduser()
    inside = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    for name in [path.name, *inside]:
        words = folder_words(name)
        if words is not None:
            return name, words
    return None


def _name(value: Any) -> str:
    """The value as a run may be called."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(value)).lstrip("_.-") or "run"

"""JoePenna's Dreambooth-Stable-Diffusion: its command line, a full fine-tune, as a LoRA with prior preservation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune import images
from captune.errors import RecipeError
from captune.importers import Translation
from captune.importers.kohya import read_arguments
from captune.importers.settings import Setting

USUAL_RATE = 1e-4  # of a LoRA, where the full fine-tune takes 1e-6
RANK = 16


class DreamBooth:
    """Reads `python main.py --token ... --class_word ...`, or the JSON-like config that it also takes, as arguments."""

    def translate(self, source: str, arguments: Sequence[str] | str = ()) -> Translation:
        """`source` is a file with the command line in it ("" for none); `arguments` stand above it."""
        settings = {**read_arguments(source)[1], **read_arguments(arguments)[1]}
        if not settings:
            raise RecipeError("there is no option of JoePenna's main.py here; give its command line, --token and all")
        found = Translation()

        def given(name: str) -> Setting | None:
            return settings.pop(name, None)

        token, class_word, alone = given("token"), given("class_word"), given("token_only")
        if token is not None:
            found.put(token.said, "dataset.trigger_word", str(token.value))
        if class_word is not None:
            found.put(class_word.said, "dataset.class_word", str(class_word.value))
        folder, prior = given("training_images"), given("regularization_images")
        if folder is not None:
            found.put(folder.said, "dataset.path", str(folder.value))
        if alone is not None and alone.value:
            if prior is not None:
                found.ignored_there.append(f"{prior.said}: --token_only leaves regularization images out")
            if class_word is not None:
                found.ignored_there.append(f"{class_word.said}: --token_only leaves the class word out of captions")
                found.values["dataset"]["class_word"] = ""
        paired = prior is not None and not (alone is not None and alone.value)
        if paired and prior is not None:
            found.put(prior.said, "regularization.path", str(prior.value), "each weighs as much as a picture, as there")
            _balance(found, folder, prior)
        _length(found, given("max_training_steps"), given("save_every_x_steps"))
        _rates(found, given("learning_rate"))
        flip = given("flip_p")
        _flip(found, flip)
        model, name, seed = given("training_model"), given("project_name"), given("seed")
        found.put("main.py", "base.family", "sd")
        if model is not None:
            found.put(model.said, "base.model", str(model.value))
        if name is not None:
            found.put(name.said, "name", re.sub(r"[^A-Za-z0-9_.-]", "_", str(name.value)).lstrip("_.-") or "run")
        found.put(seed.said if seed else "seed not given, 23 there", "train.seed", int(seed.value) if seed else 23)
        found.put("512 x 512 always", "dataset.resolution", 512)
        if paired:
            found.put("steps of one picture and one regularization image", "train.batch_size", 2)
        else:
            found.put("batches of one", "train.batch_size", 1)
        found.values["prepare"] = {"crop": "square"}
        found.missing.append(
            'pictures that are not square are squashed there; here their middle is cut out, or set prepare.crop = "bucket"'
        )
        source_of_captions: dict[str, Any] = {"trigger_only": True, "name": "token_class"}
        found.values["arm"] = [source_of_captions]
        found.translated.append('captions "token class" -> arm.trigger_only = True')
        _others(found, settings)
        return found


def _balance(found: Translation, folder: Setting | None, prior: Setting) -> None:
    """Every step has one of each there; here an epoch visits all, so repeats make the pictures as many as the others."""
    pictures, others = (_count(Path(str(s.value)).expanduser()) if s is not None else 0 for s in (folder, prior))
    if pictures and others:
        said = f"{others} regularization images for {pictures} pictures, one of each in a step"
        found.put(said, "dataset.repeats", max(1, round(others / pictures)))
    else:
        found.missing.append(
            f"{prior.said}: every step has one picture and one regularization image there; set dataset.repeats so that "
            "pictures x repeats are as many as the regularization images"
        )


def _count(folder: Path) -> int:
    """How many pictures lie in a folder and below it; 0 for one that is not here."""
    return sum(path.suffix.lower() in images.extensions() for path in folder.rglob("*")) if folder.is_dir() else 0


def _length(found: Translation, steps: Setting | None, save: Setting | None) -> None:
    if steps is not None:
        found.put(steps.said, "train.steps", int(steps.value))
    else:
        found.put("max_training_steps not given", "train.steps", 2000, "the usual number there")
    if save is not None and int(save.value):
        found.put(save.said, "train.save_every_steps", int(save.value), "files of a LoRA, all kept")
    elif save is not None:
        found.translated.append(f"{save.said} -> nothing to set: only the last LoRA is kept")


def _rates(found: Translation, rate: Setting | None) -> None:
    said = rate.said if rate is not None else "learning_rate not given, 1e-6 there"
    value = float(rate.value) if rate is not None else 1e-6
    found.missing.append(
        f"{said}: a full fine-tune of the UNet and the text encoder there, {value:g} on all their weights. A LoRA has few "
        f"weights that start at no change, and needs about {USUAL_RATE / 1e-6:.0f} times the rate to go as far in as many "
        f"steps: {USUAL_RATE:g} is set for a rate of 1e-6, and a tenth of it for the text encoder"
    )
    found.values.setdefault("train", {}).update(
        {
            "rank": RANK,
            "alpha": float(RANK),
            "targets": "attention+feed_forward",
            "learning_rate": value * USUAL_RATE / 1e-6,
            "text_encoder_learning_rate": value * USUAL_RATE / 1e-5,
        }
    )


def _flip(found: Translation, flip: Setting | None) -> None:
    chance = float(flip.value) if flip is not None else 0.5
    said = flip.said if flip is not None else "flip_p not given, 0.5 there"
    if chance == 0:
        found.translated.append(f"{said} -> nothing to set: no picture is mirrored")
    else:
        found.put(said, "train.flip", True, "mirrored half of the time" if chance != 0.5 else "")
    if chance not in (0, 0.5):
        found.missing.append(f"{said}: pictures are mirrored half of the time or never")
    found.ignored_there.append(f"{said}, for regularization images: theirs is 0.5 whatever is given")


def _others(found: Translation, settings: dict[str, Setting]) -> None:
    for name, setting in settings.items():
        if name in ("gpu", "gpus"):
            found.missing.append(f"{setting.said}: set base.device, such as cuda:0")
        elif name in ("debug", "test", "config_file_path", "save_config_file"):
            found.missing.append(f"{setting.said}: belongs to that program alone")
        else:
            found.missing.append(f"{setting.said}: is not known here")

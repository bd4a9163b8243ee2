"""The recipes of two published trainings are what the importers make of their sources, and train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captune import checking, importers, pipeline, recipe
from captune.errors import RecipeError
from captune.importers import Translation
from captune.progress import Silent
from captune.runs import RunFolder
from tests import tiny_base, tiny_flux

RECIPES = Path(__file__).parents[2] / "recipes"
FORM = {
    "engine": "kohya", "unetLR": 0.0005, "clipSkip": 1, "loraType": "lora", "keepTokens": 0, "networkDim": 2,
    "numRepeats": 30, "resolution": 1024, "lrScheduler": "cosine_with_restarts", "minSnrGamma": 5, "noiseOffset": 0.1,
    "targetSteps": 1900, "enableBucket": True, "networkAlpha": 16, "optimizerType": "AdamW8Bit", "textEncoderLR": 0,
    "maxTrainEpochs": 13, "shuffleCaption": False, "trainBatchSize": 4, "flipAugmentation": True,
    "lrSchedulerNumCycles": 3, "base": "FLUX.1-dev",
}  # fmt: skip
COMMAND = (
    'python "main.py" --project_name "rabbit" --max_training_steps 2000 --token "tiantian" --training_model "sd-v1-4.ckpt" '
    '--training_images "{folder}/photos" --regularization_images "{folder}/others" --class_word "rabbit" --flip_p 0.5 '
    "--learning_rate 1e-06 --save_every_x_steps 500"
)


def shipped(name: str, *settings: str) -> recipe.Recipe:
    return recipe.read(RECIPES / f"{name}.toml", ["dataset.path=photos", *settings])


def imported(found: Translation) -> recipe.Recipe:
    values: dict[str, Any] = {**found.values, "dataset": {"path": "photos", **found.values["dataset"]}}
    return recipe.from_values(values)


def of_training(chosen: recipe.Recipe, *other: str) -> dict[str, Any]:
    """All that shapes the LoRA, but for the fields named as section.field."""
    sections = ("dataset", "prepare", "base", "train", "regularization", "arm")
    values = {name: value for name, value in chosen.model_dump(mode="json").items() if name in sections}
    for place in ("dataset.path", *other):
        section, field = place.split(".")
        del values[section][field]
    return values


def test_the_form_of_a_flux_person_becomes_the_shipped_recipe() -> None:
    found = importers.load("civitai").translate(json.dumps(FORM))
    words = ("dataset.trigger_word", "dataset.class_word")  # which the form does not have
    assert of_training(imported(found), *words) == of_training(shipped("jefpajot_flux"), *words)
    assert found.missing == []
    for name in ("minSnrGamma 5", "noiseOffset 0.1", "clipSkip 1", "targetSteps 1900"):
        (line,) = [text for text in found.ignored_there if text.startswith(name)]
        assert name.split()[0] in (RECIPES / "jefpajot_flux.toml").read_text(), line


def test_the_command_of_a_pets_dreambooth_becomes_the_shipped_recipe(tmp_path: Path) -> None:
    for folder, count in (("photos", 20), ("others", 200)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            (tmp_path / folder / f"{index}.jpg").touch()
    found = importers.load("dreambooth").translate("", COMMAND.format(folder=tmp_path))
    expected = of_training(shipped("automode_dreambooth_sd14"), "regularization.path")
    made = of_training(imported(found), "regularization.path")
    assert made["train"].pop("learning_rate") == pytest.approx(expected["train"].pop("learning_rate"))
    text = "text_encoder_learning_rate"
    assert made["train"].pop(text) == pytest.approx(expected["train"].pop(text))
    assert made == expected
    assert [line for line in found.missing if "full fine-tune" in line] and len(found.missing) == 2


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("jefpajot_flux", ["train.optimizer=adamw"]),
        ("automode_dreambooth_sd14", ["base.model=CompVis/stable-diffusion-v1-4"]),
    ],
)
def test_nothing_in_them_is_refused(name: str, settings: list[str]) -> None:
    checking.check(shipped(name, *settings))


def test_what_the_first_leaves_out_would_be_refused_and_is_said_in_it() -> None:
    settings = ("train.optimizer=adamw", "train.min_snr_gamma=5", "train.noise_offset=0.1", "train.clip_skip=2")
    with pytest.raises(RecipeError, match="3 problems") as refused:
        checking.check(shipped("jefpajot_flux", *settings))
    assert all(option in str(refused.value) for option in ("min_snr_gamma", "noise_offset", "clip_skip"))


@pytest.mark.parametrize(
    ("name", "family", "settings"),
    [
        ("jefpajot_flux", "flux", ["train.optimizer=adamw", "prepare.bucket_min=16", "prepare.bucket_max=64",
                                   "prepare.bucket_step=16", "dataset.repeats=1"]),
        ("automode_dreambooth_sd14", "sd", ["regularization.path={folder}/photos"]),
    ],
)  # fmt: skip
def test_they_train_a_miniature(name: str, family: str, settings: list[str], tmp_path: Path) -> None:
    photos = tiny_base.write_photos(tmp_path / "photos", 32)
    model = tiny_flux.write(tmp_path / "base") if family == "flux" else tiny_base.write_tiny_base(tmp_path / "base")
    small = [f"dataset.path={photos}", f"base.model={model}", "base.device=cpu", "base.precision=fp32"]
    length = ["train.epochs=1"] if family == "flux" else ["train.steps=2"]
    settings = [setting.format(folder=tmp_path) for setting in settings]
    chosen = recipe.read(RECIPES / f"{name}.toml", [*small, "dataset.resolution=32", *length, *settings])
    pipeline.run(chosen, RunFolder(tmp_path / "run"), Silent(), upto="train")
    (losses,) = (tmp_path / "run").rglob("losses.jsonl")
    assert len(losses.read_text().splitlines()) == 2

"""Every option of [dataset], [prepare] and [regularization] changes what is learned, or is named with what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from captune import pipeline, recipe
from captune.errors import RecipeError
from captune.progress import Silent
from captune.recipe import DatasetSection, PrepareSection, RegularizationSection
from captune.runs import RunFolder
from tests import tiny_base

Trained = Callable[[dict[str, Any]], dict[str, torch.Tensor]]
BUCKETS = {"prepare.crop": "bucket", "prepare.bucket_step": 8}
DRAWN = {"regularization.count": 2, "regularization.prompts": ["a ball"]}

# Settings, and what must be set for them to be read: trained with the second alone, and with the two together.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dataset.path": ({"dataset.path": "more"}, {}),
    "dataset.trigger_word": ({"dataset.trigger_word": "quux"}, {}),
    "dataset.class_word": ({"dataset.class_word": "ball"}, {"regularization.count": 1, "dataset.class_word": "tree"}),
    "dataset.repeats": ({"dataset.repeats": 2}, {}),
    "dataset.resolution": ({"dataset.resolution": 32}, {}),
    "prepare.crop": (BUCKETS, {}),
    "prepare.bucket_step": ({"prepare.bucket_step": 16}, BUCKETS),
    "prepare.bucket_min": ({"prepare.bucket_min": 16}, BUCKETS),
    "prepare.bucket_max": ({"prepare.bucket_max": 16}, BUCKETS),
    "prepare.bucket_no_upscale": (
        {"prepare.bucket_no_upscale": True},
        {**BUCKETS, "dataset.resolution": 64},
    ),
    "prepare.background": ({"prepare.background": "black"}, {}),
    "regularization.path": ({"regularization.path": "more"}, {}),
    "regularization.count": (DRAWN, {}),
    "regularization.prompts": ({"regularization.prompts": ["a tree"]}, DRAWN),
    "regularization.weight": ({"regularization.weight": 0.1}, DRAWN),
    "regularization.repeats": ({"regularization.repeats": 2}, DRAWN),
}
# Options that choose among pictures and places in them, each with the test in which they do.
ELSEWHERE = {
    "prepare.focus": "test_faces:test_square_holds_what_stands_out",
    "prepare.smallest_side": "test_prepare:test_pictures_below_the_smallest_side_are_left_out_by_name",
    "prepare.near_duplicates": "test_faces:test_near_duplicates_are_named_and_left_out_only_when_asked",
    "prepare.duplicate_distance": "test_faces:test_near_duplicates_are_found_in_pairs_and_mirrored_too",
    "prepare.blur_faces": "test_faces:test_others_keeps_the_largest_face_and_masks_the_rest",
    "prepare.face_detector": "test_faces:test_detectors_find_a_portrait_among_pictures_of_several_sizes",
    "prepare.face_model": "test_faces:test_options_that_nothing_would_read_are_refused",
    "prepare.face_reference": "test_faces:test_description_knows_a_face_again_in_other_light_and_size",
    "prepare.contact_sheet": "test_faces:test_folder_becomes_a_data_set_and_every_file_has_a_line",
}
SECTIONS = {"dataset": DatasetSection, "prepare": PrepareSection, "regularization": RegularizationSection}


def test_every_option_of_the_sections_is_accounted_for() -> None:
    fields = {f"{name}.{field}" for name, section in SECTIONS.items() for field in section.model_fields}
    assert {*CHANGES, *ELSEWHERE} == fields
    for named in ELSEWHERE.values():
        file, test = named.split(":")
        assert f"def {test}(" in (Path(__file__).parent / f"{file}.py").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains a recipe with settings changed; equal settings are trained once."""
    place = tmp_path_factory.mktemp("pictures")
    base = tiny_base.write_tiny_base(place / "base")
    for folder, shift in (("photos", 0), ("more", 40)):
        (place / folder).mkdir()
        for index, size in enumerate([(24, 24), (40, 20), (20, 48)]):
            picture = Image.new("RGBA", size, (60 * index, shift, 200, 255))
            picture.paste((250, shift, 20, 0), (0, 0, size[0] // 2, 9))  # transparent
            picture.save(place / folder / f"{index}.png")
            (place / folder / f"{index}.txt").write_text(f"a ball, {index}")
    values = {
        "dataset": {"path": "photos", "trigger_word": "zorblax", "resolution": 16},
        "base": {"model": base, "device": "cpu", "precision": "fp32"},
        "train": {"rank": 2, "alpha": 2, "learning_rate": 0.01, "epochs": 2, "batch_size": 2},
        "sample": {"steps": 1},
        "arm": [{"name": "human", "captioner": {"name": "sidecar"}}],
        "evaluate": {"metrics": []},
    }
    done: dict[str, dict[str, torch.Tensor]] = {}

    def train(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
        key = json.dumps(settings, sort_keys=True)
        if key not in done:
            changed = {k: str(place / v) if k.endswith(".path") else v for k, v in settings.items()}
            changed.setdefault("dataset.path", str(place / "photos"))
            chosen = recipe.from_values(values, overrides=[f"{k}={json.dumps(v)}" for k, v in changed.items()])
            run = RunFolder(place / f"run-{len(done)}")
            pipeline.run(chosen, run, Silent(), upto="train")
            done[key] = load_file(run.training("human", 0, "train").path / "adapter.safetensors")
        return done[key]

    return train


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_learned(trained: Trained, name: str) -> None:
    options, needed = CHANGES[name]
    without, given = trained(needed), trained({**needed, **options})
    assert any(not torch.equal(without[place], given[place]) for place in without)


def test_an_option_of_buckets_is_refused_where_no_bucket_is_made() -> None:
    values = {"dataset": {"path": "p"}, "train": {"steps": 1}, "arm": [{"name": "a", "captioner": {"name": "sidecar"}}]}
    with pytest.raises(RecipeError) as refused:
        recipe.from_values({**values, "prepare": {"bucket_min": 256, "bucket_step": 32}})
    assert all(
        f'{name} is only read by crop = "bucket"' in str(refused.value) for name in ("bucket_min", "bucket_step")
    )
    with pytest.raises(RecipeError, match="bucket_max is not read with bucket_no_upscale"):
        recipe.from_values({**values, "prepare": {"crop": "bucket", "bucket_no_upscale": True, "bucket_max": 1024}})

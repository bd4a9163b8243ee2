"""The plan tells the truth about a run, and changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from captune import families, pipeline, planning, recipe
from captune.errors import RecipeError
from captune.prepare import hold_out, prepare_images
from captune.prepare.captioned import prepare_captioned
from captune.progress import Silent
from captune.recipe import DatasetSection, Recipe
from captune.runs import RunFolder, StageFolder
from captune.train.batches import epoch_steps, share_of
from captune.types import Example
from tests import tiny_base
from tests.unit.test_captioned import folder_of

BUCKETS = {"crop": "bucket", "bucket_step": 16}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, object]:
    base = tiny_base.write_tiny_base(tmp_path / "base")
    photos = tiny_base.write_photos(tmp_path / "photos")
    return {
        "dataset": {"path": str(photos), "trigger_word": "zorblax", "resolution": 16, "repeats": 3},
        "base": {"model": base, "device": "cpu"},
        "train": {"rank": 2, "epochs": 2, "batch_size": 4},
        "regularization": {"count": 2, "prompts": ["a ball"]},
        "arm": [{"name": "human", "captioner": {"name": "sidecar"}}],
        "sample": {"prompts": ["a zorblax", "a ball"], "seeds": [0, 1], "steps": 1},
        "evaluate": {"metrics": []},
    }


def planned(values: dict[str, object]) -> tuple[Recipe, dict[str, object]]:
    read = recipe.from_values(values)
    return read, planning.plan(read)


def test_the_plan_is_what_the_run_does(values: dict[str, object], tmp_path: Path) -> None:
    read, plan = planned(values)
    pipeline.run(read, RunFolder(tmp_path / "run"), Silent(), upto="sample")
    train = json.loads((tmp_path / "run/arms/human/seed-0/train/manifest.json").read_text())
    assert (plan["total_steps"], plan["epochs"]) == (train["total_steps"], train["epochs"]) == (10, 2)
    assert len(list((tmp_path / "run").rglob("sample/pictures/*.png"))) == plan["pictures_to_draw"] == 8
    assert plan["images"] == 5 and plan["captioned"] == 5 and plan["regularization_images"] == 2
    assert plan["buckets"] == {"16x16": 17}
    assert plan["warnings"] == []


def test_the_plan_counts_a_captioners_tuning(values: dict[str, object], tmp_path: Path) -> None:
    mine = folder_of(tmp_path / "mine", 20)
    folder_of(tmp_path / "copies", 3)
    for path in (tmp_path / "copies").iterdir():  # near-duplicates, which stay on one side
        path.rename(mine / f"again{path.name}")
    tune = {"path": str(mine), "epochs": 3, "batch_size": 5}
    arm = {"name": "tuned", "captioner": {"name": "blip"}, "tune": tune}
    _, plan = planned({**values, "arm": [*values["arm"], arm]})  # type: ignore[misc]
    human, tuned = plan["arms"]  # type: ignore[misc]
    section = recipe.TuneSection.model_validate(tune)
    pictures = prepare_captioned(section, StageFolder(tmp_path / "data"), Silent())
    sides = Counter(p.split for p in pictures)
    assert tuned["tune"]["pictures"] == dict(sides) and sides.total() == 23  # type: ignore[index]
    assert tuned["tune"]["total_steps"] == 3 * -(-sides["train"] // 5)  # type: ignore[index]
    assert "tune" not in human


def test_the_plan_writes_nothing(values: dict[str, object], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    planned(values)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_captions_and_broken_pictures_are_told(values: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "photos" / "2.txt").unlink()
    (tmp_path / "photos" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    _, plan = planned(values)
    warnings = " ".join(plan["warnings"])  # type: ignore[arg-type]
    assert "2.png" in warnings and "torn.jpg" in warnings
    assert plan["images"] == 5 and plan["captioned"] == 4


def test_captions_that_are_cut_are_counted(values: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "photos" / "1.txt").write_text("a very long caption of a ball, far beyond the limit")
    _, plan = planned(values)
    assert "arm human: the caption of 1 is cut: 51 tokens, 32 are read, 19 are lost" in " ".join(plan["warnings"])  # type: ignore[arg-type]
    assert plan["arms"][0]["cut"] == 1  # type: ignore[index]


def test_a_run_without_prompts_is_warned_about(values: dict[str, object]) -> None:
    values["sample"] = {}
    _, plan = planned(values)
    assert "sample.prompts is empty" in " ".join(plan["warnings"])  # type: ignore[arg-type]


def picture_folder(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir(parents=True)
    for index, size in enumerate(sizes):
        Image.new("RGB", size, (index, 90, 30)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a ball\n")
    return folder


SIDES = st.sampled_from([32, 40, 48, 64, 80, 96, 128])
PHOTOS = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(
    photos=PHOTOS,
    others=st.none() | PHOTOS,
    repeats=st.integers(1, 4),
    other_repeats=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    length=st.tuples(st.sampled_from(["epochs", "steps"]), st.integers(1, 9)),
    crop=st.sampled_from(["square", "bucket", "own bucket"]),
    family=st.sampled_from(["sd", "flux"]),
    held_out=st.integers(0, 2),
    processes=st.integers(1, 3),
)
def test_total_steps_are_those_that_training_then_does(
    photos: list[tuple[int, int]],
    others: list[tuple[int, int]] | None,
    repeats: int,
    other_repeats: int,
    batch_size: int,
    accumulation: int,
    length: tuple[str, int],
    crop: str,
    family: str,
    held_out: int,
    processes: int,
) -> None:
    """Through the real preparation of real files, for any images, sizes, buckets, regularization and processes."""
    assume(held_out < len(photos) and processes <= batch_size * accumulation)
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = picture_folder(folder / "photos", photos)
        regularization = {}
        if others:
            regularization = {"path": str(picture_folder(folder / "others", others)), "repeats": other_repeats}
        read = recipe.from_values(
            {
                "dataset": {"path": str(path), "resolution": 64, "repeats": repeats, "class_word": "ball"},
                "prepare": {"square": {}, "bucket": BUCKETS, "own bucket": {**BUCKETS, "bucket_no_upscale": True}}[
                    crop
                ],
                "base": {"family": family, "model": str(folder)},
                "train": {"batch_size": batch_size, "gradient_accumulation": accumulation, length[0]: length[1]},
                "regularization": regularization,
                "arm": [{"name": "human", "captioner": {"name": "sidecar"}}],
                "study": {"held_out": held_out},
            }
        )
        plan = planning.plan(read, processes)
        examples = prepared(read, read.dataset, folder / "run")
        examples, kept = hold_out(examples, held_out)
        assert len(kept) == held_out
        if others:
            of_class = read.dataset.model_copy(update=regularization | {"path": folder / "others"})
            examples += prepared(read, of_class, folder / "run-others")
    steps = [epoch_steps(examples, e, batch_size, accumulation, seed=3) for e in range(plan["epochs"])]
    done = sum(len(epoch) for epoch in steps)
    if length[0] == "steps":  # the last epoch is cut off
        assert done - plan["steps_per_epoch"] < length[1] <= done
        done = length[1]
    assert plan["total_steps"] == done
    assert {len(epoch) for epoch in steps} == {plan["steps_per_epoch"]}
    for step in steps[0]:  # every process has its share, and all shares together are the step
        shares = [v for rank in range(processes) for batch in share_of(step, rank, processes) for v in batch]
        assert Counter(shares) == Counter(v for batch in step for v in batch)


def prepared(read: Recipe, dataset: DatasetSection, folder: Path) -> list[Example]:
    multiple = families.FACTS[read.base.family].multiple
    return prepare_images(dataset, read.prepare, multiple, StageFolder(folder), Silent())


def test_the_learning_rates_curve_is_told(values: dict[str, object]) -> None:
    values["train"] = {"steps": 101, "learning_rate": 0.5, "lr_scheduler": "linear", "lr_warmup_steps": 1}
    _, plan = planned(values)
    told = {point["step"]: point["learning_rate"] for point in plan["learning_rate"]}  # type: ignore[attr-defined]
    assert told[1] == 0 and told[51] == pytest.approx(0.5 * 0.51) and told[101] == pytest.approx(0.005)


def test_sizes_are_those_of_the_files_that_come(values: dict[str, object], tmp_path: Path) -> None:
    values["train"] = {"rank": 3, "epochs": 4, "batch_size": 4, "save_every_epochs": 1, "keep_last": 2, "ema": 0.5}
    values["export"] = {"formats": ["kohya"]}
    read, plan = planned(values)
    pipeline.run(read, RunFolder(tmp_path / "run"), Silent(), upto="train")
    folder = tmp_path / "run/arms/human/seed-0/train"
    assert plan["lora_weights"] == json.loads((folder / "manifest.json").read_text())["trainable_parameters"]
    weights = load_file(folder / "adapter.safetensors").values()
    assert sum(weight.numel() for weight in weights) == plan["lora_weights"]
    assert plan["lora_files"]["on_the_way"] == len(list(folder.glob("epoch-*"))) == 2  # type: ignore[index]
    latents = load_file(tmp_path / "run/latents/latents.safetensors").values()
    assert plan["disk_mib"]["latents"] == pytest.approx(  # type: ignore[index]
        sum(latent.numel() for latent in latents) * 4 / 2**20, abs=0.01
    )
    memory = plan["memory"]
    assert memory["estimated_peak_mib"] > memory["libraries"] > 0  # type: ignore[index]


def test_caption_files_that_no_arm_reads_are_named(values: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "photos" / "1.caption").write_text("another ball")
    (tmp_path / "photos" / "nobody.txt").write_text("a ball")
    _, plan = planned(values)
    told = plan["caption_files"]
    assert told["read"] == 5  # type: ignore[index]
    assert [Path(p).name for p in told["not_read"]] == ["1.caption", "nobody.txt"]  # type: ignore[index]
    assert "caption files that no arm reads: 1.caption, nobody.txt" in plan["warnings"]  # type: ignore[operator]


def test_an_arm_with_its_own_settings_has_its_own_steps(values: dict[str, object]) -> None:
    values["arm"] = [{"name": "long", "captioner": {"name": "sidecar"}, "train": {"epochs": 5}}]
    _, plan = planned(values)
    assert (plan["total_steps"], plan["arms"][0]["total_steps"]) == (10, 25)  # type: ignore[index]


def test_more_processes_than_pictures_a_step_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"= 4 is fewer pictures a step than 5 processes: set train.batch_size = 5"):
        planning.plan(recipe.from_values(values), processes=5)

"""The plan tells the truth about a run, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune import pipeline, planning, recipe
from captune.progress import Silent
from captune.recipe import Recipe
from captune.runs import RunFolder
from tests import tiny_base


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

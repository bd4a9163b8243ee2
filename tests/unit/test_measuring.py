"""A plan's time comes from real steps, and measuring leaves nothing behind."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest

from captune import measuring, planning, recipe
from captune.progress import Silent
from tests import tiny_base


def test_the_time_of_all_trainings_is_their_steps_times_a_measured_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tiny_base.write_photos(tmp_path / "photos")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    arm = {"captioner": {"name": "blip", "model": "nowhere/at-all"}}  # which is not asked
    values = {
        "dataset": {"path": str(photos), "resolution": 16},
        "base": {"model": tiny_base.write_tiny_base(tmp_path / "base"), "device": "cpu"},
        "train": {"rank": 2, "epochs": 3, "batch_size": 2, "save_every_steps": 1},
        "arm": [{"name": "one", **arm}, {"name": "two", "train": {"steps": 20}, **arm}],
        "study": {"training_seeds": [0, 1]},
        "regularization": {"count": 3, "prompts": ["a ball"]},
        "sample": {"every_epochs": 1},
        "evaluate": {"metrics": []},
    }
    chosen = recipe.from_values(values)
    planned = planning.plan(chosen)
    before = sorted(tmp_path.rglob("*"))
    ticks = itertools.count(100.0, 0.5)  # half a second a step
    found = measuring.measure(chosen, planned, 4, Silent(), clock=lambda: next(ticks))
    steps = 2 * (planned["total_steps"] + 20)
    assert found == {
        "processes": 1, "measured_steps": 3, "seconds_per_step": 0.5, "steps_of_all_trainings": steps,
        "training_seconds": steps * 0.5,
    }  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before

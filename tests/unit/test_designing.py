"""What a study of some size can find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captune import designing, runs
from captune.errors import DataError
from captune.evaluate.statistics import Components, Design
from captune.types import Score

RECIPE = """
[dataset]
path = "photos"
[train]
steps = 1
[[arm]]
name = "a"
captioner = { name = "sidecar" }
"""


def test_more_of_anything_finds_smaller_differences() -> None:
    found = designing.plan_study(designing.TYPICAL, Design(3, 25, 4), None)["detectable"]
    ours = found.pop("this design")["difference"]
    assert all(row["difference"] < ours for row in found.values())


def test_every_design_named_finds_the_difference_in_four_of_five() -> None:
    told = designing.plan_study(designing.TYPICAL, Design(3, 25, 4), 0.01)
    assert 0 < told["power"] < 1 and told["designs"]
    for row in told["designs"]:
        design = Design(row["training_runs"], row["prompts"], row["seeds"])
        assert designing.plan_study(designing.TYPICAL, design, 0.01)["power"] >= 0.8
        assert row["pictures_per_arm"] == row["training_runs"] * row["prompts"] * row["seeds"]


def test_a_finished_run_tells_how_much_scores_vary(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prompt = rng.normal(0, 0.02, 40)
    scores = [
        Score("clip_i", arm, f"{p:03d}-{s}", prompt[p] * (arm == "a") + rng.normal(0, 0.01), "x", p, seed)
        for arm in ("a", "b")
        for seed in range(3)
        for p in range(40)
        for s in range(4)
    ]
    runs.write_records(tmp_path / "evaluate" / "scores.jsonl", scores)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    metric, truth = designing.measured(tmp_path)
    assert metric == "clip_i"
    assert truth.prompt**0.5 == pytest.approx(0.02, rel=0.3)
    assert truth.pair**0.5 == pytest.approx(0.01 * 2**0.5, rel=0.1)
    assert truth.run**0.5 < 0.002


def test_scores_that_never_differ_promise_nothing(tmp_path: Path) -> None:
    scores = [Score("clip_i", arm, f"{p}", 0.0, "x", p, 0) for arm in ("a", "b") for p in range(8)]
    runs.write_records(tmp_path / "evaluate" / "scores.jsonl", scores)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    with pytest.raises(DataError, match="do not differ in a single score of 'clip_i'"):
        designing.measured(tmp_path)


def test_a_folder_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no evaluate/scores.jsonl: it is not the folder of a finished study"):
        designing.measured(tmp_path)


def test_few_trainings_are_told_to_be_about_files() -> None:
    told = designing.plan_study(Components(0, 1e-4, 0, 1e-4), Design(1, 20, 2), None)
    assert "about the files, not about the captions" in designing.sentences("clip_i", told)[-1]

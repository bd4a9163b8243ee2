"""The demo keeps its word: the hero is learnt, nothing else is lost, and a second run has nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune import demo
from captune.progress import Silent
from captune.runs import RunFolder

pytestmark = pytest.mark.slow


def test_the_hero_is_learnt_and_the_rest_is_kept(tmp_path: Path) -> None:
    """All six subjects: benchmarks/subjects.py."""
    outcome = demo.run_demo(RunFolder(tmp_path), Silent())
    base, human = outcome.summary["base"], outcome.summary["arms"]["human"]
    assert human["oracle_subject"]["mean"] >= 0.8
    assert base["oracle_subject"]["mean"] <= 0.02
    assert human["oracle_leak"]["mean"] <= 0.05
    assert human["oracle_background"]["mean"] >= 0.9
    assert human["oracle_prompt"]["mean"] >= 0.8 * base["oracle_prompt"]["mean"]
    assert demo.run_demo(RunFolder(tmp_path), Silent()).already_done
    assert (tmp_path / "demo.png").stat().st_size > 10_000

"""summary.json: the report's numbers for programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captune import runs
from captune.report import view
from captune.report.story import Story
from captune.report.verdict import caveat
from captune.types import BASE, REAL, Interval


def summarized(story: Story) -> dict[str, Any]:
    """verdict, base, arms and real (mean, low, high, n per metric), comparisons, seconds, tokens, versions, hashes."""
    said = view.verdict_of(story)
    return {
        "run": story.recipe.name,
        "verdict": said.text,
        "caveat": caveat(view.training_runs(story)) if story.scores else "",
        "base": _scores(story.intervals.get(BASE, {})),
        "arms": {arm: _scores(story.intervals.get(arm, {})) for arm in story.arms},
        "real": _scores(story.intervals.get(REAL, {})),
        "metrics": {name: runs.plain(facts) for name, facts in story.metrics.items()},
        "comparisons": [runs.plain(comparison) for comparison in story.comparisons],
        "seconds": _nested({stage: manifest.get("seconds") for stage, manifest in story.costs.items()}),
        "tokens": {
            arm: runs.plain(story.costs.get(f"arms/{arm}/train", {}).get("caption_tokens", {})) for arm in story.arms
        },
        "exports": {arm: [_file(story, path) for path in paths] for arm, paths in story.exports.items()},
        "versions": dict(view.versions_of(story)),
        "hashes": {
            "recipe": runs.fingerprint(story.recipe.model_dump(mode="json")),
            "examples": {example.id: example.sha256 for example in story.examples},
            "adapters": {arm: adapter.sha256 for arm, adapter in story.adapters.items()},
        },
    }


def _scores(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {metric: {"mean": i.mean, "low": i.low, "high": i.high, "n": i.n} for metric, i in intervals.items()}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """arms/human/train = 10 as {"arms": {"human": {"train": 10}}}."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.strip("/").split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _file(story: Story, path: Path) -> dict[str, Any]:
    return {"file": view.relative(story, path), "bytes": path.stat().st_size, "sha256": runs.sha256_of(path)}

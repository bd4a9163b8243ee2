"""The report's numbers for programs: summary.json and comparison.csv. Equal runs have equal summaries but for `timings`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from captune import runs
from captune.report import costs, provenance, view
from captune.report.story import Story
from captune.types import BASE, REAL, Comparison, Interval


def summarized(story: Story) -> dict[str, Any]:
    """Verdict, scores, comparisons and all else that was found; what depends on the machine's speed is in `timings`."""
    bases = {str(m["inputs"]["base"]) for m in story.costs.values() if "base" in m.get("inputs", {})}
    summary = {
        "run": story.recipe.name,
        "verdict": view.verdict_of(story).text,
        "caveat": view.caveat_of(story),
        "primary": story.recipe.primary,
        "training_runs": {arm: [a.training_seed for a in story.adapters.get(arm, [])] for arm in story.arms},
        "base": _scores(story.intervals.get(BASE, {})),
        "arms": {arm: _scores(story.intervals.get(arm, {})) for arm in story.arms},
        "real": _scores(story.intervals.get(REAL, {})),
        "metrics": story.metrics,
        "comparisons": story.comparisons,
        "matrix": {
            "held_out": story.matrix_held_out,
            "losses": {arm: _scores(row) for arm, row in story.matrix.items()},
        },
        "stability": story.stability,
        "epochs": [{**runs.plain(choice), "means": dict(choice.means)} for choice in story.epochs],
        "repeated": story.repeated,
        "failures": [replace(failure, reason=_placeless(failure.reason, story)) for failure in story.failures],
        "caption_scores": {
            arm: {"corpus": of.corpus, "facts": of.facts, "warnings": of.warnings}
            for arm, of in story.caption_scores.items()
        },
        "tokens": {arm: _tokens(story, arm) for arm in story.arms},
        "prompt_tokens": story.prompt_tokens,
        "known_prompts": story.known_prompts,
        "human_minutes": {arm.name: arm.human_minutes for arm in story.recipe.arm},
        "exports": {arm: [_file(path) for path in paths] for arm, paths in story.exports.items()},
        "versions": dict(provenance.versions_of(story)),
        "hashes": {
            "recipe": runs.fingerprint(story.recipe.model_dump(mode="json")),
            "base": sorted(bases),
            "examples": {example.id: example.sha256 for example in [*story.examples, *story.held_out]},
            "adapters": {arm: {a.training_seed: a.sha256 for a in found} for arm, found in story.adapters.items()},
        },
    }
    told: dict[str, Any] = {**_finite(runs.plain(summary)), "timings": _timings(story)}
    return told


def comparison_csv(story: Story) -> str:
    """The comparisons as a table: a line each, the record's fields as columns."""
    names = [field.name for field in fields(Comparison)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(comparison, name) for name in names] for comparison in story.comparisons)
    return text.getvalue()


def _scores(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: {"mean": i.mean, "low": i.low, "high": i.high, "n": i.n} for name, i in intervals.items()}


def _tokens(story: Story, arm: str) -> dict[str, float]:
    facts: dict[str, float] = {**costs.caption_facts(story, arm)}
    if api := costs.api_tokens(story, arm):
        facts["api_tokens"] = api
    return facts


def _file(path: Any) -> dict[str, Any]:
    count, sha256 = provenance.weighed(path)
    return {"file": path.name, "bytes": count, "sha256": sha256}


def _timings(story: Story) -> dict[str, Any]:
    """Seconds, pictures per second and peak memory of every stage, by its place in the run; and the machine."""
    found: dict[str, Any] = {"machine": provenance.machine_of(story)}
    for name in ("seconds", "training_seconds", "pictures_per_second", "peak_mib"):
        found[name] = {stage: m[name] for stage, m in story.costs.items() if name in m}
    return found


def _finite(value: Any) -> Any:
    """JSON has no infinity: what has no number is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _placeless(text: str, story: Story) -> str:
    """The text with the run folder's place taken out of its paths: equal runs may lie in different folders."""
    for place in (story.run.absolute(), story.run):
        if len(place.parts) > 1:
            text = text.replace(str(place), ".")
    return text

"""The scores: a line per measure, a cell per arm, the base model as the floor and the training pictures as ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captune import metrics
from captune.metrics import MetricFacts
from captune.report import curves
from captune.report.story import Story
from captune.report.wording import PICTURES, Column, columns_of, plural, span, tick, value
from captune.types import BASE, REAL, Interval

LINE = 15  # pixels from one arm's line to the next


@dataclass(frozen=True)
class Cell:
    """One arm's score in words."""

    column: Column
    value: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Mark:
    """Where mean and interval lie, in per cent of the axis, and how far down in pixels."""

    column: Column
    at: float
    low: float
    high: float
    y: float


@dataclass(frozen=True)
class Measure:
    """One metric's line."""

    facts: MetricFacts
    primary: bool
    direction: str
    judged: str
    judge: str
    cells: list[Cell]
    marks: list[Mark]
    floor: float | None
    ceiling: float | None
    height: float
    axis: list[curves.Tick]


@dataclass(frozen=True)
class ScoreTable:
    """All measures, the primary one first."""

    columns: list[Column]
    measures: list[Measure]


def score_table(story: Story) -> ScoreTable | None:
    """Arms x measures; None where nothing was measured."""
    known = [name for name in story.metrics if any(name in found for found in story.intervals.values())]
    if not known:
        return None
    primary = story.recipe.primary
    columns = [c for c in [*columns_of(story), PICTURES] if any(m in story.intervals.get(c.name, {}) for m in known)]
    ordered = sorted(known, key=lambda name: name != primary)
    return ScoreTable(columns, [_measure(story, name, columns, name == primary) for name in ordered])


def judge_of(facts: MetricFacts) -> str:
    """The model that judged, by a name that says what it is."""
    if facts.judges == "denoising":
        return f"the base model itself ({facts.encoder})"
    return {"mini": "the mini family’s CLIP", "mini world oracle": "the mini world’s oracle"}.get(
        facts.encoder, facts.encoder
    )


def direction_of(facts: MetricFacts) -> str:
    return "higher is better" if facts.higher_is_better else "lower is better"


def _measure(story: Story, name: str, columns: Sequence[Column], primary: bool) -> Measure:
    facts = story.metrics[name]
    of = {c: story.intervals[c.name][name] for c in columns if name in story.intervals[c.name]}
    low, high = _axis(name, list(of.values()))

    def at(number: float) -> float:
        return min(100.0, max(0.0, (number - low) / (high - low) * 100))

    arms = {column: interval for column, interval in of.items() if column.name not in (BASE, REAL)}
    ends = {column.name: at(interval.mean) for column, interval in of.items()}
    marks = [
        Mark(column, at(i.mean), at(i.low), at(i.high), LINE * (line + 0.5) + 2)
        for line, (column, i) in enumerate(arms.items())
    ]
    most = max(arms.values() or of.values(), key=lambda interval: interval.n)
    return Measure(
        facts,
        primary,
        direction_of(facts),
        _judged(facts, most),
        judge_of(facts),
        [Cell(c, value(name, of[c].mean), span(name, of[c])) if c in of else Cell(c) for c in columns],
        marks,
        ends.get(BASE),
        ends.get(REAL),
        LINE * max(1, len(arms)) + 4,
        [curves.Tick((t - low) / (high - low) * 100, tick(name, t)) for t in curves.ticks(low, high, 4)],
    )


def _judged(facts: MetricFacts, interval: Interval) -> str:
    """How much was judged per arm: "144 scores, 24 prompts"."""
    of_pictures = facts.judges in ("denoising", "reproduction")
    what = plural(interval.clusters, "training picture" if of_pictures else "prompt")
    return f"{plural(interval.n, 'score')} per arm, {what}"


def _axis(metric: str, intervals: Sequence[Interval]) -> tuple[float, float]:
    if metrics.words(metric).share:
        return 0.0, 1.0
    low, high = min(i.low for i in intervals), max(i.high for i in intervals)
    margin = 0.08 * (high - low) or 0.05
    return low - margin, high + margin

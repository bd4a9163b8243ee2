"""The forest plot: every pair of arms on every measure, each measure on its own scale around a common zero line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from captune.report import curves
from captune.report.scores import direction_of
from captune.report.story import Story
from captune.report.wording import Column, change, columns_of, probability, tick, title_of
from captune.types import BASE, NO_DIFFERENCE, Comparison

HALF = 46.0  # per cent of the plot's width from the zero line to the end of the scale


@dataclass(frozen=True)
class Row:
    """One pair: where its interval lies in per cent of the plot, and the same in words."""

    first: Column
    second: Column
    at: float
    low: float
    high: float
    blind: tuple[float, float]  # from where to where a true difference would mostly have gone unseen
    difference: str
    interval: str
    p: str
    verdict: str
    told: bool
    detectable: str


@dataclass(frozen=True)
class Panel:
    """One measure's pairs. The axis is turned so that right always means better for the first of a pair."""

    title: str
    direction: str
    primary: bool
    rows: list[Row]
    axis: list[curves.Tick]


@dataclass(frozen=True)
class Forest:
    """The pairs of one kind: between the arms, or against the base (folded where there are both)."""

    title: str
    folded: bool
    panels: list[Panel]
    sentences: list[Comparison]


def forests(story: Story) -> list[Forest]:
    """Between the arms, then against the base model; the primary measure first."""
    order = [story.recipe.primary, *(name for name in story.metrics if name != story.recipe.primary)]
    found: list[Forest] = []
    for title, against_base in (("Between the arms", False), ("Against the base model", True)):
        chosen = [c for c in story.comparisons if (c.second == BASE) == against_base]
        if chosen:
            named = sorted({c.metric for c in chosen}, key=lambda m: order.index(m) if m in order else len(order))
            panels = [_panel(story, name, [c for c in chosen if c.metric == name]) for name in named]
            sentences = sorted(chosen, key=lambda c: (named.index(c.metric), not c.primary))
            found.append(Forest(title, bool(found), panels, sentences))
    return found


def _panel(story: Story, metric: str, comparisons: Sequence[Comparison]) -> Panel:
    facts = story.metrics.get(metric)
    turned = -1 if facts is not None and not facts.higher_is_better else 1
    seen = max(abs(end) for c in comparisons for end in (c.low, c.high, c.difference)) or 1e-6
    # The blind band belongs to the picture, but must not squeeze the intervals where the design was very blind.
    blindest = max(c.minimal_detectable_difference for c in comparisons)
    half = max(seen, min(1.4 * seen, blindest))

    def at(number: float) -> float:
        return 50 + HALF * turned * max(-1.0, min(1.0, number / half))

    columns = {column.name: column for column in columns_of(story)}
    rows = []
    for c in comparisons:
        blind = c.minimal_detectable_difference
        ends = sorted((at(-blind), at(blind)))
        low, high = sorted((at(c.low), at(c.high)))
        first, second = (columns.get(name, Column(name, name, 0)) for name in (c.first, c.second))
        rows.append(
            Row(
                first,
                second,
                at(c.difference),
                low,
                high,
                (ends[0], ends[1]),
                change(metric, c.difference),
                f"{change(metric, c.low).removesuffix(' points')} to {change(metric, c.high).removesuffix(' points')}",
                probability(c.p_adjusted),
                c.verdict if c.verdict == NO_DIFFERENCE else f"{columns[c.better].label if c.better else ''} better",
                c.verdict != NO_DIFFERENCE,
                change(metric, blind, signed=False) if math.isfinite(blind) else "–",
            )
        )
    axis = [curves.Tick(at(t), tick(metric, t).removesuffix("%")) for t in curves.ticks(-half, half, 4)]
    direction = direction_of(facts) if facts is not None else ""
    return Panel(title_of(story, metric), direction, any(c.primary for c in comparisons), rows, axis)

"""The cross-arm matrix as a heat table, and the figures of reproducibility."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from captune import metrics
from captune.report.story import Story
from captune.report.wording import Column, change, columns_of, plural, span, title_of, value
from captune.types import BASE, Interval


@dataclass(frozen=True)
class Heat:
    """One cell: a LoRA on an arm's captions. `share` is 1 at the lowest loss of the table and 0 at the highest."""

    value: str
    interval: str
    share: float
    own: bool


@dataclass(frozen=True)
class HeatRow:
    """One LoRA on all captions; `abroad` is how much more it loses on the other arms' captions than on its own."""

    column: Column
    cells: list[Heat | None]
    abroad: str


@dataclass(frozen=True)
class HeatTable:
    """The matrix."""

    columns: list[Column]
    rows: list[HeatRow]
    held_out: bool


@dataclass(frozen=True)
class Figure:
    """One of the figures of reproducibility: a cell per arm."""

    title: str
    meaning: str
    cells: list[tuple[str, str]]


def heat_table(story: Story) -> HeatTable | None:
    """Whose LoRA by whose captions; None where it was not measured."""
    of = {column.name: column for column in columns_of(story)}
    read = [of[name] for name in story.arms if any(name in row for row in story.matrix.values())]
    means = [interval.mean for row in story.matrix.values() for interval in row.values()]
    if not means:
        return None
    low, high = min(means), max(means)

    def heat(owner: str, captions: str, interval: Interval) -> Heat:
        share = (high - interval.mean) / (high - low) if high > low else 0.0
        ends = f"{interval.low:.4f} to {interval.high:.4f}"
        return Heat(f"{interval.mean:.4f}", ends, share, owner == captions)

    rows = []
    for name, column in of.items():
        row = story.matrix.get(name)
        if row:
            cells = [heat(name, c.name, row[c.name]) if c.name in row else None for c in read]
            others = [row[c.name].mean for c in read if c.name in row and c.name != name]
            abroad = ""
            if name in row and others:
                more = fmean(others) - row[name].mean
                abroad = f"{'+' if more >= 0 else '−'}{abs(more):.4f}"
            rows.append(HeatRow(column, cells, abroad))
    return HeatTable(read, rows, story.matrix_held_out)


def figures(story: Story) -> tuple[list[Column], list[Figure]] | None:
    """Subject reproduction, seed stability, retrain stability, and equal bytes: a column per arm."""
    columns = [column for column in columns_of(story) if column.name != BASE]
    rows = [
        row for row in (*_reproduction(story, columns), *_stability(story, columns)) if any(any(c) for c in row.cells)
    ]
    return (columns, rows) if rows else None


def _reproduction(story: Story, columns: list[Column]) -> list[Figure]:
    name = "reproduction"
    of = {c.name: story.intervals.get(c.name, {}).get(name) for c in columns}
    cells = [(value(name, i.mean), span(name, i)) if i is not None else ("", "") for i in of.values()]
    meaning = story.metrics[name].meaning if name in story.metrics else ""
    return [Figure("Subject reproduction", meaning, cells)]


def _stability(story: Story, columns: list[Column]) -> list[Figure]:
    of = {found.arm: found for found in story.stability}
    metric = next((found.metric for found in story.stability), story.recipe.primary)
    title = title_of(story, metric).lower()
    seeds, trainings = len(story.recipe.sample.seeds), story.trainings

    def cells(name: str, without: str) -> list[tuple[str, str]]:
        found = []
        for column in columns:
            sd = getattr(of.get(column.name), name, None)
            found.append((_deviation(metric, sd) if sd is not None else "not known", "" if sd is not None else without))
        return found if of else []

    return [
        Figure(
            "Seed stability",
            f"How much {title} differs between pictures of one prompt that differ in the sampling seed only "
            f"({plural(seeds, 'seed')}): standard deviation, lower is steadier.",
            cells("seed_sd", "needs several sample.seeds"),
        ),
        Figure(
            "Retrain stability",
            f"How much the mean {title} differs between LoRAs trained alike with other training seeds "
            f"({plural(trainings, 'training')}): standard deviation, lower is steadier.",
            cells("retrain_sd", "needs several study.training_seeds"),
        ),
    ]


def _deviation(metric: str, sd: float) -> str:
    return change(metric, sd, signed=False) if metrics.words(metric).share else f"{sd:.4f}"

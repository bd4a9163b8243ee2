"""What it took: effort against gain per arm, as a table and as points, and where the seconds went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from captune.report import curves
from captune.report.grids import finished
from captune.report.story import Story
from captune.report.wording import Column, change, columns_of, duration, span, tick, title_of, value
from captune.types import BASE

STAGES = {
    "prepare": "Prepare pictures",
    "regularization": "Regularization images",
    "latents": "Encode pictures",
    "tune": "Tune captioners",
    "caption": "Write captions",
    "tokens": "Count tokens",
    "train": "Train LoRAs",
    "sample": "Draw samples",
    "reproduction": "Ask training pictures back",
    "denoising": "Denoising losses",
    "evaluate": "Evaluate",
    "export": "Export",
    "repeat": "Repeat a training",
}


@dataclass(frozen=True)
class CostRow:
    """One line: a cell per column, and intervals below them where there are any."""

    label: str
    cells: list[str]
    note: str = ""
    intervals: Sequence[str] = ()


@dataclass(frozen=True)
class Point:
    """One arm's effort and score, in per cent of the plot."""

    column: Column
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Scatter:
    """Primary score over one effort."""

    x_title: str
    y_title: str
    points: list[Point]
    x_axis: list[curves.Tick]
    y_axis: list[curves.Tick]


@dataclass(frozen=True)
class Effort:
    """Effort against gain: gains, then efforts, then points."""

    columns: list[Column]
    gains: list[CostRow]
    efforts: list[CostRow]
    scatters: list[Scatter]


def place_of(stage: str) -> tuple[str, str]:
    """A stage's folder as (column, stage): arms/human/seed-0/train is human's train; prepare is the whole run's."""
    parts = stage.strip("/").split("/")
    if parts[0] == "arms" and len(parts) > 3 and parts[2] == "tune":
        return parts[1], "tune"  # all the stages of a captioner's tuning
    if parts[0] == "arms" and len(parts) > 2:
        return parts[1], parts[-1]
    if parts[0] == BASE and len(parts) > 1:
        return BASE, parts[1]
    return "", parts[0]


def manifests(story: Story, arm: str, stage: str) -> list[Mapping[str, Any]]:
    """The manifests of one stage of an arm, one per training where it has several."""
    return [manifest for place, manifest in story.costs.items() if place_of(place) == (arm, stage)]


def caption_facts(story: Story, arm: str) -> dict[str, float]:
    """An arm's captions in the base's tokens: mean, longest, limit, how many captions are cut, tokens lost in all."""
    found = list(story.tokens.get(arm, {}).values())
    if not found:
        return {}
    return {
        "mean": round(fmean(t.count for t in found), 2),
        "longest": max(t.count for t in found),
        "limit": found[0].limit,
        "cut": sum(t.over > 0 for t in found),
        "lost": sum(t.over for t in found),
    }


def api_tokens(story: Story, arm: str) -> int:
    """Tokens that an API was paid for; 0 where none was asked."""
    total = 0
    for manifest in manifests(story, arm, "caption"):
        said = manifest.get("api_tokens", 0)
        total += sum(said.values()) if isinstance(said, Mapping) else int(said)
    return total


def effort(story: Story) -> Effort | None:
    """What every arm cost and what it came to; None where neither is known."""
    columns = [column for column in columns_of(story) if column.name != BASE]
    arms = [column.name for column in columns]
    efforts = [
        CostRow(label, cells, note)
        for label, note, read in _EFFORTS
        if any(cells := [read(story, arm) for arm in arms])
    ]
    if not efforts:
        return None
    return Effort(columns, _gains(story, arms), efforts, _scatters(story, columns))


def _gains(story: Story, arms: Sequence[str]) -> list[CostRow]:
    metric = story.recipe.primary
    of = {arm: story.intervals.get(arm, {}).get(metric) for arm in arms}
    base = story.intervals.get(BASE, {}).get(metric)
    title, rows = title_of(story, metric), []
    if any(of.values()):
        cells = [value(metric, i.mean) if i else "" for i in of.values()]
        rows.append(CostRow(title, cells, "primary measure", [span(metric, i) if i else "" for i in of.values()]))
    if any(of.values()) and base is not None:
        gained = [change(metric, i.mean - base.mean) if i else "" for i in of.values()]
        rows.append(CostRow("Gain over the base model", gained))
    return rows


def _tokens(story: Story, arm: str, name: str, text: str = "{:,.0f}") -> str:
    facts = caption_facts(story, arm)
    return text.format(facts[name]) if facts else ""


def _cut(story: Story, arm: str) -> str:
    facts = caption_facts(story, arm)
    if not facts:
        return ""
    return f"{facts['cut']:.0f} of {len(story.tokens[arm])}, {facts['lost']:,.0f} tokens" if facts["cut"] else "none"


def _seconds(story: Story, arm: str, stage: str, key: str = "seconds") -> list[float]:
    return [float(m.get(key, m.get("seconds", 0))) for m in manifests(story, arm, stage)]


def _minutes(story: Story, arm: str) -> float | None:
    return next((section.human_minutes for section in story.recipe.arm if section.name == arm), None)


def _human(story: Story, arm: str) -> str:
    minutes = _minutes(story, arm)
    if minutes is not None:
        return f"{minutes:g} min"
    by_hand = any(s.name == arm and s.source == "sidecar" for s in story.recipe.arm)
    return "not recorded" if by_hand else ""


def _per_training(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    each = duration(fmean(seconds))
    return each if len(seconds) == 1 else f"{each} × {len(seconds)}"


def _mean(story: Story, arm: str, stage: str, key: str, digits: int, unit: str = "") -> str:
    found = [float(m[key]) for m in manifests(story, arm, stage) if isinstance(m.get(key), int | float)]
    return f"{fmean(found):,.{digits}f}{unit}" if found else ""


def _peak(story: Story, arm: str) -> str:
    found = [float(m["peak_mib"]) for m in manifests(story, arm, "train") if "peak_mib" in m]
    return f"{max(found):,.0f} MiB" if found else ""


def _per_picture(story: Story, arm: str) -> str:
    found = [s.seconds for s in finished(story) if s.arm == arm and s.seconds > 0]
    return f"{fmean(found):.2f} s" if found else ""


_EFFORTS: tuple[tuple[str, str, Callable[[Story, str], str]], ...] = (
    ("Tokens per caption", "mean, by the base’s own tokenizer", lambda s, a: _tokens(s, a, "mean", "{:.1f}")),
    ("Longest caption", "tokens", lambda s, a: _tokens(s, a, "longest")),
    ("Captions cut", "beyond the base’s limit", _cut),
    ("Writing captions", "by the machine", lambda s, a: _per_training(_seconds(s, a, "caption"))),
    ("Writing captions, by people", "as the recipe records it", _human),
    ("API tokens", "", lambda s, a: f"{api_tokens(s, a):,}" if api_tokens(s, a) else ""),
    ("Training", "per LoRA", lambda s, a: _per_training(_seconds(s, a, "train", "training_seconds"))),
    ("Training steps", "", lambda s, a: _mean(s, a, "train", "total_steps", 0)),
    ("Pictures per second", "while training", lambda s, a: _mean(s, a, "train", "pictures_per_second", 1)),
    ("Peak memory", "of the process, by the end of training", _peak),
    ("Sampling", "per picture", _per_picture),
)


def _scatters(story: Story, columns: Sequence[Column]) -> list[Scatter]:
    """The primary score over caption length and over minutes of writing; only where at least two arms differ."""
    lengths = {c.name: caption_facts(story, c.name).get("mean") for c in columns}
    minutes: dict[str, float | None] = {}
    for section in story.recipe.arm:
        machine = sum(_seconds(story, section.name, "caption")) / 60
        by_hand = section.source == "sidecar"  # without recorded minutes, nobody knows what these captions took
        minutes[section.name] = (
            None if by_hand and section.human_minutes is None else machine + (section.human_minutes or 0)
        )
    found = [
        _scatter(story, columns, lengths, "tokens per caption, mean"),
        _scatter(story, columns, minutes, "minutes of writing captions, machine and people"),
    ]
    return [scatter for scatter in found if scatter is not None]


def _scatter(
    story: Story, columns: Sequence[Column], efforts: Mapping[str, float | None], x_title: str
) -> Scatter | None:
    metric = story.recipe.primary
    known = [
        (column, effort, interval)
        for column in columns
        if (effort := efforts.get(column.name)) is not None
        and (interval := story.intervals.get(column.name, {}).get(metric)) is not None
    ]
    if len({round(effort, 6) for _, effort, _ in known}) < 2:
        return None
    right = 1.08 * max(effort for _, effort, _ in known)
    low, high = min(i.low for _, _, i in known), max(i.high for _, _, i in known)
    margin = 0.1 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def down(score: float) -> float:
        return (high - score) / (high - low) * 100

    points = [Point(c, effort / right * 100, down(i.mean), down(i.low), down(i.high)) for c, effort, i in known]
    return Scatter(
        x_title,
        title_of(story, metric),
        points,
        [curves.Tick(t / right * 100, f"{t:g}") for t in curves.ticks(0, right, 4)],
        [curves.Tick(down(t), tick(metric, t)) for t in curves.ticks(low, high, 4)],
    )


def stage_seconds(story: Story) -> tuple[list[Column], list[CostRow]] | None:
    """Seconds by stage: of the whole run, of the base, of each arm with all its trainings."""
    if not story.costs:
        return None
    spent: dict[tuple[str, str], float] = {}
    for stage, manifest in story.costs.items():
        place = place_of(stage)
        spent[place] = spent.get(place, 0.0) + float(manifest.get("seconds", 0))
    owners = {owner for owner, _ in spent}
    shown = [column for column in (Column("", "whole run", 0), *columns_of(story)) if column.name in owners]
    order = [*(stage for stage in STAGES if any(stage == s for _, s in spent))]
    order += sorted({stage for _, stage in spent} - set(order))
    rows = [
        CostRow(
            STAGES.get(stage, stage.capitalize()),
            [duration(spent[c.name, stage]) if (c.name, stage) in spent else "" for c in shown],
        )
        for stage in order
    ]
    totals = [sum(seconds for (owner, _), seconds in spent.items() if owner == c.name) for c in shown]
    return shown, [*rows, CostRow("All", [duration(total) for total in totals])]

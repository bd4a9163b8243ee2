"""Loss curves as points in per cent of the plot: smoothed, thinned, and scaled. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 400
Floats = NDArray[np.float64]
Line = tuple[Floats, Floats]  # steps and values


@dataclass(frozen=True)
class Curve:
    """One arm's losses as SVG points, x and y from 0 to 100: bold the smoothed mean over its trainings, thin each
    training (every step of a single one), and where the bold one ends."""

    arm: str
    thin: list[str]
    bold: str
    last: float
    last_y: float
    trainings: int


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in per cent from the plot's left or top."""

    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """All curves in one frame."""

    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    window: int


def smoothed(values: Floats, window: int) -> Floats:
    """The centred moving mean over `window` values; at the ends over those that there are."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    mean: Floats = (total[last] - total[first]) / (last - first)
    return mean


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * s for s in (1, 2, 2.5, 5, 10) if power * s >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(losses: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]) -> Plot | None:
    """The arms' losses over the steps; None without any. Rows that are not finite numbers are left out."""
    series = {
        arm: [found for rows in of.values() if (found := _finite(rows)) is not None] for arm, of in losses.items()
    }
    series = {arm: found for arm, found in series.items() if found}
    if not series:
        return None
    longest = max(len(values) for found in series.values() for _, values in found)
    window = max(1, longest // 12) | 1
    smooth = {arm: [(steps, smoothed(values, window)) for steps, values in found] for arm, found in series.items()}
    bold = {arm: _mean(found) for arm, found in smooth.items()}
    thin = {arm: smooth[arm] if len(found) > 1 else found for arm, found in series.items()}
    raw = np.concatenate([values for found in thin.values() for _, values in found])
    # Single wild steps must not flatten the curves: the frame holds the bold lines and 98 % of the thin ones.
    low = min(float(np.quantile(raw, 0.01)), *(float(values.min()) for _, values in bold.values()))
    high = max(float(np.quantile(raw, 0.99)), *(float(values.max()) for _, values in bold.values()))
    if high <= low:
        low, high = low - 0.5 * abs(low) - 1e-3, high + 0.5 * abs(high) + 1e-3
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    start = min(float(steps[0]) for steps, _ in bold.values())
    end = max(max(float(steps[-1]) for steps, _ in bold.values()), start + 1)

    def points(line: Line) -> str:
        steps, values = line
        return _points((steps - start) / (end - start) * 100, np.clip((high - values) / (high - low) * 100, -2, 102))

    curves = []
    for arm, (steps, values) in bold.items():
        last = float(values[-1])
        lines = [points(line) for line in thin[arm]]
        curves.append(Curve(arm, lines, points((steps, values)), last, (high - last) / (high - low) * 100, len(lines)))
    digits = 3 if high - low < 0.2 else 2
    return Plot(
        curves,
        [Tick((t - start) / (end - start) * 100, f"{t:.0f}") for t in ticks(start, end, 5) if t == int(t)],
        [Tick((high - t) / (high - low) * 100, f"{t:.{digits}f}") for t in ticks(low, high, 6)],
        window,
    )


def _finite(rows: Sequence[Mapping[str, float]]) -> Line | None:
    kept = [(float(r["step"]), float(r["loss"])) for r in rows if math.isfinite(float(r["loss"]))]
    if not kept:
        return None
    steps, values = np.array(kept).T
    return steps, values


def _mean(lines: Sequence[Line]) -> Line:
    """The mean over the trainings at every step that the shortest of them reached."""
    last = min(float(steps[-1]) for steps, _ in lines)
    steps = np.unique(np.concatenate([steps[steps <= last] for steps, _ in lines]))
    return steps, np.mean([np.interp(steps, own, values) for own, values in lines], axis=0)


def _points(x: Floats, y: Floats) -> str:
    """At most `MOST_POINTS` points; where there are more, lowest and highest of each stretch are kept."""
    if len(x) > MOST_POINTS:
        keep: set[int] = {0, len(x) - 1}
        for stretch in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
            keep |= {int(stretch[np.argmin(y[stretch])]), int(stretch[np.argmax(y[stretch])])}
        chosen = sorted(keep)
        x, y = x[chosen], y[chosen]
    return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))

"""Curves, ticks and amounts in a report."""

from __future__ import annotations

import numpy as np
import pytest

from captune.report import curves
from captune.report import wording as say


def test_smoothing_keeps_a_constant_and_a_line() -> None:
    assert np.allclose(curves.smoothed(np.full(20, 3.0), 7), 3.0)
    line = np.arange(30, dtype=float)
    assert np.allclose(curves.smoothed(line, 5)[2:-2], line[2:-2])


def test_ticks_are_round_and_inside() -> None:
    assert curves.ticks(0.0, 1.0) == [0, 0.25, 0.5, 0.75, 1.0]
    assert curves.ticks(0.643, 0.912) == [0.7, 0.8, 0.9]


def test_long_curves_are_thinned_without_losing_their_peaks() -> None:
    rows = [{"step": s, "loss": 1.0} for s in range(1, 20_001)]
    rows[12_345]["loss"] = 9.0
    rows[77]["loss"] = float("nan")
    plot = curves.plot({"human": {0: rows}})
    assert plot is not None
    points = [tuple(map(float, point.split(","))) for point in plot.curves[0].thin[0].split()]
    assert len(points) <= curves.MOST_POINTS + 2
    assert min(y for _, y in points) == -2  # the peak leaves the frame at the top, but is drawn
    assert all(0 <= x <= 100 for x, _ in points)


def test_the_bold_curve_is_the_mean_of_the_trainings() -> None:
    def flat(loss: float, steps: int) -> list[dict[str, float]]:
        return [{"step": s, "loss": loss} for s in range(1, steps + 1)]

    plot = curves.plot({"human": {0: flat(1.0, 50), 1: flat(2.0, 50), 2: flat(6.0, 40)}})
    assert plot is not None
    curve = plot.curves[0]
    assert curve.last == pytest.approx(3.0) and curve.trainings == len(curve.thin) == 3
    assert len(curve.bold.split()) == 40  # as far as all trainings came


def test_no_losses_no_plot() -> None:
    assert curves.plot({"human": {0: []}}) is None


def test_amounts_are_said_as_people_say_them() -> None:
    assert [say.duration(s) for s in (0.42, 34.2, 125, 4322)] == ["0.4 s", "34 s", "2 min 5 s", "1 h 12 min"]
    assert [say.size(n) for n in (12, 182_000, 1_250_000)] == ["12 bytes", "182.0 kB", "1.2 MB"]
    assert say.plural(1, "seed") == "1 seed" and say.plural(2000, "step") == "2,000 steps"
    assert [say.change("clip_i", n) for n in (0.0214, -0.3, 0.0)] == ["+0.021", "\N{MINUS SIGN}0.300", "0.000"]
    assert say.change("oracle_subject", 0.414) == "+41 points"
    assert say.change("denoising_loss", 0.0092) == "+0.0092"
    assert [say.probability(p) for p in (0.0002, 0.0214, 0.5)] == ["< 0.001", "0.021", "0.50"]
    assert say.listed(["a", "b", "c"]) == "a, b and c"

"""A table of values (training runs x prompts) -> mean, interval, p-value, and what a design can find. Pure mathematics.

Values of one prompt resemble each other in all runs, and values of one run over all prompts: two crossed random effects.
The bootstrap therefore draws training runs and prompts, never single pictures. Drawing both at once overstates the noise
(Owen 2007, "The pigeonhole bootstrap"), so its variance is split in what runs, prompts and cells contribute, and put together
without bias as runs + prompts - cells (Cameron, Gelbach & Miller 2011), never below the cells' own. Three runs tell little
about their spread: the interval is Student's t with the degrees of freedom of those parts (after Satterthwaite 1946).

With fewer than `FEWEST_RUNS` runs that spread cannot be told. Runs then count as they are, only prompts are resampled, and
what is found holds for these files alone.

Chosen by the share of studies that call equal arms different, 3 runs x 25 prompts, run and prompt effects from none to 100
times the cells' noise, nominal 5 % (docs/adr/0004-statistics.md): this 2.4 to 6.7 %; Satterthwaite's own squares without a
floor 3.1 to 11.9 %; runs + prompts with nothing taken off 1.2 to 7.6 %; fiducial draws of the three parts 1.9 to 5.0 %, but 2
to 3 % where studies are; the crossed bootstrap's own spread 0.7 to 23 %; prompts alone up to 84 %, runs alone up to 71 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special  # type: ignore[import-untyped]

from captune.errors import DataError
from captune.types import FEWEST_PROMPTS, FEWEST_RUNS

Floats = NDArray[np.float64]

POWER = 0.8
TINY = 1e-300  # keeps a division by a variance of 0 defined


@dataclass(frozen=True)
class Table:
    """Sums, sums of squares and counts of values, each (training runs, prompts)."""

    sums: Floats
    squares: Floats
    counts: Floats

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())

    @property
    def means(self) -> Floats:
        """The cells' means, (training runs, prompts); nan where a cell is empty."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.sums / self.counts)


@dataclass(frozen=True)
class Parts:
    """What runs, prompts and cells contribute to the variance of the mean; runs and prompts each hold the cells' too.
    Numbers, or arrays of many studies."""

    runs: Floats | float
    prompts: Floats | float
    cells: Floats | float


@dataclass(frozen=True)
class Estimate:
    """A mean, its interval, and the two-sided p-value of a true mean of 0."""

    mean: float
    low: float
    high: float
    p_value: float
    error: float  # standard error
    degrees: float  # degrees of freedom


@dataclass(frozen=True)
class Design:
    """A study's size: trainings per arm, prompts, and sampling seeds per prompt."""

    training_runs: int
    prompts: int
    seeds: int


@dataclass(frozen=True)
class Components:
    """Variances of a paired difference: between training runs, between prompts, between prompts within a run beyond what
    pictures explain, and between pairs of pictures of one prompt and run."""

    run: float
    prompt: float
    interaction: float
    pair: float


def tabulate(values: Iterable[tuple[str | int, str | int, float]]) -> Table:
    """(run, prompt, value) rows as a table; sums are exact, so that the order of the rows changes no digit."""
    cells: dict[tuple[str | int, str | int], list[float]] = {}
    for run, prompt, value in values:
        cells.setdefault((run, prompt), []).append(value)
    rows, columns = (
        {name: index for index, name in enumerate(sorted(set(names)))} for names in zip(*cells, strict=True)
    )
    sums, squares, counts = np.zeros((3, len(rows), len(columns)))
    for (run, prompt), found in cells.items():
        cell = rows[run], columns[prompt]
        sums[cell], squares[cell], counts[cell] = math.fsum(found), math.fsum(v * v for v in found), len(found)
    return Table(sums, squares, counts)


def estimate(table: Table, resamples: int, confidence: float, generator: np.random.Generator) -> Estimate:
    """The mean with its interval. One prompt alone has none: both ends are the mean, and the p-value is 1."""
    runs, prompts = table.sums.shape
    if prompts < 2:
        return Estimate(table.mean, table.mean, table.mean, 1.0, 0.0, 1.0)
    if runs < FEWEST_RUNS:
        table = Table(*(part.sum(axis=0, keepdims=True) for part in (table.sums, table.squares, table.counts)))
        runs = 1
    error, degrees = map(float, combined(resampled(table, resamples, generator), runs, prompts))
    half = quantile(confidence, degrees) * error
    p_value = 1.0 if table.mean == 0 else 0.0
    if error > 0:
        p_value = 2 * float(special.stdtr(degrees, -abs(table.mean) / error))
    return Estimate(table.mean, table.mean - half, table.mean + half, p_value, error, degrees)


def resampled(table: Table, resamples: int, generator: np.random.Generator) -> Parts:
    """The bootstrap: training runs and prompts are drawn with replacement, alone and together.

    Means move with the runs drawn, with the prompts drawn, and, beyond the sum of both, with their cells; the mean square
    of each is the variance that it contributes, up to n / (n - 1).
    """
    runs, prompts = table.sums.shape
    of_runs, of_prompts = (_times_drawn(count, resamples, generator) for count in (runs, prompts))

    def moved(run_weights: Floats, prompt_weights: Floats) -> Floats:
        sums, counts = (((run_weights @ part) * prompt_weights).sum(axis=1) for part in (table.sums, table.counts))
        found: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), table.mean) - table.mean
        return found

    by_runs = moved(of_runs, np.ones((1, prompts)))
    by_prompts = moved(np.ones((1, runs)), of_prompts)
    by_cells = moved(of_runs, of_prompts) - by_runs - by_prompts
    spared = [n / (n - 1) if n > 1 else 0.0 for n in (runs, prompts)]
    return Parts(
        runs=spared[0] * float(np.mean(by_runs**2)),
        prompts=spared[1] * float(np.mean(by_prompts**2)),
        cells=spared[0] * spared[1] * float(np.mean(by_cells**2)),
    )


def _times_drawn(count: int, resamples: int, generator: np.random.Generator) -> Floats:
    """How often each of `count` things is among `count` drawn with replacement, (resamples, count)."""
    drawn = generator.integers(0, count, (resamples, count)) + count * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(float)


def combined(parts: Parts, runs: int, prompts: int) -> tuple[Floats, Floats]:
    """Standard error and degrees of freedom of a mean over crossed runs and prompts.

    Both runs and prompts hold the cells' noise, which is therefore taken off once. Satterthwaite weighs each part's
    1 / degrees by its squared share of the variance; with 2 degrees among them that is too hopeful where a part is
    estimated too small, and the power 1.5 (1 is Cochran's, which is too careful) is between. Where the sum is small beside
    the cells', neither runs nor prompts show an effect, and the cells' many degrees of freedom count.
    """
    if runs < 2:
        return np.sqrt(parts.prompts), np.full(np.shape(parts.prompts), prompts - 1.0)
    of_cells = (runs - 1.0) * (prompts - 1.0)
    whole = parts.runs + parts.prompts - parts.cells
    variance = np.maximum(np.maximum(whole, parts.cells), TINY)
    inverse = sum(
        np.minimum(part / variance, 1.0) ** 1.5 / degrees
        for part, degrees in ((parts.runs, runs - 1), (parts.prompts, prompts - 1), (parts.cells, of_cells))
    )
    inverse = np.minimum(inverse, 1 / (min(runs, prompts) - 1))
    showing = np.clip(4 * whole / np.maximum(parts.cells, TINY) - 3, 0.0, 1.0)
    return np.sqrt(np.maximum(whole, parts.cells)), 1 / (showing * inverse + (1 - showing) / of_cells)


def quantile(confidence: float, degrees: float) -> float:
    """Student's t that a two-sided interval ends at."""
    return float(special.stdtrit(degrees, (1 + confidence) / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: at most `alpha` false claims in the whole family, whatever depends on what."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def agreed_share(mean: float, least: float, prompts: int, confidence: float) -> Estimate:
    """Where all prompts show the same share (or difference of shares, `least` = -1), resampling has no doubt at all.

    Then the exact binomial bound (Clopper & Pearson 1934) holds: after 16 of 16 agreed, up to 21 % of all prompts may not,
    and those may show anything from `least` to 1. Differences are then told by the sign test: 2 / 2^prompts at best.
    """
    others = 1 - ((1 - confidence) / 2) ** (1 / prompts)
    low, high = mean - others * (mean - least), mean + others * (1 - mean)
    p_value = min(1.0, 2 * (1 + abs(mean)) ** -prompts)
    degrees = max(prompts - 1.0, 1.0)
    return Estimate(mean, low, high, p_value, (high - low) / 2 / quantile(confidence, degrees), degrees)


def within(found: Estimate, least: float, most: float) -> Estimate:
    """The estimate with its interval cut to what values can be; the mean always stays inside."""
    return replace(found, low=min(max(found.low, least), found.mean), high=max(min(found.high, most), found.mean))


def minimal_detectable_difference(error: float, degrees: float, confidence: float, power: float = POWER) -> float:
    """The true difference that is told from 0 in `power` of all repetitions (by the noncentral t)."""
    return float(special.nctdtrinc(degrees, 1 - power, quantile(confidence, degrees))) * error


def components(table: Table) -> Components:
    """Variance components by the analysis of variance of the cells' means; what cannot be told from noise is 0.

    Only prompts that all runs have are used. Without two values in a cell, what belongs to pictures and what to the
    interaction cannot be told apart: all of it is put down to pictures, which more seeds would average away.
    """
    complete = (table.counts > 0).all(axis=0)
    sums, squares, counts = (part[:, complete] for part in (table.sums, table.squares, table.counts))
    runs, prompts = sums.shape
    if prompts < 2:
        raise DataError(
            f"how much prompts and trainings vary cannot be told from {prompts} prompt(s) scored in all training runs; "
            "two or more are needed"
        )
    cells = sums / counts
    within = float((squares - sums * cells).sum())
    spare = float((counts - 1).sum())
    size = counts.size / float((1 / counts).sum())  # harmonic mean: what a cell's mean averages over
    by_run, by_prompt = cells.mean(axis=1, keepdims=True), cells.mean(axis=0, keepdims=True)
    of_prompts = runs * float(by_prompt.var(ddof=1))
    if runs < 2:
        pair = max(within, 0.0) / spare if spare else 0.0
        return Components(0.0, max(of_prompts - pair / size, 0.0), 0.0, pair)
    rest = cells - by_run - by_prompt + cells.mean()
    of_cells = float((rest**2).sum()) / ((runs - 1) * (prompts - 1))
    of_runs = prompts * float(by_run.var(ddof=1))
    pair = max(within, 0.0) / spare if spare else of_cells * size
    return Components(
        run=max(of_runs - of_cells, 0.0) / prompts,
        prompt=max(of_prompts - of_cells, 0.0) / runs,
        interaction=max(of_cells - pair / size, 0.0),
        pair=pair,
    )


def found_in(truth: Components, design: Design, difference: float, confidence: float = 0.95) -> float:
    """The power: in which share of all repetitions a study of this design finds this true difference.

    By what repetitions would estimate: mean squares are chi-squared variables, here their quantiles at fixed random points.
    """
    if design.prompts < FEWEST_PROMPTS:
        return 0.0
    spread, half = _repetitions(truth, design, confidence)
    return float(np.mean(special.ndtr((difference - half) / spread) + special.ndtr((-difference - half) / spread)))


def detectable(truth: Components, design: Design, confidence: float = 0.95, power: float = POWER) -> float:
    """The smallest true difference that a study of this design finds in `power` of all repetitions; infinite where it has
    too few prompts to claim any."""
    if design.prompts < FEWEST_PROMPTS:
        return math.inf
    spread, half = _repetitions(truth, design, confidence)
    low, high = 0.0, float(half.max()) + 10 * spread
    for _ in range(50):
        middle = (low + high) / 2
        found = np.mean(special.ndtr((middle - half) / spread) + special.ndtr((-middle - half) / spread))
        low, high = (low, middle) if found >= power else (middle, high)
    return high


def _repetitions(truth: Components, design: Design, confidence: float) -> tuple[float, Floats]:
    """The true standard error of a study's difference, and its interval's half width in each of many repetitions."""
    runs, prompts = design.training_runs, design.prompts
    of_cells = truth.interaction + truth.pair / design.seeds
    fixed = runs < FEWEST_RUNS  # these files alone: how much trainings differ is no part of the doubt
    cells = of_cells / (runs * prompts)
    parts = Parts(truth.run / runs + cells, truth.prompt / prompts + cells, cells)
    spread = math.sqrt(parts.prompts if fixed else parts.runs + parts.prompts - parts.cells)
    points = np.random.default_rng(0).random((3, 2000))
    degrees = (max(runs - 1, 1), prompts - 1, max(runs - 1, 1) * (prompts - 1))
    seen = (2 * special.gammaincinv(f / 2, p) / f for f, p in zip(degrees, points, strict=True))
    drawn = Parts(*(part * of for part, of in zip((parts.runs, parts.prompts, parts.cells), seen, strict=True)))
    error, freedom = combined(drawn, 1 if fixed else runs, prompts)
    half: Floats = special.stdtrit(freedom, (1 + confidence) / 2) * error
    return max(spread, TINY), half


def needed(
    truth: Components,
    difference: float,
    training_runs: Sequence[int] = (3, 4, 5, 6, 8, 10),
    seeds: int = 4,
    confidence: float = 0.95,
    most_prompts: int = 1000,
) -> list[Design]:
    """For each number of training runs the fewest prompts that find the difference; left out where none are enough."""
    found = []
    for runs in training_runs:
        design = Design(runs, most_prompts, seeds)
        if detectable(truth, design, confidence) <= difference:
            fewest, most = FEWEST_PROMPTS, most_prompts
            while fewest < most:  # more prompts never find less
                middle = (fewest + most) // 2
                enough = detectable(truth, replace(design, prompts=middle), confidence) <= difference
                fewest, most = (fewest, middle) if enough else (middle + 1, most)
            found.append(replace(design, prompts=fewest))
    return found

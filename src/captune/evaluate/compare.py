"""Scores -> means with intervals, and paired differences between arms in plain words. Pure numpy, deterministic.

What is resampled are prompts, not pictures: pictures of one prompt resemble each other, and counting them as
independent makes intervals too short. Arms are compared on the same prompts and seeds, so what a prompt makes easy or
hard cancels.

Intervals are bootstrap percentiles: they need no symmetry and no normal distribution, and they stay within what was
seen (a share never leaves 0 to 1). Plain percentiles are too narrow for few prompts, so the tails are widened as
Hesterberg 2015 ("What Teachers Should Know about the Bootstrap") proposes: by the ratio of Student's t to the normal
distribution and by sqrt(n / (n - 1)). Below `FEWEST_PROMPTS` prompts no interval is honest: even if every prompt
agrees, chance alone does that too often. There the interval is still shown, but no difference is claimed. Where all
prompts agree to the last digit, resampling shows no doubt at all; a share then gets the exact binomial bound instead
(Clopper & Pearson 1934: 0 of 16 prompts still allows 21 %).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from captune import metrics
from captune.errors import DataError
from captune.recipe import EvaluateSection
from captune.types import BASE, FEWEST_PROMPTS, REAL, Comparison, Interval, Score

Key = tuple[str, int]  # what pairs scores across arms: item and training seed
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Table:
    """Sums and counts of values, (training runs, clusters): all that a resampling needs."""

    sums: Floats
    counts: Floats

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())


def summarize(scores: Sequence[Score], section: EvaluateSection) -> dict[str, dict[str, Interval]]:
    """Mean and interval of every arm (base and real included) and metric; arms and metrics in the scores' order."""
    found: dict[str, dict[str, Interval]] = {}
    for arm, metric in dict.fromkeys((score.arm, score.metric) for score in scores):
        values = {_key(s): (_cluster(s), s.value) for s in scores if s.arm == arm and s.metric == metric}
        found.setdefault(arm, {})[metric] = _interval(values, section, "mean", metric, arm)
    return found


def compare(
    scores: Sequence[Score], section: EvaluateSection, higher_is_better: Mapping[str, bool]
) -> list[Comparison]:
    """Every pair of arms, then every arm against the base, for every metric that judged both."""
    arms = [arm for arm in dict.fromkeys(score.arm for score in scores) if arm not in (BASE, REAL)]
    pairs = [*combinations(arms, 2), *((arm, BASE) for arm in arms)]
    found = []
    for metric in dict.fromkeys(score.metric for score in scores):
        of_arm: dict[str, list[Score]] = {}
        for score in scores:
            if score.metric == metric:
                of_arm.setdefault(score.arm, []).append(score)
        for first, second in pairs:
            if first in of_arm and second in of_arm:
                values = _paired(of_arm[first], of_arm[second])
                if values:
                    difference = _interval(values, section, "difference", metric, first, second)
                    found.append(_judged(metric, first, second, difference, higher_is_better[metric], _runs(values)))
    return found


def _key(score: Score) -> Key:
    return score.item, score.training_seed


def _cluster(score: Score) -> str:
    return str(score.prompt_index) if score.prompt_index >= 0 else score.item


def _runs(values: Mapping[Key, object]) -> int:
    return len({training_seed for _, training_seed in values})


def _paired(first: Sequence[Score], second: Sequence[Score]) -> dict[Key, tuple[str, float]]:
    """first - second for the items that both have. The base has no training run: it is paired with every run."""
    other = {_key(score): score.value for score in second}
    if second[0].arm == BASE:
        base = {score.item: score.value for score in second}
        other = {_key(score): base[score.item] for score in first if score.item in base}
    elif not {s.training_seed for s in first} & {s.training_seed for s in second}:
        raise DataError(
            f"arms {first[0].arm!r} and {second[0].arm!r} have no training seed in common, so they cannot be compared "
            "in pairs; train both with the same train.seed"
        )
    return {_key(s): (_cluster(s), s.value - other[_key(s)]) for s in first if _key(s) in other}


def _table(values: Mapping[Key, tuple[str, float]]) -> _Table:
    runs = {seed: row for row, seed in enumerate(sorted({seed for _, seed in values}))}
    clusters = {name: column for column, name in enumerate(sorted({cluster for cluster, _ in values.values()}))}
    table = _Table(np.zeros((len(runs), len(clusters))), np.zeros((len(runs), len(clusters))))
    for (_, seed), (cluster, value) in sorted(values.items()):
        table.sums[runs[seed], clusters[cluster]] += value
        table.counts[runs[seed], clusters[cluster]] += 1
    return table


def _interval(values: Mapping[Key, tuple[str, float]], section: EvaluateSection, *purpose: str) -> Interval:
    """The mean with its interval; prompts are resampled, and training runs too where there are several."""
    table = _table(values)
    runs, clusters = table.sums.shape
    means = _resampled_means(table, section.resamples, _generator(*purpose))
    tail = _tail(clusters, section.confidence)
    low, high = np.quantile(means, [tail, 1 - tail])
    if metrics.words(purpose[1]).share and np.ptp(table.sums / np.maximum(table.counts, 1)) == 0:
        doubt = 1 - ((1 - section.confidence) / 2) ** (1 / clusters)
        least = 0.0 if purpose[0] == "mean" else -1.0
        low, high = max(least, table.mean - doubt), min(1.0, table.mean + doubt)
    # Summing in another order moves the last digits; an interval never excludes its own mean for that.
    low, high = min(float(low), table.mean), max(float(high), table.mean)
    return Interval(table.mean, low, high, int(table.counts.sum()), clusters)


def _resampled_means(table: _Table, resamples: int, generator: np.random.Generator) -> Floats:
    """The mean of each bootstrap resample, (resamples,): training runs and prompts are drawn with replacement."""
    runs, clusters = table.sums.shape
    rows = generator.integers(0, runs, (resamples, runs, 1))
    columns = generator.integers(0, clusters, (resamples, 1, clusters))
    sums, counts = table.sums[rows, columns].sum(axis=(1, 2)), table.counts[rows, columns].sum(axis=(1, 2))
    means: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), table.mean)
    return means


def _generator(*purpose: str) -> np.random.Generator:
    """A generator keyed by what it is for, so that intervals do not depend on each other or on their order."""
    digest = hashlib.sha256("\x1f".join(("bootstrap", *purpose)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _tail(clusters: int, confidence: float) -> float:
    """The quantile at which the interval ends, widened for few clusters (Hesterberg 2015, expanded percentiles)."""
    alpha = (1 - confidence) / 2
    if clusters < 2:
        return alpha
    wide = (clusters / (clusters - 1)) ** 0.5 * student_t(1 - alpha, clusters - 1)
    return NormalDist().cdf(-wide)


def student_t(probability: float, degrees: int) -> float:
    """The quantile of Student's t (Abramowitz & Stegun 26.7.5); within 1 % from 3 degrees of freedom up at 95 %."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _judged(
    metric: str, first: str, second: str, difference: Interval, higher_is_better: bool, runs: int
) -> Comparison:
    """Which arm is better, if that can be told, and the sentence for it."""
    told = difference.clusters >= FEWEST_PROMPTS and not difference.low <= 0 <= difference.high
    better = None
    if told:
        better = first if (difference.mean > 0) == higher_is_better else second
    return Comparison(
        metric, first, second, difference, better, _sentence(metric, first, second, difference, better, runs)
    )


def _sentence(metric: str, first: str, second: str, difference: Interval, better: str | None, runs: int) -> str:
    words = metrics.words(metric)
    found = f"{amount(difference, metric, claimed=better is not None)}, {difference.clusters} prompts"
    if better is not None:
        if second != BASE:
            found += "; these two files, one training run each" if runs == 1 else f", {runs} training runs"
        worse = second if better == first else first
        return f"{_called(better, first=True)} {words.better} than {_called(worse)}, by {found})."
    between = f"between {_called(first)} and {_called(second)}"
    if difference.clusters < FEWEST_PROMPTS:
        return f"Too few prompts (below {FEWEST_PROMPTS}) to tell a difference in {words.quality} {between}: {found})."
    return f"No detectable difference in {words.quality} {between}: {found})."


def _called(arm: str, *, first: bool = False) -> str:
    if arm != BASE:
        return arm
    return "The base model" if first else "the base model"


def amount(difference: Interval, metric: str, *, claimed: bool) -> str:
    """The start of "0.021 (0.008 to 0.034, 24 prompts)"; a claimed one without sign, the smaller end first."""
    share = metrics.words(metric).share
    scale, unit, digits = (100, " points", 0) if share else (1, "", 3)
    values = [scale * value for value in (difference.mean, difference.low, difference.high)]
    if claimed and difference.mean < 0:
        values = [-values[0], -values[2], -values[1]]
    while claimed and digits < 6 and round(values[1], digits) == 0:
        digits += 1  # an end that is not 0 should not be printed as 0
    mean, low, high = (_number(value, digits, signed=not claimed) for value in values)
    return f"{mean}{unit} ({low} to {high}"


def _number(value: float, digits: int, *, signed: bool) -> str:
    """A number as it is printed: a true minus sign, "+" if signed, and never "-0"."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+" if signed else "") + text

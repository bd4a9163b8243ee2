"""Scores -> means with intervals, and paired differences between arms in plain words. Pure numpy, deterministic.

Arms are compared on the same prompts, sampling seeds and training seeds, so what a prompt makes easy or hard cancels. What is
resampled are training runs and prompts, never pictures (`captune.evaluate.statistics` has the mathematics and its reasons).
Below `FEWEST_PROMPTS` prompts the interval is still shown, but no difference is claimed: even if every prompt agrees, chance
alone does that too often.

The declared primary metric is judged by its interval. All other metrics are secondary and judged by Holm's adjusted p-values,
in two families, since they answer two questions: every secondary comparison between two arms, and every secondary
comparison of an arm with the base. Were they one family, whether one arm is better than another would depend on how many
floors were looked at. Intervals are not widened by that: where the interval excludes 0 and the verdict does not, the
sentence says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from captune import metrics
from captune.errors import DataError
from captune.evaluate import statistics
from captune.evaluate.statistics import Estimate, Table
from captune.recipe import EvaluateSection
from captune.types import (
    BASE,
    BETTER,
    FEWEST_PROMPTS,
    FEWEST_RUNS,
    NO_DIFFERENCE,
    REAL,
    WORSE,
    Comparison,
    CrossLoss,
    Interval,
    Score,
)

Key = tuple[str, int]  # what pairs scores across arms: item and training seed
Pairs = Mapping[Key, tuple[str, float]]  # to each key, its cluster (prompt) and value


@dataclass(frozen=True)
class _Found:
    """A comparison before it is judged."""

    metric: str
    first: str
    second: str
    table: Table
    difference: Estimate

    @property
    def prompts(self) -> int:
        return int(self.table.counts.shape[1])

    @property
    def runs(self) -> int:
        return int(self.table.counts.shape[0])

    @property
    def enough(self) -> bool:
        return self.prompts >= FEWEST_PROMPTS

    @property
    def p_value(self) -> float:
        return self.difference.p_value if self.enough else 1.0

    @property
    def excludes_zero(self) -> bool:
        return self.enough and not self.difference.low <= 0 <= self.difference.high


def summarize(scores: Sequence[Score], section: EvaluateSection) -> dict[str, dict[str, Interval]]:
    """Mean and interval of every arm's finished adapters (base and real included) and metric, in the scores' order."""
    found: dict[str, dict[str, Interval]] = {}
    for (arm, metric), own in _finished(scores).items():
        values = {_key(score): (_cluster(score), score.value) for score in own}
        found.setdefault(arm, {})[metric] = _interval(values, section, "mean", metric, arm)
    return found


def matrix(losses: Sequence[CrossLoss], section: EvaluateSection) -> dict[str, dict[str, Interval]]:
    """Mean denoising loss and interval by whose adapter (BASE for none), then by whose captions, in the losses' order."""
    cells: dict[tuple[str, str], dict[Key, tuple[str, float]]] = {}
    for loss in losses:
        of = cells.setdefault((loss.arm, loss.captions), {})
        of[loss.example_id, loss.training_seed] = (loss.example_id, loss.loss)
    found: dict[str, dict[str, Interval]] = {}
    for (arm, captions), values in cells.items():
        found.setdefault(arm, {})[captions] = _interval(values, section, "loss", "denoising", arm, captions)
    return found


def compare(
    scores: Sequence[Score], section: EvaluateSection, higher_is_better: Mapping[str, bool], primary: str
) -> list[Comparison]:
    """Every pair of arms, then every arm against the base, for every metric that judged both; finished adapters only."""
    own = _finished(scores)
    arms = [arm for arm in dict.fromkeys(arm for arm, _ in own) if arm not in (BASE, REAL)]
    pairs = [*combinations(arms, 2), *((arm, BASE) for arm in arms)]
    found = []
    for metric in dict.fromkeys(metric for _, metric in own):
        for first, second in pairs:
            if (first, metric) in own and (second, metric) in own:
                values = _paired(own[first, metric], own[second, metric])
                if values:
                    table = _table(values)
                    # Named in alphabetical order, so that an arm's place changes no draw: swapped arms swap the sign.
                    difference = _estimate(table, section, "difference", metric, *sorted((first, second)))
                    found.append(_Found(metric, first, second, table, difference))
    families = [
        [f for f in found if f.metric != primary and (f.second == BASE) == against_base]
        for against_base in (False, True)
    ]
    adjusted = {
        id(f): (p, len(family))
        for family in families
        for f, p in zip(family, statistics.holm([f.p_value for f in family]), strict=True)
    }
    return [_judged(f, section, higher_is_better[f.metric], *adjusted.get(id(f), (None, 0))) for f in found]


def pairs_of(scores: Sequence[Score], metric: str, first: str, second: str) -> Table:
    """The paired differences first - second of the finished adapters, for variance components and designs."""
    own = _finished(scores)
    for arm in (first, second):
        if (arm, metric) not in own:
            raise DataError(f"there are no scores of {metric!r} for the arm {arm!r}")
    values = _paired(own[first, metric], own[second, metric])
    if not values:
        raise DataError(f"the arms {first!r} and {second!r} have no scores of {metric!r} for the same prompt and seed")
    return _table(values)


def _finished(scores: Sequence[Score]) -> dict[tuple[str, str], list[Score]]:
    """The scores of finished adapters by arm and metric."""
    found: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.epoch == 0:
            found.setdefault((score.arm, score.metric), []).append(score)
    return found


def _key(score: Score) -> Key:
    return score.item, score.training_seed


def _cluster(score: Score) -> str:
    return str(score.prompt_index) if score.prompt_index >= 0 else score.item


def _paired(first: Sequence[Score], second: Sequence[Score]) -> Pairs:
    """first - second for the items that both have. The base has no training run: it is paired with every run."""
    other = {_key(score): score.value for score in second}
    if second[0].arm == BASE:
        base = {score.item: score.value for score in second}
        other = {_key(score): base[score.item] for score in first if score.item in base}
    elif not {s.training_seed for s in first} & {s.training_seed for s in second}:
        raise DataError(
            f"arms {first[0].arm!r} and {second[0].arm!r} have no training seed in common, so they cannot be compared "
            "in pairs; train both with the same study.training_seeds"
        )
    return {_key(s): (_cluster(s), s.value - other[_key(s)]) for s in first if _key(s) in other}


def _table(values: Pairs) -> Table:
    return statistics.tabulate((seed, cluster, value) for (_, seed), (cluster, value) in values.items())


def _interval(values: Pairs, section: EvaluateSection, *purpose: str) -> Interval:
    table = _table(values)
    found = _estimate(table, section, *purpose)
    return Interval(found.mean, found.low, found.high, int(table.counts.sum()), table.counts.shape[1])


def _estimate(table: Table, section: EvaluateSection, *purpose: str) -> Estimate:
    """The mean with its interval; a share, or a difference of shares, stays within what it can be."""
    found = statistics.estimate(table, section.resamples, section.confidence, _generator(*purpose))
    if not metrics.words(purpose[1]).share:
        return found
    least = 0.0 if purpose[0] == "mean" else -1.0
    if np.ptp(table.means[table.counts > 0]) == 0:
        found = statistics.agreed_share(table.mean, least, table.counts.shape[1], section.confidence)
    return statistics.within(found, least, 1.0)


def _generator(*purpose: str) -> np.random.Generator:
    """A generator keyed by what it is for, so that intervals do not depend on each other or on their order."""
    digest = hashlib.sha256("\x1f".join(("bootstrap", *purpose)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _judged(
    found: _Found, section: EvaluateSection, higher_is_better: bool, p_adjusted: float | None, family: int
) -> Comparison:
    """Which arm is better, if that can be told, and the sentence for it; `p_adjusted` is None for the primary metric."""
    told = found.excludes_zero
    if p_adjusted is not None:
        told = found.enough and p_adjusted < 1 - section.confidence
    verdict = NO_DIFFERENCE
    if told:
        verdict = BETTER if (found.difference.mean > 0) == higher_is_better else WORSE
    difference, smallest = found.difference, math.inf
    if found.enough:
        smallest = statistics.minimal_detectable_difference(difference.error, difference.degrees, section.confidence)
    return Comparison(
        metric=found.metric,
        first=found.first,
        second=found.second,
        difference=difference.mean,
        low=difference.low,
        high=difference.high,
        pairs=int(found.table.counts.sum()),
        prompts=found.prompts,
        training_runs=found.runs,
        primary=p_adjusted is None,
        p_value=found.p_value,
        p_adjusted=found.p_value if p_adjusted is None else p_adjusted,
        verdict=verdict,
        minimal_detectable_difference=smallest,
        sentence=_sentence(found, verdict, smallest, family if found.excludes_zero else 0),
    )


def _sentence(found: _Found, verdict: str, smallest: float, family: int) -> str:
    words, difference = metrics.words(found.metric), found.difference
    claimed = verdict != NO_DIFFERENCE
    numbers = f"{amount(difference, found.metric, claimed=claimed)}, {_scope(found)})"
    if claimed:
        better, worse = (found.first, found.second) if verdict == BETTER else (found.second, found.first)
        return f"{_called(better, first=True)} {words.better} than {_called(worse)}, by {numbers}."
    between = f"in {words.quality} between {_called(found.first)} and {_called(found.second)}"
    if not found.enough:
        return f"Too few {words.over}s (below {FEWEST_PROMPTS}) to tell a difference {between}: {numbers}."
    said = f"No detectable difference {between}: {numbers}"
    if family:
        return f"{said}; the interval excludes 0, but not after correction for {_counted(family, 'comparison')}."
    least = _size(smallest, found.metric)
    return f"{said}; this design finds differences from {least} up." if least else f"{said}."


def _scope(found: _Found) -> str:
    """What was looked at, and, with few training runs, what alone is claimed: "24 prompts, 3 training runs each"."""
    runs, single = found.runs, found.second == BASE
    counted = "one training run" if runs == 1 else f"{runs} training runs"
    text = f"{_counted(found.prompts, metrics.words(found.metric).over)}, {counted}{'' if single else ' each'}"
    if runs >= FEWEST_RUNS:
        return text
    files = {1: "this file", 2: "these two files", 4: "these four files"}[runs if single else 2 * runs]
    return f"{text}: {files}, not {'this captioning method' if single else 'these captioning methods'}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _called(arm: str, *, first: bool = False) -> str:
    if arm != BASE:
        return arm
    return "The base model" if first else "the base model"


def amount(difference: Estimate, metric: str, *, claimed: bool) -> str:
    """The start of "0.021 (0.008 to 0.034, 24 prompts)"; a claimed one without sign, the smaller end first."""
    scale, unit, digits = _unit(metric)
    values = [scale * value for value in (difference.mean, difference.low, difference.high)]
    if claimed and difference.mean < 0:
        values = [-values[0], -values[2], -values[1]]
    while claimed and digits < 6 and round(values[1], digits) == 0:
        digits += 1  # an end that is not 0 should not be printed as 0
    mean, low, high = (_number(value, digits, signed=not claimed) for value in values)
    return f"{mean}{unit} ({low} to {high}"


def _unit(metric: str) -> tuple[int, str, int]:
    """Scale, unit and digits that a difference is said with."""
    return (100, " points", 0) if metrics.words(metric).share else (1, "", 3)


def _size(smallest: float, metric: str) -> str:
    """A detectable difference as it is printed; "" where there is none to name."""
    scale, unit, digits = _unit(metric)
    if not 0 < scale * smallest < (100 if unit else math.inf):
        return ""
    return f"{max(scale * smallest, 10.0**-digits):.{digits}f}{unit}"


def _number(value: float, digits: int, *, signed: bool) -> str:
    """A number as it is printed: a true minus sign, "+" if signed, and never "-0"."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+" if signed else "") + text

"""How much an arm's scores vary: over sampling seeds, and over training seeds. Pure, on scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev, variance

from captune.types import BASE, REAL, Score, Stability


def stability(scores: Sequence[Score], metric: str) -> list[Stability]:
    """For every arm, in the scores' order: how far a metric's scores of finished adapters spread for no reason but a seed."""
    of_arm: dict[str, list[Score]] = {}
    for score in scores:
        if score.metric == metric and score.epoch == 0 and score.arm not in (BASE, REAL):
            of_arm.setdefault(score.arm, []).append(score)
    return [Stability(arm, metric, _over_seeds(own), _over_trainings(own)) for arm, own in of_arm.items()]


def _over_seeds(scores: Sequence[Score]) -> float | None:
    """The standard deviation within a prompt and training run, pooled over all of them."""
    groups: dict[tuple[int, int | str], list[float]] = {}
    for score in scores:
        prompt = score.prompt_index if score.prompt_index >= 0 else score.item
        groups.setdefault((score.training_seed, prompt), []).append(score.value)
    repeated = [values for values in groups.values() if len(values) > 1]
    if not repeated:
        return None
    spare = sum(len(values) - 1 for values in repeated)
    return math.sqrt(math.fsum(variance(values) * (len(values) - 1) for values in repeated) / spare)


def _over_trainings(scores: Sequence[Score]) -> float | None:
    """The standard deviation of the training runs' means, over the items that all runs have."""
    runs: dict[int, dict[str, float]] = {}
    for score in scores:
        runs.setdefault(score.training_seed, {})[score.item] = score.value
    shared = set.intersection(*(set(run) for run in runs.values()))
    if len(runs) < 2 or not shared:
        return None
    return stdev(fmean(run[item] for item in sorted(shared)) for run in runs.values())

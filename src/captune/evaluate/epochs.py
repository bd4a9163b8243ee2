"""Which epoch of an arm to take, by a rule that is declared before anybody looks. Pure, on scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from captune.types import EpochChoice, Score

RULE = (
    "the earliest epoch whose mean is within one standard error of the best epoch's, the error being that of their "
    "difference over the same prompts (one-standard-error rule, Breiman et al. 1984)"
)
Key = tuple[str, int]  # item and training seed


def choose_epochs(scores: Sequence[Score], metric: str, higher_is_better: bool) -> list[EpochChoice]:
    """For every arm that drew pictures of its progress, all its training seeds together: the recommended epoch.

    The best epoch is the best by chance too, and an earlier one that is as good as far as anybody can tell has learnt its
    pictures less by heart.
    """
    arms: dict[str, list[Score]] = {}
    for score in scores:
        if score.metric == metric and score.epoch > 0:
            arms.setdefault(score.arm, []).append(score)
    return [_choice(arm, metric, own, 1 if higher_is_better else -1) for arm, own in arms.items()]


def _choice(arm: str, metric: str, scores: Sequence[Score], sign: int) -> EpochChoice:
    epochs: dict[int, dict[Key, Score]] = {}
    for score in scores:
        epochs.setdefault(score.epoch, {})[score.item, score.training_seed] = score
    means = {epoch: math.fsum(s.value for s in epochs[epoch].values()) / len(epochs[epoch]) for epoch in sorted(epochs)}
    best = max(means, key=lambda epoch: (sign * means[epoch], -epoch))
    recommended = next(e for e in means if e == best or _as_good(epochs[e], epochs[best], sign))
    return EpochChoice(arm, metric, tuple(means.items()), recommended, RULE)


def _as_good(epoch: dict[Key, Score], best: dict[Key, Score], sign: int) -> bool:
    """Whether the best epoch leads by no more than one standard error, which needs at least two prompts."""
    prompts: dict[int | str, list[float]] = {}
    for key in sorted(epoch.keys() & best.keys()):
        prompt = best[key].prompt_index if best[key].prompt_index >= 0 else best[key].item
        prompts.setdefault(prompt, []).append(sign * (best[key].value - epoch[key].value))
    leads = [fmean(values) for values in prompts.values()]
    return len(leads) > 1 and fmean(leads) <= stdev(leads) / math.sqrt(len(leads))

"""Caption scores before and after a tuning -> differences with intervals over pictures, and a verdict for each metric.

Both captioners caption the same pictures, so differences are taken picture by picture, and pictures are resampled. A
picture's own scores are compared; the scores of all captions together (BLEU pools its counts) stand beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from captune.evaluate import statistics
from captune.evaluate.statistics import Estimate
from captune.metrics.captions import Scored
from captune.types import BETTER, FEWEST_PROMPTS, NO_DIFFERENCE, WORSE, CaptionDifference

PRIMARY = "CIDEr"
JUDGED = (
    PRIMARY,
    "Bleu_1",
    "Bleu_2",
    "Bleu_3",
    "Bleu_4",
    "ROUGE_L",
    "ROUGE_1",
    "ROUGE_2",
    "METEOR",
)  # higher is better
RESAMPLES, CONFIDENCE = 2000, 0.95


def compare_captions(base: Scored, tuned: Scored) -> list[CaptionDifference]:
    """Every metric that judges captions by their references, the primary one first.

    The primary metric is judged by its interval, all others by Holm's adjusted p-values. With fewer than
    `FEWEST_PROMPTS` pictures no difference is claimed.
    """
    metrics = [name for name in JUDGED if name in base.corpus and name in tuned.corpus]
    metrics = [name for name in metrics if any(name in values for values in base.per_caption.values())]
    found = {name: _estimate(name, _differences(name, base.per_caption, tuned.per_caption)) for name in metrics}
    others = [name for name in metrics if name != PRIMARY]
    adjusted = dict(zip(others, statistics.holm([found[name][0].p_value for name in others]), strict=True))
    return [_judged(name, base, tuned, *found[name], adjusted.get(name)) for name in metrics]


def beside(base: Scored, tuned: Scored) -> dict[str, tuple[float, float]]:
    """What is measured of the captions, before and after, without better or worse: their length, variety, endings, novelty."""
    return {name: (base.corpus[name], tuned.corpus[name]) for name in base.corpus if name not in JUDGED}


def _differences(
    name: str, base: Mapping[str, Mapping[str, float]], tuned: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    both = [key for key in base if name in base[key] and name in tuned.get(key, {})]
    return {key: tuned[key][name] - base[key][name] for key in both}


def _estimate(name: str, differences: Mapping[str, float]) -> tuple[Estimate, int]:
    seed = int.from_bytes(hashlib.sha256(f"captions\x1f{name}".encode()).digest()[:8], "big")
    table = statistics.tabulate((0, key, value) for key, value in differences.items())
    return statistics.estimate(table, RESAMPLES, CONFIDENCE, np.random.default_rng(seed)), len(differences)


def _judged(
    name: str, base: Scored, tuned: Scored, found: Estimate, pictures: int, p_adjusted: float | None
) -> CaptionDifference:
    """What may be said of one metric; `p_adjusted` is None for the primary one."""
    enough, outside = pictures >= FEWEST_PROMPTS, not found.low <= 0 <= found.high
    told = enough and (outside if p_adjusted is None else p_adjusted < 1 - CONFIDENCE)
    verdict = NO_DIFFERENCE if not told else BETTER if found.mean > 0 else WORSE
    numbers = (
        f"{abs(found.mean):.3f} ({min(abs(found.low), abs(found.high)):.3f} to {max(abs(found.low), abs(found.high)):.3f})"
        if told
        else f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    )
    scope = f"a picture, over {pictures} test picture{'s' * (pictures != 1)}; all captions together "
    scope += f"{base.corpus[name]:.3f} before, {tuned.corpus[name]:.3f} after"
    if told:
        said = f"The tuned captioner is {verdict} than its base in {name}, by {numbers} {scope}."
    elif not enough:
        said = f"Too few test pictures (below {FEWEST_PROMPTS}) to tell a difference in {name}: {numbers} {scope}."
    else:
        said = f"No detectable difference in {name}: {numbers} {scope}."
        if outside:
            said = said[:-1] + "; the interval excludes 0, but not after correction for several metrics."
    return CaptionDifference(
        metric=name,
        base=base.corpus[name],
        tuned=tuned.corpus[name],
        difference=found.mean,
        low=found.low,
        high=found.high,
        pictures=pictures,
        p_adjusted=found.p_value if p_adjusted is None else p_adjusted,
        primary=p_adjusted is None,
        verdict=verdict,
        sentence=said,
    )

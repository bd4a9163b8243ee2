"""bleu: n-gram precision with a penalty for brevity, as the COCO evaluation computes it.

Definition: the geometric mean of the clipped precisions of 1- to n-grams, times exp(1 - reference length / length) where
the captions are shorter; the reference length is the closest one, the shorter of two equally close. The corpus value
pools counts and lengths over all captions: it is not the mean of the captions' own values, which are near 0 for a
caption without a common 4-gram. 1e-15 is added to the numerators and 1e-9 to the denominators, as there.
Range: 0 to 1. Source: Papineni et al. 2002; Chen et al. 2015 (COCO).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from captune.metrics.captions import CaptionScores
from captune.metrics.captions._captions import LONGEST, Captions, Integers, NgramCounts

Array = npt.NDArray[np.float64]
TINY, SMALL = 1e-15, 1e-9


class Bleu:
    """Bleu_1 to Bleu_4."""

    def score(self, captions: Captions) -> CaptionScores:
        lengths, references = captions.lengths
        closest = np.array(
            [
                min((abs(int(r) - int(own)), int(r)) for r in group)[1]
                for own, group in zip(lengths, references, strict=True)
            ]
        )
        correct = np.stack([_clipped(counts, len(lengths)) for counts in captions.ngrams])
        guessed = np.stack([np.maximum(0, lengths - n) for n in range(LONGEST)])
        own = _bleu(correct, guessed, lengths, closest)
        pooled = _bleu(
            *(values.sum(axis=1, keepdims=True) for values in (correct, guessed)),
            *(values.sum(keepdims=True) for values in (lengths, closest)),
        )
        names = [f"Bleu_{n}" for n in range(1, LONGEST + 1)]
        return CaptionScores(
            dict(zip(names, pooled[:, 0].tolist(), strict=True)), dict(zip(names, own.tolist(), strict=True))
        )


def _clipped(counts: NgramCounts, candidates: int) -> Integers:
    """Per candidate, its n-grams that a reference has, each counted at most as often as the reference with most has it."""
    most = np.zeros(len(counts.candidate), dtype=np.int64)
    row, found = counts.found
    np.maximum.at(most, row[found], counts.reference_count[found])
    clipped = np.minimum(most, counts.candidate_count)
    return np.bincount(counts.candidate, weights=clipped, minlength=candidates).astype(np.int64)


def _bleu(correct: Integers, guessed: Integers, lengths: Integers, closest: Integers) -> Array:
    """BLEU-1 to BLEU-4, (n, captions)."""
    precision = np.cumprod((correct + TINY) / (guessed + SMALL), axis=0)
    exponent = 1 / np.arange(1, LONGEST + 1)[:, None]
    ratio = (lengths + TINY) / (closest + SMALL)
    # exp overflows to inf nowhere: 1 - 1/ratio is at most 0 where it is used, and exp(-large) is 0 as wanted.
    brevity = np.where(ratio < 1, np.exp(np.minimum(0, 1 - 1 / ratio)), 1.0)
    scores: Array = precision**exponent * brevity
    return scores

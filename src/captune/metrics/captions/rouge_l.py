"""rouge_l: the longest common subsequence, as the COCO evaluation computes it.

Definition: the subsequence's length over the caption's (precision) and over the reference's (recall); the best precision
and the best recall over the references, taken separately, in an F-measure with beta 1.2. The corpus value is the mean.
Not the ROUGE-L of rouge_score, which is an F1 against the best single reference.
Range: 0 to 1. Source: Lin 2004; Chen et al. 2015 (COCO).
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics.captions import CaptionScores
from captune.metrics.captions._captions import Captions

BETA = 1.2


class RougeL:
    """ROUGE_L."""

    def score(self, captions: Captions) -> CaptionScores:
        values = [_rouge_l(own, group) for own, group in zip(captions.candidates, captions.references, strict=True)]
        return CaptionScores({"ROUGE_L": sum(values) / len(values)}, {"ROUGE_L": values})


def _rouge_l(candidate: str, references: Sequence[str]) -> float:
    # Split at each single space, as COCO does: no words are one empty word, and raw text's double spaces count.
    tokens = candidate.split(" ")
    places: dict[str, int] = {}
    for place, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        words = reference.split(" ")
        common = longest_common(places, len(tokens), words)
        precision = max(precision, common / len(tokens))
        recall = max(recall, common / len(words))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(places: dict[str, int], length: int, words: Sequence[str]) -> int:
    """The length of the longest common subsequence, one addition per word (bit-parallel, Hyyrö 2004).

    `places` maps each token of the other text, of `length` tokens, to a mask of the places where it stands.
    """
    row = full = (1 << length) - 1
    for word in words:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return length - row.bit_count()

"""vocabulary: how many different words captions use, and whether they repeat one another.

Definition: Vocabulary is the number of different tokens in all captions: it grows with their number, so compare sets of
equal size only. Distinct_captions is the share of captions that no other caption equals, token by token.
Range: 0 and up; 0 to 1. Source: own.
"""

from __future__ import annotations

from collections import Counter

from captune.metrics.captions import CaptionScores
from captune.metrics.captions._captions import Captions


class Vocabulary:
    """Vocabulary and Distinct_captions, of the corpus alone."""

    def score(self, captions: Captions) -> CaptionScores:
        words = {word for text in captions.candidates for word in text.split()}
        times = Counter(captions.candidates)
        alone = sum(times[text] == 1 for text in captions.candidates)
        return CaptionScores({"Vocabulary": len(words), "Distinct_captions": alone / len(captions.candidates)})

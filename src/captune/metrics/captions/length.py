"""length: how long captions are, beside their references.

Definition: a caption's words (tokens, by the tokenizer chosen) over the mean of its references' words; for the corpus,
all words over the sum of those means. 1 is the references' own length. Far from it the captions are of another style,
and scores by references judge that style.
Range: 0 and up. Source: own.
"""

from __future__ import annotations

from captune.metrics.captions import CaptionScores
from captune.metrics.captions._captions import Captions
from captune.metrics.captions.caveats import length_ratio


class Length:
    """Length_ratio, and Words per caption."""

    def score(self, captions: Captions) -> CaptionScores:
        own, references = captions.lengths
        means = [float(group.mean()) for group in references]
        ratios = [float(words) / mean if mean else float("nan") for words, mean in zip(own, means, strict=True)]
        corpus = {"Length_ratio": length_ratio(captions), "Words": float(own.mean())}
        return CaptionScores(corpus, {"Length_ratio": ratios, "Words": own.tolist()})

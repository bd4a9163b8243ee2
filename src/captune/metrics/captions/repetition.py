"""repetition: captions that say the same again, as captioners do that never learnt to stop.

Definition: Repetition is 1 - different word pairs / word pairs of a caption (seq-rep-2); Repeated_words the share of its
words that equal the word before. The corpus values are the means; captions of one word have 0.
Range: 0 to 1; people's captions lie near 0. Source: Welleck et al. 2020 (seq-rep-n).
"""

from __future__ import annotations

from captune.metrics.captions import CaptionScores
from captune.metrics.captions._captions import Captions


class Repetition:
    """Repetition and Repeated_words."""

    def score(self, captions: Captions) -> CaptionScores:
        again, doubled = [], []
        for text in captions.candidates:
            words = text.split()
            pairs = list(zip(words, words[1:], strict=False))
            again.append(1 - len(set(pairs)) / len(pairs) if pairs else 0.0)
            doubled.append(sum(first == second for first, second in pairs) / len(words) if words else 0.0)
        columns = {"Repetition": again, "Repeated_words": doubled}
        return CaptionScores({name: sum(values) / len(values) for name, values in columns.items()}, columns)

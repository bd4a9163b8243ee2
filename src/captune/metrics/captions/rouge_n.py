"""rouge_n: overlap of words and of word pairs, by the package rouge_score.

Definition: the F1 of common 1-grams (ROUGE_1) or 2-grams (ROUGE_2) against the best single reference, without stemming.
The package tokenizes by itself (lower case, letters a to z and digits), so that its numbers are the published kind;
the tokenizer chosen here plays no part. The corpus value is the mean.
Range: 0 to 1. Source: Lin 2004.
"""

from __future__ import annotations

from captune.metrics.captions import CaptionScores, Unavailable
from captune.metrics.captions._captions import Captions


class RougeN:
    """ROUGE_1 and ROUGE_2; Unavailable without rouge_score."""

    def score(self, captions: Captions) -> CaptionScores:
        try:
            from rouge_score import rouge_scorer
        except ImportError:
            raise Unavailable("ROUGE-1 and ROUGE-2 need rouge_score: pip install 'captune[caption-metrics]'") from None
        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2"], use_stemmer=False)
        found = [
            scorer.score_multi(references, candidate)
            for candidate, references in zip(captions.texts, captions.reference_texts, strict=True)
        ]
        columns = {f"ROUGE_{n}": [float(scores[f"rouge{n}"].fmeasure) for scores in found] for n in (1, 2)}
        means = {name: sum(values) / len(values) for name, values in columns.items()}
        return CaptionScores(means, columns, {"rouge_n_tokenizer": "rouge_score's own"})

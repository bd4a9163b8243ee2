"""novelty: what captions say that the training captions did not.

Definition: Novel_captions is the share of captions that equal no training caption, token by token; Novel_4grams the share
of all captions' 4-grams that stand in no training caption. Neither is better when higher: a captioner that says only
what it has read has learned by heart, and one that says nothing of it has not learned the style.
Range: 0 to 1. Source: own, after the usual measure of memorized captions (Devlin et al. 2015).
"""

from __future__ import annotations

from captune.metrics.captions import CaptionScores, Unavailable
from captune.metrics.captions._captions import Captions

N = 4


class Novelty:
    """Novel_captions and Novel_4grams; Unavailable without training captions."""

    def score(self, captions: Captions) -> CaptionScores:
        if not captions.training:
            raise Unavailable("novelty needs the captions that the captioner was trained on: name them with --training")
        trained = captions.tokenize(captions.training)
        known_captions, known = set(trained), {ngram for text in trained for ngram in _ngrams(text)}
        novel = [float(text not in known_captions) for text in captions.candidates]
        said = [_ngrams(text) for text in captions.candidates]
        count = sum(map(len, said))
        new = [sum(ngram not in known for ngram in ngrams) for ngrams in said]
        corpus = {"Novel_captions": sum(novel) / len(novel), "Novel_4grams": sum(new) / count if count else 0.0}
        shares = [part / len(ngrams) if ngrams else float("nan") for part, ngrams in zip(new, said, strict=True)]
        columns = {"Novel_captions": novel, "Novel_4grams": shares}
        return CaptionScores(corpus, columns, {"training_captions": len(captions.training)})


def _ngrams(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + N]) for i in range(len(words) - N + 1)]

"""cider: agreement with the references, weighed by how rare an n-gram is, as the COCO evaluation computes it.

Definition: CIDEr-D without stemming, which that code calls CIDEr: per n-gram length, the cosine of tf-idf vectors with
the caption's weights clipped at the reference's, times exp(-d**2 / 72) for a difference d in length; the mean over
lengths 1 to 4 and over references, times 10. A length is counted in bigrams there, and so it is here.
The IDF comes from the references being scored: one caption alone scores 0, few are noise, and sets of different sizes do
not compare. Two equal captions of 3 words reach 7.5 and of 2 words 5, for want of 4-grams.
Range: 0 to 10. Source: Vedantam et al. 2015; Chen et al. 2015 (COCO).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from captune.metrics.captions import CaptionScores
from captune.metrics.captions._captions import LONGEST, Captions, NgramCounts

Array = npt.NDArray[np.float64]
SIGMA = 6.0


class Cider:
    """CIDEr."""

    def score(self, captions: Captions) -> CaptionScores:
        lengths, references = captions.lengths
        image = captions.ngrams[0].image
        bigrams = np.maximum(0, lengths - 1)
        reference_bigrams = np.maximum(0, np.concatenate(references) - 1)
        penalty = np.exp(-((bigrams[image] - reference_bigrams) ** 2) / (2 * SIGMA**2))
        likeness = sum(_cosine(counts, len(lengths)) for counts in captions.ngrams) / LONGEST
        total = np.bincount(image, weights=penalty * likeness, minlength=len(lengths))
        values = 10 * total / np.bincount(image, minlength=len(lengths))
        return CaptionScores({"CIDEr": float(values.mean())}, {"CIDEr": values.tolist()})


def _cosine(counts: NgramCounts, sets: int) -> Array:
    """The clipped cosine of every reference caption with its candidate, (reference captions,)."""
    seen_in = np.unique(counts.image[counts.reference] * counts.kinds + counts.reference_ngram) % counts.kinds
    documents = np.bincount(seen_in, minlength=counts.kinds)
    idf = np.log(sets) - np.log(np.maximum(1, documents))
    own = counts.candidate_count * idf[counts.candidate_ngram]
    theirs = counts.reference_count * idf[counts.reference_ngram]
    row, found = counts.found
    own_there = np.where(found, own[row] if len(own) else 0.0, 0.0)
    captions = len(counts.image)
    common = np.bincount(counts.reference, weights=np.minimum(own_there, theirs) * theirs, minlength=captions)
    own_norm = np.sqrt(np.bincount(counts.candidate, weights=own**2, minlength=sets))[counts.image]
    norm = np.sqrt(np.bincount(counts.reference, weights=theirs**2, minlength=captions)) * own_norm
    cosine: Array = np.divide(common, norm, out=np.zeros(captions), where=norm != 0)
    return cosine

"""The captions that all metrics of one scoring look at, and their n-grams, counted once for BLEU and CIDEr."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tokenize = Callable[[Sequence[str]], list[str]]
Integers = npt.NDArray[np.int64]
LONGEST = 4  # n of the longest n-gram, for BLEU and CIDEr alike


@dataclass(frozen=True)
class Captions:
    """Candidates and references, as written (`texts`, `reference_texts`) and as tokens joined by one space."""

    ids: list[str]
    texts: list[str]
    reference_texts: list[list[str]]
    candidates: list[str]
    references: list[list[str]]
    tokenize: Tokenize
    training: Sequence[str] = ()
    images: Mapping[str, Path] | None = None
    encoder: str = ""
    device: str = "auto"

    @classmethod
    def of(
        cls,
        candidates: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        tokenize: Tokenize,
        *,
        training: Sequence[str] = (),
        images: Mapping[str, Path] | None = None,
        encoder: str = "",
        device: str = "auto",
    ) -> Captions:
        """These captions, tokenized; `references` has the candidates' ids."""
        ids, texts = list(candidates), list(candidates.values())
        reference_texts = [list(references[key]) for key in ids]
        tokens = iter(tokenize([text for group in reference_texts for text in group]))
        grouped = [[next(tokens) for _ in group] for group in reference_texts]
        return cls(ids, texts, reference_texts, tokenize(texts), grouped, tokenize, training, images, encoder, device)

    @cached_property
    def ngrams(self) -> list[NgramCounts]:
        """The counts of 1- to 4-grams."""
        return _count(
            [text.split() for text in self.candidates], [[text.split() for text in group] for group in self.references]
        )

    @cached_property
    def lengths(self) -> tuple[Integers, list[Integers]]:
        """Words of every candidate, and of every reference of every candidate."""
        own = np.array([len(text.split()) for text in self.candidates], dtype=np.int64)
        return own, [np.array([len(text.split()) for text in group], dtype=np.int64) for group in self.references]


@dataclass(frozen=True)
class NgramCounts:
    """How often each n-gram of one length stands in each caption; rows are sorted by caption, then n-gram.

    N-grams are numbered from 0 to `kinds` - 1. A reference caption has a number of its own; `image` tells its set.
    """

    kinds: int
    candidate: Integers  # (rows,) which candidate
    candidate_ngram: Integers
    candidate_count: Integers
    reference: Integers  # (rows,) which reference caption
    reference_ngram: Integers
    reference_count: Integers
    image: Integers  # (reference captions,) which candidate's reference it is

    @cached_property
    def found(self) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """For every reference row, the candidate's row with the same n-gram, and whether there is one."""
        own = self.candidate * self.kinds + self.candidate_ngram
        asked = self.image[self.reference] * self.kinds + self.reference_ngram
        if not len(own):
            return np.zeros(len(asked), np.int64), np.zeros(len(asked), bool)
        row = np.minimum(np.searchsorted(own, asked), len(own) - 1)
        return row, own[row] == asked


def _count(candidates: list[list[str]], references: list[list[list[str]]]) -> list[NgramCounts]:
    """The counts per n, all captions in one array of word numbers: an n-gram's number is made of the (n-1)-gram's."""
    captions = [*candidates, *(tokens for group in references for tokens in group)]
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for tokens in captions for word in tokens], dtype=np.int64)
    caption = np.repeat(np.arange(len(captions)), [len(tokens) for tokens in captions])
    image = np.repeat(np.arange(len(references)), [len(group) for group in references])
    counted = []
    ngrams, kinds = words, max(1, len(numbers))
    for n in range(1, LONGEST + 1):
        if n > 1:
            ngrams = ngrams[:-1] * max(1, len(numbers)) + words[n - 1 :] if len(words) >= n else words[:0]
            within = caption[: len(ngrams)] == caption[n - 1 :] if len(ngrams) else np.zeros(0, bool)
            # An n-gram across two captions gets a number too, so that the arrays stay aligned; it is not counted.
            known, ngrams = np.unique(ngrams, return_inverse=True)
            kinds = max(1, len(known))
        else:
            within = np.ones(len(words), bool)
        counted.append(_rows(caption[: len(ngrams)][within], ngrams[within], kinds, len(candidates), image))
    return counted


def _rows(caption: Integers, ngrams: Integers, kinds: int, candidates: int, image: Integers) -> NgramCounts:
    keys, counts = np.unique(caption * kinds + ngrams, return_counts=True)
    caption, ngrams = np.divmod(keys, kinds)
    border = int(np.searchsorted(caption, candidates))
    return NgramCounts(
        kinds,
        *(caption[:border], ngrams[:border], counts[:border]),
        *(caption[border:] - candidates, ngrams[border:], counts[border:]),
        image,
    )

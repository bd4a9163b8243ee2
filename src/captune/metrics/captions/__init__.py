"""Caption metrics: what captions score against references, per caption and as a corpus, each with what it rests on.

These judge texts; the metrics of captune.metrics judge pictures. One file per metric and one line in the table; a metric
gets all captions at once, because BLEU pools its counts and CIDEr weighs by the whole set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from captune import parts
from captune.errors import DataError
from captune.metrics.captions import tokenizers
from captune.metrics.captions._captions import Captions
from captune.metrics.captions.caveats import warnings_about

METRICS: dict[str, str] = {
    "bleu": "captune.metrics.captions.bleu:Bleu",
    "rouge_l": "captune.metrics.captions.rouge_l:RougeL",
    "cider": "captune.metrics.captions.cider:Cider",
    "rouge_n": "captune.metrics.captions.rouge_n:RougeN",
    "meteor": "captune.metrics.captions.meteor:Meteor",
    "clip_score": "captune.metrics.captions.clip_score:ClipScore",
    "length": "captune.metrics.captions.length:Length",
    "vocabulary": "captune.metrics.captions.vocabulary:Vocabulary",
    "endings": "captune.metrics.captions.endings:Endings",
    "repetition": "captune.metrics.captions.repetition:Repetition",
    "novelty": "captune.metrics.captions.novelty:Novelty",
    "hallucination": "captune.metrics.captions.hallucination:Hallucination",
}
# Quick, and of this package alone.
DEFAULT = ("bleu", "rouge_l", "cider", "length", "vocabulary", "endings", "repetition", "hallucination")


def possible(training: bool, images: bool) -> tuple[str, ...]:
    """The names of all metrics that have what they need: training captions for novelty, pictures for CLIPScore."""
    needs = {"novelty": training, "clip_score": images}
    return tuple(name for name in METRICS if needs.get(name, True))


class Unavailable(Exception):
    """A metric cannot be had here; the message is the reason, told in the column's place."""


@dataclass(frozen=True)
class CaptionScores:
    """A metric's columns: `corpus` the value of all captions together, which need not be the mean of `per_caption`.

    `per_caption` has one value per caption in the captions' order, or is empty for a column that only a corpus has.
    """

    corpus: Mapping[str, float]
    per_caption: Mapping[str, Sequence[float]] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)  # what these scores rest on, such as an encoder


class CaptionMetric(Protocol):
    """Judges captions; made without arguments, so that what it needs is looked for only when it scores."""

    def score(self, captions: Captions) -> CaptionScores:
        """The columns of these captions; raises Unavailable with the reason where it cannot."""


@dataclass(frozen=True)
class Scored:
    """What captions scored, and what must stand beside it."""

    corpus: dict[str, float]
    per_caption: dict[str, dict[str, float]]
    warnings: list[str]
    facts: dict[str, object]  # references per caption, tokenizer, IDF corpus, decode settings, encoder
    absent: dict[str, str] = field(default_factory=dict)  # metric -> why it has no column


def score(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = DEFAULT,
    tokenizer: str = "ptb",
    *,
    training: Sequence[str] = (),
    images: Mapping[str, Path] | None = None,
    encoder: str = "",
    device: str = "auto",
    decode: Mapping[str, object] | None = None,
) -> Scored:
    """Score one caption per id against that id's references, all ids as one corpus.

    `training` are the captions that the captioner was trained on (for novelty), `images` the pictures and `encoder` a
    CLIP model (for CLIPScore), `decode` the settings that the captions were generated with: kept beside the scores.
    Raises a DataError for a candidate without references or an empty set, a RecipeError for an unknown metric or
    tokenizer. References whose id has no candidate are left out, and that is told.
    """
    _check(candidates, references, metrics)
    judged = {key: list(references[key]) for key in candidates}
    captions = Captions.of(
        candidates, judged, tokenizers.load(tokenizer), training=training, images=images, encoder=encoder, device=device
    )
    corpus: dict[str, float] = {}
    columns: dict[str, Sequence[float]] = {}
    absent: dict[str, str] = {}
    facts = _facts(captions, tokenizer, decode)
    for name in metrics:
        metric = cast(CaptionMetric, cast(Any, parts.load("caption metric", METRICS, name))())
        try:
            found = metric.score(captions)
        except Unavailable as reason:
            absent[name] = str(reason)
            continue
        corpus |= found.corpus
        columns |= found.per_caption
        facts |= found.facts
    per_caption = {
        key: {column: float(values[row]) for column, values in columns.items() if not math.isnan(values[row])}
        for row, key in enumerate(captions.ids)
    }
    told = warnings_about(captions, corpus, tokenizer, left_out=len(references.keys() - candidates.keys()))
    return Scored({name: float(value) for name, value in corpus.items()}, per_caption, told, facts, absent)


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> None:
    for name in metrics:
        if name not in METRICS:
            raise parts.unknown("caption metric", name, METRICS)
    if not candidates:
        raise DataError("there is no candidate caption to score")
    missing = [key for key in candidates if not references.get(key)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(candidates)} candidates have no reference, such as {missing[0]!r}; "
            "give every candidate at least one, under the same id"
        )


def _facts(captions: Captions, tokenizer: str, decode: Mapping[str, object] | None) -> dict[str, object]:
    counts = [len(texts) for texts in captions.reference_texts]
    fewest, most = min(counts), max(counts)
    return {
        "captions": len(captions.ids),
        "references_per_caption": fewest if fewest == most else {"fewest": fewest, "most": most},
        "references": sum(counts),
        "tokenizer": tokenizer,
        "idf_corpus": f"the references scored here: {len(captions.ids):,} sets, {sum(counts):,} captions",
        "decode": dict(decode) if decode else "not given",
    }

"""Words that stand in most of an arm's captions are the subject's own: they are left to the trigger word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from captune.errors import DataError
from captune.rules import leftovers
from captune.rules.phrases import ARTICLES, FUNCTION_WORDS, PREPOSITIONS, key, words

FEWEST = 3  # captions; in fewer, every word is in a large share
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


@dataclass(frozen=True)
class Absorbed:
    """What is taken out: words as they are compared, with the share of captions that they stand in, and phrases of them."""

    words: Mapping[str, float]
    phrases: Mapping[str, int]  # runs of these words, with the number of captions they stand in


def common(texts: Sequence[str], share: float, kept: Iterable[str] = ()) -> Absorbed:
    """The words that stand in at least `share` of the texts, but for function words and the words of `kept`.

    A phrase that stands in so many consists of such words. Raises DataError for fewer than three texts.
    """
    if len(texts) < FEWEST:
        raise DataError(f"text.absorb needs at least {FEWEST} captions to tell what they share; there are {len(texts)}")
    stay = {key(word) for text in kept for word in words(text)}
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({key(word) for word in words(text) if _counts(word)} - stay)
    # Rounded, since 0.6 x 5 is a hair more than 3 in floating point.
    found = {word: n / len(texts) for word, n in counts.most_common() if n >= round(share * len(texts), 9)}
    runs: Counter[str] = Counter()
    for text in texts:
        runs.update(set(_runs(text, found)))
    return Absorbed(found, dict(runs.most_common(20)))


def without(text: str, absorbed: Absorbed, head: str = "") -> str:
    """The text without these words, mended.

    Where they were what the caption is about ("a large red robot on the beach"), `head` takes their place.
    """

    def gap_or_word(match: re.Match[str]) -> str:
        return leftovers.GAP if _counts(match[0]) and key(match[0]) in absorbed.words else match[0]

    gapped = _WORD.sub(gap_or_word, text)
    if leftovers.GAP not in gapped:
        return text
    if head:
        gapped = re.sub(rf"{leftovers.GAP}(?:\s+{leftovers.GAP})+", leftovers.GAP, gapped)
        gapped = _SUBJECT.sub(lambda match: _headed(match, head), gapped)
    return leftovers.mended(gapped)


_CONTENT = rf"(?!{leftovers.one_of(FUNCTION_WORDS)}(?!\w))[\w'\u2019-]+"
# A first noun phrase that has lost its noun: "a large _ in front of", "this is a picture of a _ standing on".
_SUBJECT = re.compile(
    r"^((?:(?:this|there|it|here)\s+is\s+)?(?:(?:a|an|the)\s+(?:picture|photo|image|drawing)\s+of\s+)?)(a|an|the)\s+"
    rf"((?:(?:{_CONTENT}|{leftovers.GAP})\s+){{0,4}}){leftovers.GAP}"
    rf"(?={leftovers.END_OF_PHRASE}|\s+\w+ing\s+{leftovers.one_of(PREPOSITIONS | ARTICLES)}(?!\w))",
    re.IGNORECASE,
)


def _headed(match: re.Match[str], head: str) -> str:
    before, article, between = match.groups()
    if not between and article.lower() != "the":
        fitting = "an" if head[0].lower() in "aeiou" else "a"
        article = fitting.capitalize() if article[0].isupper() else fitting
    return f"{before}{article} {between}{head}"


def _counts(word: str) -> bool:
    return word.lower() not in FUNCTION_WORDS and any(c.isalpha() for c in word) and len(word) > 1


def _runs(text: str, found: Mapping[str, float]) -> list[str]:
    """The longest runs of absorbed words that nothing but spaces part."""
    runs: list[str] = []
    end = -1
    for match in _WORD.finditer(text):
        if not (_counts(match[0]) and key(match[0]) in found):
            continue
        if runs and end >= 0 and text[end : match.start()].isspace():
            runs[-1] += f" {match[0].lower()}"
        else:
            runs.append(match[0].lower())
        end = match.end()
    return runs

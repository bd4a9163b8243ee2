"""Takes words out of a caption and mends what is left: no "with and", no double comma, no article without a noun."""

from __future__ import annotations

import re
from collections.abc import Callable

from captune.rules.phrases import ARTICLES, CONJUNCTIONS, COPULAS, POSSESSIVES, PREPOSITIONS, TAKE_AN_OBJECT

GAP = "\x00"  # where something was taken out; only its neighbours are mended


def one_of(*groups: frozenset[str]) -> str:
    """A pattern that finds any of the words."""
    return "(?:" + "|".join(sorted(frozenset().union(*groups), key=lambda w: (-len(w), w))) + ")"


END_OF_PHRASE = rf"(?=\s*(?:[,.;:!?]|$|{one_of(PREPOSITIONS, CONJUNCTIONS, COPULAS, TAKE_AN_OBJECT)}(?!\w)))"
# What stands before a gap and means nothing without it; the gap widens over it.
_WIDENED = [
    (re.compile(rf"{GAP}(?:[\s-]*{GAP})+"), GAP),
    (re.compile(rf"{GAP}\s+{one_of(CONJUNCTIONS)}\s+{GAP}", re.I), GAP),
    (re.compile(rf"{GAP}\s*,\s*{GAP}"), GAP),
    (re.compile(rf"(?<!\w){one_of(ARTICLES, POSSESSIVES)}\s+{GAP}{END_OF_PHRASE}", re.I), GAP),
    (
        re.compile(
            rf"(?<!\w)(?:there|this|it|that|which)\s+{one_of(COPULAS)}\s+(?:{one_of(ARTICLES)}\s+)?{GAP}{END_OF_PHRASE}",
            re.I,
        ),
        GAP,
    ),
    (re.compile(rf"{GAP}\s+{one_of(CONJUNCTIONS)}(?=\s+{one_of(PREPOSITIONS)}(?!\w))", re.I), GAP),
    (
        re.compile(rf"((?<!\w){one_of(TAKE_AN_OBJECT, PREPOSITIONS)})\s+{GAP}\s+{one_of(CONJUNCTIONS)}(?=\s+\w)", re.I),
        r"\1",
    ),
    (re.compile(rf"{GAP}\s+{one_of(CONJUNCTIONS)}(?=\s*(?:[,.;]|$))", re.I), GAP),
    (re.compile(rf"{GAP}\s+{one_of(COPULAS)}\s+{GAP}", re.I), GAP),
    (
        re.compile(
            rf"(?<!\w){one_of(PREPOSITIONS, TAKE_AN_OBJECT, CONJUNCTIONS, COPULAS)}\s+{GAP}{END_OF_PHRASE}", re.I
        ),
        GAP,
    ),
    (re.compile(rf"(^|[,.;])\s*{GAP}\s+{one_of(CONJUNCTIONS)}(?!\w)", re.I), rf"\1 {GAP}"),
]


def without(text: str, pattern: re.Pattern[str], taken: Callable[[re.Match[str]], bool] = lambda _: True) -> str:
    """The text without the finds of the pattern that are to be `taken`, mended; unchanged where there are none."""
    gapped = pattern.sub(lambda match: GAP if taken(match) else match[0], text)
    return mended(gapped) if GAP in gapped else text


def mended(text: str) -> str:
    """A text with gaps as one without.

    >>> mended(f"a {GAP} dog with {GAP} and a {GAP} {GAP}, on the beach")
    'a dog, on the beach'
    """
    while True:
        before = text
        for pattern, put in _WIDENED:
            text = pattern.sub(put, text)
        if text == before:
            break
    text = re.sub(rf"(?<!\w)(an?)\s+{GAP}\s*(?=(\w))", _agreeing, text, flags=re.I)
    return punctuated(text.replace(GAP, " "))


def punctuated(text: str) -> str:
    """The text with single spaces, no space before a mark, no two marks in a row, and none in front."""
    text = " ".join(text.split())
    text = re.sub(r"\s+([,.;:!?])", r"\1", text)
    text = re.sub(r"[,;:](?:\s*[,;:])+", ",", text)
    text = re.sub(r"[,;:]+\s*([.!?])", r"\1", text)
    text = re.sub(r"([.!?])(?:\s*[.,;:])+(?=\s|$)", r"\1", text)
    return re.sub(r"^[\s,.;:]+|[\s,;:]+$", "", text)


def _agreeing(match: re.Match[str]) -> str:
    """a or an, by the letter that follows now."""
    article = "an" if match[2].lower() in "aeiou" else "a"
    return (article.capitalize() if match[1][0].isupper() else article) + " "

"""endings: whether captions come to an end, or stop in the middle because their length was up.

Definition: a caption ends properly if it has words, does not end in a comma, colon, semicolon, dash, slash, ampersand or
opening bracket, and its last word is not one that must be followed by another (articles, "of", "with", "and", ...).
Full stops are not asked for: many captioners and references do without. A caption cut before a word that could have been
its last is not noticed.
Range: 0 to 1, the share of captions. Source: own.
"""

from __future__ import annotations

import re

from captune.metrics.captions import CaptionScores
from captune.metrics.captions._captions import Captions

_DANGLING = (
    "a an the and or but nor of with from at for as into onto than is are was were be being its his their my our your while "
    "which whose because very some several"
)
_NEEDS_MORE = frozenset(_DANGLING.split())
_LAST_WORD = re.compile(r"([\w']+)\W*$")


class Endings:
    """Ends_properly."""

    def score(self, captions: Captions) -> CaptionScores:
        values = [float(ends_properly(text)) for text in captions.texts]
        return CaptionScores({"Ends_properly": sum(values) / len(values)}, {"Ends_properly": values})


def ends_properly(text: str) -> bool:
    """Whether the caption looks whole at its end."""
    last = _LAST_WORD.search(text)
    if last is None or text.rstrip()[-1] in ",:;-–—/&([{+":
        return False
    return last[1].lower() not in _NEEDS_MORE

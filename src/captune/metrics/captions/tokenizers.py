"""How a caption becomes tokens, by name; scores by different tokenizers are different scores."""

from __future__ import annotations

import re
from collections.abc import Sequence

from captune import parts
from captune.metrics.captions._captions import Tokenize

TOKENIZERS: dict[str, str] = {
    "ptb": "captune.metrics.captions.ptb:tokenize_all",
    "simple": "captune.metrics.captions.tokenizers:simple",
    "none": "captune.metrics.captions.tokenizers:none",
}
_WORDS = re.compile(r"[a-z0-9']+")


def load(name: str) -> Tokenize:
    """The tokenizer of that name; a RecipeError lists the known ones otherwise."""
    tokenize: Tokenize = parts.load("tokenizer", TOKENIZERS, name)
    return tokenize


def simple(texts: Sequence[str]) -> list[str]:
    """Lower case, and only letters a to z, digits and apostrophes; near PTB in its scores, and needs no rules."""
    return [" ".join(_WORDS.findall(text.lower())) for text in texts]


def none(texts: Sequence[str]) -> list[str]:
    """The texts as they are, case and punctuation included, for texts that were tokenized before."""
    return list(texts)

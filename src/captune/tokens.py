"""Captions in the base's own tokens: how long they are, and what of them is never read. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune import weights
from captune.errors import ModelError
from captune.recipe import BaseSection

# The part of a base's folder whose tokenizer decides how much of a text is read.
TOKENIZERS = {"sd": "tokenizer", "sdxl": "tokenizer", "flux": "tokenizer_2"}

# Where the tokenizers of a base in a single file are had from: hub name, folder in it, what differs. CLIP's vocabulary is
# one and the same everywhere; OpenCLIP (SD 2.x, SDXL's second) fills up with token 0, which is "!".
_CLIP = "openai/clip-vit-large-patch14"
_OPEN_CLIP = (_CLIP, "", {"pad_token": "!"})
TOKENIZER_SOURCES: dict[tuple[str, str], tuple[str, str, dict[str, str]]] = {
    ("sd1", "tokenizer"): (_CLIP, "", {}),
    ("sd2", "tokenizer"): _OPEN_CLIP,
    ("sdxl", "tokenizer"): (_CLIP, "", {}),
    ("sdxl", "tokenizer_2"): _OPEN_CLIP,
    ("flux", "tokenizer"): (_CLIP, "", {}),
    ("flux", "tokenizer_2"): ("black-forest-labs/FLUX.1-schnell", "tokenizer_2", {}),
}


@dataclass(frozen=True)
class Length:
    """A text's tokens, start and end included, how many are read, and the words beyond that."""

    count: int
    limit: int
    lost: str = ""

    @property
    def over(self) -> int:
        """How many tokens are not read."""
        return max(0, self.count - self.limit)


class Tokens:
    """The base's tokenizer, as a ruler and a knife."""

    def __init__(self, tokenizer: Any, chunks: int = 1) -> None:
        self._tokenizer = tokenizer
        self._marks = int(tokenizer.num_special_tokens_to_add())
        longest = int(tokenizer.model_max_length)
        self.limit = longest + (chunks - 1) * (longest - self._marks)  # one start and one end for all: 77, 152, 227

    @classmethod
    def load(cls, base: BaseSection, chunks: int = 1) -> Tokens:
        """The tokenizer of the base that the section names; a ModelError says what is missing and how to get it.

        `chunks` is train.caption_chunks: how often its length is read.
        """
        from transformers import AutoTokenizer

        place, part = weights.locate(base.model, base.family), TOKENIZERS[base.family]
        local = Path(place).exists()
        options: dict[str, str] = {}
        if Path(place).is_file():  # a checkpoint: its tokenizer lies beside it, or is one that all of its kind have
            beside = Path(place).parent
            local = (beside / part).is_dir()
            version = {"sd": "sd1"}.get(base.family, base.family)
            place, part, options = (str(beside), part, {}) if local else TOKENIZER_SOURCES[version, part]
        if Path(place).is_dir() and not (Path(place) / part).is_dir():
            lacking = part if (Path(place) / "model_index.json").is_file() else "model_index.json"
            raise ModelError(f"{place} is not a diffusers folder: it has no {lacking}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                place, subfolder=part, revision=None if local else base.revision, local_files_only=local, **options
            )
        except Exception as error:
            raise weights.loading_failed(place, "tokenizer", error) from error
        return cls(tokenizer, chunks)

    def measure(self, text: str) -> Length:
        """How long the text is, and what of it is lost."""
        starts = self._starts(text)
        count, read = len(starts) + self._marks, self.limit - self._marks
        return Length(count, self.limit, text[starts[read] :].strip() if count > self.limit else "")

    def cut(self, text: str, count: int) -> str:
        """As much of the text as `count` tokens hold, start and end included; never in the middle of a word."""
        starts = self._starts(text)
        keep = max(0, count - self._marks)
        if len(starts) <= keep:
            return text
        end = starts[keep]
        if end and not text[end - 1].isspace() and not text[end].isspace():  # within a word, or before a mark
            before = text[:end]
            end = len(before.rstrip()) if not text[end].isalnum() else max(before.rfind(" "), 0)
        return text[:end].rstrip(" ,;:-")

    def _starts(self, text: str) -> list[int]:
        """Where each token begins in the text."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [int(start) for start, _ in found["offset_mapping"]]

"""What a picture is called: the words of its file's name, or those of kohya's folder `30_word class` that it lies in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from captune import captions
from captune.captioners import Sources
from captune.errors import DataError
from captune.recipe import CaptionerSection
from captune.types import Example

# What cameras and phones write before a number.
_CAMERAS = frozenset(
    {"dsc", "dscf", "dscn", "img", "image", "imag", "photo", "picture", "pic", "pxl", "mvimg", "screenshot", "untitled"}
)
_KOHYA = re.compile(r"\d+_(.+)")
_NUMBERED = re.compile(r"^([^\W\d]+)-?\d+$")
_NUMBER = re.compile(r"[\d\s().,#-]+")


class Filename:
    """Reads captions off names."""

    settings: dict[str, object] = {}

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Filename:
        """The reader; it has no options."""
        return cls()

    def sources(self, examples: Sequence[Example]) -> Sources:
        """Nothing is read but names; a DataError tells which of them say nothing."""
        silent = [example.source.name for example in examples if not words_of(example.source)]
        if silent:
            raise DataError(
                f"{len(silent)} of {len(examples)} file names have no words in them: {captions.some(silent)}; give them "
                "telling names, or put them into a folder named as kohya's, such as `10_jefpajot man`"
            )
        return Sources()

    def caption(self, examples: Sequence[Example]) -> list[str]:
        """The words of each picture's name."""
        return [words_of(example.source) for example in examples]


def words_of(path: Path) -> str:
    """The name's words without extension, underscores and numbers at either end; else those of a kohya folder; or ""."""
    words = _spaced(path.stem)
    if words and not all(word.lower() in _CAMERAS for word in words.split()):
        return words
    folder = _KOHYA.fullmatch(path.parent.name)
    return _spaced(folder[1]) if folder else ""


def _spaced(name: str) -> str:
    """The words between underscores, or between hyphens where these stand for spaces; lone numbers are left out."""
    text = name.replace("_", " ")
    if " " not in text.strip():
        text = text.replace("-", " ")
    words = text.split()
    while words and _NUMBER.fullmatch(words[-1]):
        words.pop()
    while words and _NUMBER.fullmatch(words[0]):
        words.pop(0)
    if words:
        words[-1] = _NUMBERED.sub(r"\1", words[-1])
    return " ".join(words)

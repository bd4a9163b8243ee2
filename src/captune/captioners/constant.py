"""One text for every picture: what captions are worth is seen against such an arm."""

from __future__ import annotations

from collections.abc import Sequence

from captune import captions
from captune.captioners import Sources
from captune.recipe import CaptionerSection
from captune.types import Example


class Constant:
    """Says the recipe's text, whatever the picture."""

    def __init__(self, text: str) -> None:
        self._text = captions.one_line(text)

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Constant:
        """The captioner that the section describes."""
        return cls(section.text)

    @property
    def settings(self) -> dict[str, object]:
        return {"text": self._text}

    def sources(self, examples: Sequence[Example]) -> Sources:
        """Nothing is read."""
        return Sources()

    def caption(self, examples: Sequence[Example]) -> list[str]:
        """The text, once for each picture."""
        return [self._text] * len(examples)

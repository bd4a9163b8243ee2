"""What is examined: one set of captions, and what is known of how they will be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from captune.recipe import TrainSection
from captune.tokens import Tokens

ENOUGH = 4  # captions, before what they have in common is worth a word


@dataclass(frozen=True)
class Told:
    """One set of captions, by the picture's id, as they are trained on."""

    texts: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)  # id -> the file to name
    trigger_word: str = ""
    class_word: str = ""
    other_triggers: Mapping[str, frozenset[str]] = field(default_factory=dict)  # id -> words that call other subjects
    train: TrainSection = TrainSection()
    tokens: Tokens | None = None
    by_a_person: bool = True

    def file(self, name: str) -> str:
        return self.files.get(name, name)

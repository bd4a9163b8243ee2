"""The captions of all arms beside every training picture, what the base does not read of them struck out."""

from __future__ import annotations

from dataclasses import dataclass

from captune.report.grids import Shown, example_shown, side_of
from captune.report.story import Story
from captune.report.wording import Column, Pieces, columns_of, marked
from captune.tokens import Length
from captune.types import BASE


@dataclass(frozen=True)
class Said:
    """One arm's caption: what is read, what is lost, and its length in words ("98 tokens, the last 21 are not read")."""

    column: Column
    read: Pieces
    lost: Pieces
    length: str


@dataclass(frozen=True)
class Captioned:
    """One training picture with every arm's caption."""

    shown: Shown
    name: str
    held_out: bool
    captions: list[Said]


def captioned(story: Story) -> list[Captioned]:
    """Every picture, the held-out ones last."""
    by_id = {arm: {caption.example_id: caption for caption in found} for arm, found in story.captions.items()}
    word, found = story.recipe.dataset.trigger_word, []
    for example in [*story.examples, *story.held_out]:
        captions = []
        for column in columns_of(story):
            caption = by_id.get(column.name, {}).get(example.id)
            if column.name != BASE and caption is not None:
                tokens = story.tokens.get(column.name, {}).get(example.id)
                read, lost = parted(caption.text, tokens.lost if tokens else "")
                captions.append(Said(column, marked(read, word), marked(lost, word) if lost else [], _length(tokens)))
        shown = example_shown(example, side_of(story))
        found.append(Captioned(shown, example.id, example in story.held_out, captions))
    return found


def parted(text: str, lost: str) -> tuple[str, str]:
    """The text before and from the lost words on.

    A tokenizer may give them back with other spaces or letters, so it is their number of letters that counts.

    >>> parted("a red fox, at Dawn", "at dawn")
    ('a red fox, ', 'at Dawn')
    """
    letters, start = sum(not c.isspace() for c in lost), len(text)
    while letters and start:
        start -= 1
        letters -= not text[start].isspace()
    return text[:start], text[start:]


def _length(tokens: Length | None) -> str:
    if tokens is None:
        return ""
    lost = "the last one is not read" if tokens.over == 1 else f"the last {tokens.over} are not read"
    return f"{tokens.count} tokens, {lost}" if tokens.over else f"{tokens.count} tokens"

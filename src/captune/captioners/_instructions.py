"""What a model that follows instructions is told to do, with the words and tags of a picture in their places."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from captune import parts
from captune.errors import RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

if TYPE_CHECKING:
    from captune.captioners import Sources

PLAIN = (
    "Describe this picture in one or two plain sentences: who or what is seen, what it looks like, what it does, where it "
    "is, and how the picture is made (photograph, drawing, light, angle). Say only what can be seen, and begin with what "
    "is seen, not with words about the picture."
)
PLACES = {  # which words may stand in braces in which option
    "vlm": ("prompt", ("trigger_word", "class_word", "tags", "file_name")),
    "openai_api": ("prompt", ("trigger_word", "class_word", "tags", "file_name")),
    "constant": ("text", ("trigger_word", "class_word")),
}
_NAMED = re.compile(r"\{(\w+)\}")


def check(section: CaptionerSection) -> None:
    """Raise a RecipeError for a word in braces that nothing fills, a file that cannot be read, an option without use."""
    if section.name not in PLACES:
        return
    option, known = PLACES[section.name]
    text = _text(section, option)
    for word in _NAMED.findall(text):
        if word not in known:
            guess = parts.nearest(word, known)
            hint = f"; did you mean {{{guess}}}?" if guess else ""
            names = ", ".join(f"{{{name}}}" for name in known)
            raise RecipeError(f"captioner.{option}: nothing fills {{{word}}}{hint} (known: {names})")
    unread = [name for name in ("extension", "folder") if name in section.set_apart]
    if unread and "{tags}" not in text:
        raise RecipeError(f"captioner.{unread[0]} is only read for {{tags}}, which captioner.{option} does not name")


def filled(section: CaptionerSection, trigger_word: str = "", class_word: str = "") -> CaptionerSection:
    """The section with its instruction read, and with the words in it that are the same for every picture."""
    if section.name not in PLACES:
        return section
    option, _ = PLACES[section.name]
    text = _text(section, option)
    for name, word in (("trigger_word", trigger_word), ("class_word", class_word)):
        if f"{{{name}}}" in text and not word.strip():
            raise RecipeError(f"captioner.{option} names {{{name}}}, and dataset.{name} is not given")
        text = text.replace(f"{{{name}}}", " ".join(word.split()))
    return section.model_copy(update={option: text, "prompt_file": None})


def check_same_for_all(section: CaptionerSection) -> None:
    """Raise a RecipeError for an instruction that differs from picture to picture, which tuning does not fill."""
    if section.name in PLACES:
        option, _ = PLACES[section.name]
        for word in ("tags", "file_name"):
            if f"{{{word}}}" in _text(section, option):
                raise RecipeError(f"captioner.{option} names {{{word}}}: a tuning says the same of every picture")


def _text(section: CaptionerSection, option: str) -> str:
    if option == "prompt" and section.prompt_file is not None:
        try:
            text = section.prompt_file.expanduser().read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"captioner.prompt_file = {str(section.prompt_file)!r} cannot be read: {error}") from None
        if not text:
            raise RecipeError(f"captioner.prompt_file = {str(section.prompt_file)!r} is empty")
        return text
    text = str(getattr(section, option))
    return text.strip() or (PLAIN if option == "prompt" else "")


class Instruction:
    """An instruction with places for what differs from picture to picture: {tags} and {file_name}."""

    def __init__(self, section: CaptionerSection) -> None:
        from captune.captioners.sidecar import Sidecar

        self.text = section.prompt
        self._tags = Sidecar.load(section) if "{tags}" in self.text else None

    def sources(self, examples: Sequence[Example]) -> Sources:
        """The files that tags are read from; a DataError names pictures without."""
        from captune.captioners import Sources

        return self._tags.sources(examples) if self._tags is not None else Sources()

    def of(self, example: Example) -> str:
        """What the model is told about this picture."""
        words = {"file_name": example.source.stem}
        if self._tags is not None:
            words["tags"] = self._tags.caption([example])[0]
        return _NAMED.sub(lambda found: words.get(found[1], found[0]), self.text)

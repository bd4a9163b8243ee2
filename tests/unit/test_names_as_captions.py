"""Captions that need no model: what a picture is called, and one text for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune import captioners
from captune.captioners.filename import words_of
from captune.errors import DataError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example


def example(path: str) -> Example:
    return Example(Path(path).stem, Path(path), Path(path), 8, 8, 8, 8, 1, "")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("photos/red_dress_on_a_beach.jpg", "red dress on a beach"),
        ("photos/017_red dress (2).jpg", "red dress"),
        ("photos/red-dress-12.png", "red dress"),
        ("photos/a well-lit room 3.png", "a well-lit room"),
        ("photos/cat7.png", "cat"),
        ("photos/r2d2.png", "r2d2"),
        ("photos/été_à_paris.webp", "été à paris"),
        ("photos/00042.jpg", ""),
        ("photos/IMG_2031.jpg", ""),
        ("photos/DSC01234.jpg", ""),
        ("30_jefpajot man/00042.jpg", "jefpajot man"),
        ("30_jefpajot man/at_the_beach.jpg", "at the beach"),
    ],
)
def test_words_of_a_name(path: str, words: str) -> None:
    assert words_of(Path(path)) == words


def test_names_without_words_are_told_before_anything_is_written() -> None:
    reader = captioners.load(CaptionerSection(name="filename"))
    with pytest.raises(DataError, match="1 of 2 file names have no words in them: IMG_2031.jpg"):
        reader.sources([example("photos/IMG_2031.jpg"), example("photos/red dress.jpg")])
    assert reader.caption([example("photos/red dress.jpg")]) == ["red dress"]


def test_constant_says_one_text_with_its_words() -> None:
    section = CaptionerSection(name="constant", text="a photo of {trigger_word}\n{class_word}")
    constant = captioners.load(section, words=captioners.Words("jefpajot", "man"))
    assert constant.caption([example("0.png"), example("1.png")]) == ["a photo of jefpajot man"] * 2
    assert constant.settings == {"text": "a photo of jefpajot man"}
    with pytest.raises(RecipeError, match=r"captioner.text names \{class_word\}, and dataset.class_word is not given"):
        captioners.load(section, words=captioners.Words("jefpajot"))
    with pytest.raises(RecipeError, match=r"captioner.text: nothing fills \{tags\}"):
        captioners.check(CaptionerSection(name="constant", text="{tags}"))

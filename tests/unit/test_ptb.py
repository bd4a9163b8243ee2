"""The PTB tokenizer gives the tokens of the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.metrics.captions import ptb, tokenizers

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ptb_tokens.json").read_text(encoding="utf-8"))["cases"]
SHARED = Path(__file__).parents[3] / "shared" / "data" / "metrics" / "ptb_tokenizer_cases.json"


@pytest.mark.parametrize("text", GOLDEN)
def test_tokens_are_those_of_the_original(text: str) -> None:
    assert ptb.tokenize_all([text]) == [GOLDEN[text]]


def test_tokens_of_the_reference_cases() -> None:
    if not SHARED.exists():
        pytest.skip("the reference cases are not here")
    cases = json.loads(SHARED.read_text(encoding="utf-8"))["cases"]
    assert ptb.tokenize_all([case["text"] for case in cases]) == [case["ptb"] for case in cases]


@pytest.mark.parametrize("first", ["dog.", "no.", "I.", "(see", "2", "<a", "Jan.", ".", "'til", "5", "a", "no"])
def test_remembered_words_give_the_same_tokens_as_the_rules(first: str) -> None:
    for second in ("The", "5", "1/2", ".", "b>", "dog,", "'90s", "...", "555-1234", "\u00a0x", "no."):
        for third in ("", " now", " 5", " .", " The", " b>"):
            text = f"{first} {second}{third}"
            assert ptb.tokenize(text) == list(ptb.read(text)), text


def test_a_captions_tokens_do_not_depend_on_its_neighbours() -> None:
    texts = list(GOLDEN)
    assert ptb.tokenize_all(texts) == [ptb.tokenize_all([text])[0] for text in texts]


def test_line_breaks_and_blanks_are_one_space() -> None:
    assert ptb.tokenize_all(["two\nlines", "a\t b  c ", "", " \n "]) == ["two lines", "a b c", "", ""]


def test_long_text_takes_no_time_to_speak_of() -> None:
    text = "1-" * 2000 + "a" * 2000 + "." * 2000 + "<a b" * 500 + "a.b" * 1000 + "x@" * 1000
    assert ptb.tokenize(text)


def test_simple_keeps_letters_digits_and_apostrophes() -> None:
    assert tokenizers.simple(["A Dog's 2-year-old café!"]) == ["a dog's 2 year old caf"]


def test_none_changes_nothing() -> None:
    assert tokenizers.none(["A  Dog. "]) == ["A  Dog. "]

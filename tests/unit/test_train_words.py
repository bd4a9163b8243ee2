"""What is read of a caption at a visit, and how the text encoder reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from captune.errors import RecipeError
from captune.families import Family, Reading
from captune.tokens import Tokens
from captune.train import words
from tests import tiny_sd
from tests.training import TEXTS, WHO, Said, load, section, train


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("epsilon"))


def test_kept_parts_stay_and_the_others_change_places() -> None:
    shuffled = section(shuffle_caption=True, keep_tokens=1)
    seen = {words.said(shuffled, "zorblax, a ,b,c", (0, "x", n)) for n in range(80)}
    assert seen == {f"zorblax, {p}" for p in ("a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a")}
    assert words.said(shuffled, "zorblax, a ,b,c", WHO) == words.said(shuffled, "zorblax, a ,b,c", WHO)
    assert words.said(section(), "zorblax, a ,b,c", WHO) == "zorblax, a ,b,c"


def test_parts_are_left_out_as_often_as_the_recipe_says() -> None:
    thinned = section(tag_dropout=0.25, keep_tokens=1)
    said = [words.said(thinned, "zorblax, a, b, c, d", (0, "x", n)).split(", ") for n in range(300)]
    assert all(parts[0] == "zorblax" and parts[1:] == sorted(parts[1:]) for parts in said)
    assert np.mean([len(parts) - 1 for parts in said]) / 4 == pytest.approx(0.75, abs=0.05)


def test_a_dropped_caption_is_dropped_whole() -> None:
    assert {words.said(section(caption_dropout=0.5, shuffle_caption=True), "a", (0, "x", n)) for n in range(40)} == {
        "a",
        "",
    }


def test_what_the_options_do_to_the_captions_is_said(family: Family, tmp_path: Path) -> None:
    said = Said()
    train(family, tmp_path / "a", progress=said, flip=True)
    assert said.lines == [
        "arm: train.flip mirrors pictures, not words: 1 of 3 captions say left or right, such as "
        f"{TEXTS[0]!r}"
    ]  # fmt: skip
    said = Said()
    train(family, tmp_path / "b", texts=("a ball", "a, ball", "c"), progress=said, shuffle_caption=True, keep_tokens=1)
    assert said.lines[1].endswith("no caption has two of them beyond the 1 kept")


def test_text_that_varies_keeps_its_encoder_and_text_that_does_not_releases_it(family: Family) -> None:
    words.Words(section(), family, TEXTS)
    assert family._released == set(family.releasable)  # type: ignore[attr-defined]
    words.Words(section(shuffle_caption=True), family, TEXTS)
    assert family._released == {"vae"}  # type: ignore[attr-defined]


def test_a_varying_text_is_encoded_as_a_cached_one(family: Family) -> None:
    for reading in ({}, {"clip_skip": 2}, {"caption_chunks": 3}):
        once = words.Words(section(**reading), family, TEXTS)(TEXTS)
        each = words.Words(section(shuffle_caption=True, **reading), family, TEXTS)(TEXTS)
        torch.testing.assert_close(each.encoder_hidden_states, once.encoder_hidden_states)
        assert not each.encoder_hidden_states.requires_grad


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_chunks_read_as_many_tokens_as_the_ruler_says(family: Family, chunks: int) -> None:
    ruler = Tokens(tiny_sd.clip_tokenizer(32), chunks)
    assert ruler.limit == {1: 32, 2: 62, 3: 92}[chunks]
    assert family.encode_prompts(["a"], Reading(chunks=chunks)).encoder_hidden_states.shape[1] == ruler.limit
    letters = " ".join("abcdefghij" * 10)
    found = ruler.measure(letters)
    assert (found.count, found.over) == (102, 102 - ruler.limit)
    changed = f"{letters[: 2 * (ruler.limit - 3)]}z{letters[2 * (ruler.limit - 3) + 1 :]}"  # the last that is read
    beyond = f"{letters[: 2 * (ruler.limit - 2)]}z{letters[2 * (ruler.limit - 2) + 1 :]}"
    own, inside, outside = (
        family.encode_prompts([text], Reading(chunks=chunks)).encoder_hidden_states
        for text in (letters, changed, beyond)
    )
    assert not torch.equal(own, inside) and torch.equal(own, outside)


def test_a_layer_that_is_not_there_is_refused(family: Family, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.clip_skip = 3: this base's text encoder has 2 layers"):
        train(family, tmp_path, clip_skip=3)

"""Captions as text: the trigger word's place, and the files captions stand in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune import captions
from captune.errors import DataError
from captune.types import Caption


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("a dog on a beach", "prefix", "jefpajot, a dog on a beach"),
        ("a dog on a beach", "replace_class", "a jefpajot on a beach"),
        ("a dog on a beach", "none", "a dog on a beach"),
        ("A DOG and a dog", "replace_class", "A jefpajot and a dog"),
        ("dogs on a beach", "replace_class", "jefpajot, dogs on a beach"),
        ("a hotdog", "replace_class", "jefpajot, a hotdog"),
        ("Jefpajot on a beach", "prefix", "Jefpajot on a beach"),
        ("jefpajots on a beach", "prefix", "jefpajot, jefpajots on a beach"),
        ("a (jefpajot), smiling", "prefix", "a (jefpajot), smiling"),
        ("", "prefix", "jefpajot"),
        ("  \n", "replace_class", "jefpajot"),
    ],
)
def test_trigger_word_is_put_in_where_it_is_missing(text: str, how: captions.Trigger, expected: str) -> None:
    assert captions.with_trigger_word(text, "jefpajot", "dog", how) == expected


def test_trigger_of_several_words_and_signs() -> None:
    assert captions.with_trigger_word("a SKS  dog", "sks dog", "dog", "prefix") == "a SKS  dog"
    assert captions.with_trigger_word("a dog", "sks dog", "dog", "replace_class") == "a sks dog"
    assert captions.with_trigger_word("a man", r"<\1s>", "man", "replace_class") == r"a <\1s>"
    assert captions.with_trigger_word("a fire hydrant", "x", "fire hydrant", "replace_class") == "a x"


def test_without_a_trigger_word_nothing_changes() -> None:
    assert captions.with_trigger_word("a dog ", "", "dog", "prefix") == "a dog "
    assert captions.with_trigger_word("a dog", "x", "", "replace_class") == "x, a dog"


words = st.one_of(st.text(max_size=12), st.text("ab -.(dog", max_size=8))


@settings(deadline=None)
@given(text=words, trigger=words, class_word=words, how=st.sampled_from(["prefix", "replace_class", "none"]))
def test_putting_the_trigger_word_in_twice_is_putting_it_in_once(
    text: str, trigger: str, class_word: str, how: captions.Trigger
) -> None:
    once = captions.with_trigger_word(text, trigger, class_word, how)
    assert captions.with_trigger_word(once, trigger, class_word, how) == once
    assert captions.with_trigger_word(once, trigger, class_word, "prefix") == (
        captions.with_trigger_word(text, trigger, class_word, "prefix") if how == "none" else once
    )
    if trigger.strip() and how != "none":
        assert captions.has_word(once, trigger)


def test_sidecar_is_found_by_the_name_without_the_last_extension(tmp_path: Path) -> None:
    (tmp_path / "photo.v2.txt").write_text("a  dog\non a beach\n")
    assert captions.read_sidecar(tmp_path / "photo.v2.jpg", ".txt") == "a dog on a beach"
    assert captions.read_sidecar(tmp_path / "photo.v2.jpg", "txt") == "a dog on a beach"
    assert captions.read_sidecar(tmp_path / "photo.jpg", ".txt") is None
    (tmp_path / "empty.txt").write_text(" \n")
    assert captions.read_sidecar(tmp_path / "empty.jpg", ".txt") == ""
    assert captions.read_sidecar(Path("elsewhere/photo.v2.png"), ".txt", tmp_path) == "a dog on a beach"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_of_every_editor_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("ein Hündchen\r\n".encode(encoding))
    assert captions.read_text(tmp_path / "a.txt") == "ein Hündchen"


def test_text_in_an_unknown_encoding_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("ein Hündchen".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 .*save it as UTF-8"):
        captions.read_text(tmp_path / "a.txt")


def test_metadata_is_read_by_file_name(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(
        '{"file_name": "0.jpg", "text": "a dog"}\n\n'
        '{"file_name": "sub\\\\1.jpg", "caption": "a  cat"}\n'
        '{"file_name": "./2.jpg", "text": null, "caption": "a bird"}\n'
        '{"file_name": "3.jpg", "objects": []}\n'
    )
    assert captions.read_metadata(path) == {"0.jpg": "a dog", "sub/1.jpg": "a cat", "2.jpg": "a bird"}


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("{broken", "line 2: is not JSON"),
        ('{"text": "a dog"}', 'line 2: must be an object with a "file_name"'),
        ('["0.jpg"]', 'line 2: must be an object with a "file_name"'),
        ('{"file_name": "./0.jpg", "text": "a cat"}', "twice, in lines 1 and 2"),
        ('{"file_name": "1.jpg", "text": ["a cat", "a pet"]}', "line 2: the caption must be text, not list"),
    ],
)
def test_broken_metadata_is_told_by_line(tmp_path: Path, second: str, told: str) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "0.jpg", "text": "a dog"}\n' + second + "\n")
    with pytest.raises(DataError, match="metadata.jsonl") as error:
        captions.read_metadata(path)
    assert told in str(error.value)


def test_written_captions_are_read_back_and_edits_noticed(tmp_path: Path) -> None:
    made = [Caption("0.5", "a dog", "blip"), Caption("30_x dog/a", "ein Hündchen", "blip")]
    captions.write(tmp_path, made)
    assert (tmp_path / "0.5.txt").read_text() == "a dog\n"
    assert captions.read_sidecar(Path("a.jpg"), ".txt", tmp_path / "30_x dog") == "ein Hündchen"
    assert captions.changed(tmp_path, made) == []
    (tmp_path / "0.5.txt").write_text("a cat")
    assert captions.changed(tmp_path, made) == [tmp_path / "0.5.txt"]


def test_some_names_a_few_and_counts_the_rest() -> None:
    assert captions.some(["a", "b"]) == "a, b"
    assert captions.some(list("abcdefg")) == "a, b, c, d, e and 2 more"

"""Lint: every planted fault is found and named, and a clean folder has none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune import lint, planning, recipe
from captune.errors import ModelError
from captune.lint import Finding, lint_folder, lint_recipe
from captune.lint.texts import examine
from captune.lint.told import Told
from captune.recipe import BaseSection, TrainSection

CLEAN = [
    "zorblax, a small dog on the beach",
    "zorblax, a dog in falling snow",
    "zorblax, a dog with a ball, in a meadow at noon",
    "zorblax, two children and a dog near a house",
    "zorblax, a dog asleep under a table",
    "zorblax, a dog behind a fence at night",
]


def picture(file: Path, number: int, side: int = 64) -> None:
    """A picture of its own: big blocks of random grey."""
    file.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).convert("RGB").save(file)


def clean(folder: Path, texts: list[str] = CLEAN) -> Path:
    for number, text in enumerate(texts):
        picture(folder / f"{number}.png", number)
        (folder / f"{number}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def codes(findings: list[Finding]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in findings:
        found.setdefault(finding.code, []).append(finding.file)
    return found


def linted(folder: Path) -> dict[str, list[str]]:
    return codes(lint_folder(folder, trigger_word="zorblax", class_word="dog", resolution=64))


def of_texts(*texts: str, **told: object) -> dict[str, list[str]]:
    named = {f"{i}.txt": text for i, text in enumerate(texts)}
    return codes(list(examine(Told(named, **{"trigger_word": "zorblax", "class_word": "dog", **told}))))  # type: ignore[arg-type]


def test_a_clean_folder_has_no_findings(tmp_path: Path) -> None:
    assert linted(clean(tmp_path)) == {}
    assert (
        lint_folder(Path(__file__).parents[2] / "examples/jefpajot", trigger_word="jefpajot", class_word="creature")
        == []
    )


def test_faults_of_files(tmp_path: Path) -> None:
    folder = clean(tmp_path)
    (folder / "0.txt").unlink()
    (folder / "1.txt").write_text(" \n")
    (folder / "2.txt").write_bytes(b"a caf\xe9")
    (folder / "gone.txt").write_text("zorblax, a dog")
    (folder / "gone.blip.txt").write_text("a dog")
    picture(folder / "small.png", 50, 40)
    (folder / "small.txt").write_text("zorblax, a dog on stairs")
    picture(folder / "twin.png", 3, 80)
    (folder / "twin.txt").write_text("zorblax, a dog and a brick house")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    assert linted(folder) == {
        "missing_caption": ["0.png"],
        "empty_caption": ["1.txt"],
        "unreadable_caption": ["2.txt"],
        "broken_picture": ["torn.png"],
        "orphan_caption": ["gone.blip.txt", "gone.txt"],
        "near_duplicate": ["3.png"],
        "small_picture": ["small.png"],
    }


def test_a_picture_far_smaller_than_the_others_is_told_without_a_resolution(tmp_path: Path) -> None:
    folder = clean(tmp_path)
    picture(folder / "0.png", 0, 24)
    assert codes(lint_folder(folder, trigger_word="zorblax", class_word="dog")) == {"small_picture": ["0.png"]}


def test_faults_of_words() -> None:
    long = "zorblax, a dog " + "and another one by the wall " * 20
    french = "zorblax, un chien dans la neige avec une balle"
    russian = "zorblax собака на пляже"
    assert of_texts(*CLEAN, long, french, russian) == {"cut_caption": ["6.txt"], "other_language": ["7.txt", "8.txt"]}
    assert of_texts(*CLEAN, "a dog with a ball") == {"trigger_missing": ["6.txt"]}
    assert of_texts(*CLEAN, "a dog that is a zorblax") == {"trigger_place": ["6.txt"]}
    for other in ("ohwx", "jefpajot", "v1ctor"):
        assert of_texts(*CLEAN, f"zorblax, a dog and {other}") == {"other_trigger": ["6.txt"]}
    assert of_texts(*CLEAN, "zorblax, a zorblxa dog") == {"other_trigger": ["6.txt"]}
    assert of_texts(*CLEAN, "zorblax, this seems to be a dog") == {"uncertain_wording": ["6.txt"]}
    assert of_texts(*CLEAN, "zorblax, a gorgeous dog") == {"subjective_wording": ["6.txt"]}
    assert of_texts(*CLEAN, "zorblax, a gorgeous dog", by_a_person=False) == {}
    assert of_texts(*CLEAN, CLEAN[0]) == {"same_caption": ["0.txt"]}


def test_words_of_every_caption_become_trigger_words() -> None:
    assert of_texts(*(f"{text}, cartoon" for text in CLEAN)) == {"in_every_caption": [""]}
    assert of_texts(*(f"{text}, cartoon" for text in CLEAN), class_word="dog cartoon") == {}


def test_a_side_is_told_where_pictures_are_mirrored() -> None:
    sided = "zorblax, a dog on the left"
    assert of_texts(*CLEAN, sided) == {}
    assert of_texts(*CLEAN, sided, train=TrainSection(flip=True)) == {"side_while_flipped": ["6.txt"]}


def test_the_trigger_word_must_be_kept_where_parts_are_shuffled() -> None:
    shuffled = TrainSection(shuffle_caption=True)
    assert Counter(of_texts(*CLEAN[:2], train=shuffled)) == {"trigger_place": ["0.txt", "1.txt"]}
    assert of_texts(*CLEAN, train=shuffled.model_copy(update={"keep_tokens": 1})) == {}


@pytest.mark.parametrize("word", ["man", "tiger", "emma", "sks"])
def test_a_word_that_the_base_knows_is_told(word: str) -> None:
    assert of_texts(f"{word} by a lake", trigger_word=word, class_word="") == {"trigger_known": [""]}


class Tokenizer:
    """As many tokens as a word has thirds."""

    def measure(self, text: str) -> object:
        from captune.tokens import Length

        return Length(2 + sum(max(1, len(word) // 3) for word in text.split()), 20, "")


def test_how_many_tokens_the_trigger_word_makes() -> None:
    (known,) = examine(Told({"0": "abc"}, trigger_word="abc", tokens=Tokenizer()))  # type: ignore[arg-type]
    assert "one whole token of its vocabulary, 1 token" in known.message
    word = "x" * 30
    (long,) = examine(Told({"0": word}, trigger_word=word, tokens=Tokenizer()))  # type: ignore[arg-type]
    assert (long.code, long.severity) == ("trigger_long", "info") and "makes 10 tokens" in long.message


def test_kohyas_folders_have_their_own_words_and_even_repeats(tmp_path: Path) -> None:
    for number, text in enumerate(["zorblax, a dog", "zorblax, a dog on grass", "zorblax, quxly and a dog"]):
        picture(tmp_path / f"10_zorblax dog/{number}.png", number)
        (tmp_path / f"10_zorblax dog/{number}.txt").write_text(text)
    picture(tmp_path / "2_quxly cat/9.png", 9)
    (tmp_path / "2_quxly cat/9.txt").write_text("quxly in a tree")
    findings = lint_folder(tmp_path)
    assert codes(findings) == {"other_trigger": ["10_zorblax dog/2.txt"], "uneven_repeats": ["10_zorblax dog"]}
    assert "30 times" in findings[-1].message and findings[-1].way_out


def values(folder: Path, **arm: object) -> dict[str, object]:
    return {
        "dataset": {"path": str(folder), "trigger_word": "zorblax", "class_word": "dog", "resolution": 64},
        "base": {"model": str(folder / "none")},
        "train": {"steps": 1, "flip": True},
        "arm": [{"name": "human", "captioner": {"name": "sidecar", "trigger": "none"}, **arm}],
    }


def test_a_recipe_is_linted_as_it_would_be_trained(tmp_path: Path) -> None:
    folder = clean(tmp_path)
    (folder / "0.txt").write_text("a dog on the left of the beach")
    read = recipe.from_values(values(folder))
    assert codes(lint_recipe(read)) == {"trigger_missing": ["0.txt"], "side_while_flipped": ["0.txt"]}
    read = recipe.from_values(values(folder, text={"replace": {"left": ""}, "begins_with": "zorblax,"}))
    assert codes(lint_recipe(read)) == {}


def test_plan_and_training_say_once_what_is_not_said_elsewhere(tmp_path: Path) -> None:
    folder = clean(tmp_path)
    for name in ("0", "1"):
        (folder / f"{name}.txt").write_text("zorblax, perhaps a dog on the left")
    read = recipe.from_values(values(folder))
    warnings = planning.plan(read)["warnings"]
    assert len([line for line in warnings if "'perhaps' is uncertain" in line]) == 1
    assert len([line for line in warnings if "left or right" in line]) == 1
    said = {name: (folder / f"{name}.txt").read_text() for name in "012345"}
    lines = lint.before_training(read, {"human": said})
    assert [line.split(" (so it is")[0].split(": ")[0] for line in lines] == ["arm human", "arm human"]
    assert "(so it is with 1)" in lines[1] and "left or right" not in " ".join(lines)


PROSE = [
    "a photo of zorblax dog on a wooden bench, autumn leaves",
    "zorblax dog running through shallow water, overcast sky",
    "close-up portrait of zorblax dog, a kitchen behind it",
    "zorblax dog asleep on a grey sofa",
    "a woman in a denim jacket holding zorblax dog",
    "zorblax dog next to a fence in May, bright sunlight",
]
STYLE = [f"{what}, in the style of zorblax" for what in ("a pier", "a tram in a street", "a bowl of lemons", "a fox")]


def test_a_name_within_a_sentence_is_at_its_place() -> None:
    assert of_texts(*PROSE) == {}
    assert of_texts(*STYLE, class_word="") == {}


@pytest.mark.parametrize(
    "hung_on", ["asleep on a grey sofa, zorblax dog", "a dog sleeping on a grey sofa with toys zorblax"]
)
def test_a_name_hung_on_behind_is_out_of_place(hung_on: str) -> None:
    assert of_texts(*PROSE, hung_on) == {"trigger_place": ["6.txt"]}
    assert of_texts(*STYLE, "zorblax, a boat on a lake", class_word="") == {"trigger_place": ["4.txt"]}


def test_without_a_trigger_word_the_subjects_name_is_taken_for_it() -> None:
    told = {"trigger_word": "", "class_word": ""}
    assert of_texts(*PROSE, **told) == {}
    assert of_texts(*STYLE, **told) == {}
    assert of_texts(*(f"{text}, with red paint" for text in PROSE), **told) == {"in_every_caption": ["", ""]}


@pytest.mark.parametrize(
    "text",
    [
        "zorblax 狗睡在沙发上",
        "ソファで寝ているzorblax犬",
        "zorblax, stehend, wüste, sand, blauer himmel",
        "un cane zorblax che dorme sul divano accanto a un cuscino",
        "zorblax pies śpi na kanapie obok poduszki",
        "zorblax köpek gri kanepede uyuyor",
        "en zorblax hund sover på den grå soffan",
    ],
)
def test_a_caption_in_another_language_is_told(text: str) -> None:
    assert of_texts(*PROSE, text) == {"other_language": ["6.txt"]}


def test_foreign_names_and_signs_are_no_other_language() -> None:
    signs = [
        "zorblax, a dog at the Sagrada Família in Barcelona",
        "zorblax, a dog in front of a Straße sign in München",
        "zorblax, a dog and the word 寿司 on a lantern",
        "zorblax, a dog with crème brûlée",
    ]
    assert of_texts(*CLEAN, *signs) == {}


def test_a_trigger_word_stands_among_letters_that_are_written_without_spaces() -> None:
    texts = ["zorblax狗坐在长椅上", "zorblax狗在海边", "厨房里zorblax狗的特写", "雨夜街道上的zorblax狗"]
    assert of_texts(*texts, class_word="狗") == {}


@pytest.mark.parametrize("guess", ["likely indoors", "hard to tell where", "a blanket (?)", "it might be night"])
def test_a_guess_is_told(guess: str) -> None:
    assert of_texts(*CLEAN, f"zorblax, a dog, {guess}") == {"uncertain_wording": ["6.txt"]}


@pytest.mark.parametrize("taste", ["pretty garden", "nice light", "incredibly big ears", "charming smile"])
def test_taste_is_told(taste: str) -> None:
    assert of_texts(*CLEAN, f"zorblax, a dog, {taste}") == {"subjective_wording": ["6.txt"]}
    assert of_texts(*CLEAN, "zorblax, a dog by the sea in Nice") == {}


@pytest.mark.parametrize("text", ["toys left behind on the lawn", "right after the rain", "a dog right behind a fence"])
def test_left_and_right_that_are_no_side(text: str) -> None:
    flipped = TrainSection(flip=True)
    assert of_texts(*CLEAN, f"zorblax, {text}", train=flipped) == {}
    assert of_texts(*CLEAN, "zorblax, a dog on the left behind a fence", train=flipped) != {}
    assert of_texts(*CLEAN, "zorblax, the leftmost dog", train=flipped) != {}


def test_one_long_caption_twice_is_no_chance() -> None:
    many = [f"zorblax, a dog near {place}" for place in ("a", "b", "c", "d", "e", "f")]
    twice = "zorblax, a dog with its tongue out in an old car"
    assert of_texts(*CLEAN, *many, twice, f"{twice}.") == {"same_caption": ["12.txt"]}


def test_captions_without_words_and_not_in_utf8(tmp_path: Path) -> None:
    folder = clean(tmp_path)
    (folder / "0.txt").write_text(" , , \n")
    (folder / "1.txt").write_bytes(CLEAN[1].encode("utf-16-le"))  # without its mark it passes for UTF-8 with many zeros
    (folder / "2.png.txt").write_text(CLEAN[2])
    assert linted(folder) == {
        "empty_caption": ["0.txt"],
        "unreadable_caption": ["1.txt"],
        "orphan_caption": ["2.png.txt"],
    }


def test_kohyas_folder_names_the_class(tmp_path: Path) -> None:
    clean(tmp_path / "10_zorblax dog")
    assert lint_folder(tmp_path) == []
    assert lint_folder(tmp_path, trigger_word="zorblax") == []


def test_a_class_word_that_is_not_told_follows_the_trigger_word() -> None:
    assert of_texts(*PROSE, class_word="") == {}
    fluffy = [text.replace("zorblax dog", "zorblax dog with a red collar") for text in PROSE]
    assert of_texts(*fluffy, class_word="") == {"in_every_caption": ["", ""]}
    assert of_texts(*(f"zorblax, blue, {text}" for text in PROSE), class_word="") != {}


def test_a_base_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer of the base 'nowhere'"):
        lint_folder(clean(tmp_path), base=BaseSection(model="nowhere"))


def test_training_settings_of_a_folder(tmp_path: Path) -> None:
    folder = clean(tmp_path)
    (folder / "0.txt").write_text("zorblax, a dog on the left of the beach")
    told = lint_folder(folder, trigger_word="zorblax", class_word="dog", train=TrainSection(flip=True))
    assert codes(told) == {"side_while_flipped": ["0.txt"]}

"""Text rules: what they do to a caption, that twice is once, and what is refused by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune import engines, planning, provenance, recipe, rules
from captune.caption import caption_examples
from captune.captions import has_word
from captune.errors import DataError, RecipeError
from captune.progress import Silent
from captune.recipe import ArmSection, CaptionerSection, DatasetSection, TextSection
from captune.rules import Words, leftovers, without_repetition
from captune.rules.leftovers import GAP
from captune.runs import StageFolder
from captune.types import Example

ZORBLAX = Words("Zorblax", "dog")
BLIP = [
    "a red dog with yellow ears and a top hat on the beach",
    "a red dog with a top hat in the snow",
    "there is a red dog with yellow ears, sitting in a meadow",
    "the dog is red and its ears are yellow, at night",
    "an orange dog with a top hat under a tree",
]


class Letters:
    """A tokenizer whose tokens are words."""

    def cut(self, text: str, count: int) -> str:
        return " ".join(text.split()[: count - 2])


def ruled(texts: list[str], subject: Words = ZORBLAX, **fields: object) -> list[str]:
    return rules.apply(TextSection(**fields), texts, subject, Letters).texts  # type: ignore[arg-type]


def test_absorb_leaves_the_subject_to_the_trigger_word() -> None:
    made = rules.apply(TextSection(absorb=0.6), BLIP, ZORBLAX, Letters)
    assert made.texts == [
        "Zorblax, a dog on the beach",
        "Zorblax, a dog in the snow",
        "Zorblax, there is a dog, sitting in a meadow",
        "Zorblax, the dog, at night",
        "Zorblax, an orange dog under a tree",
    ]
    assert made.facts["absorbed"] == {"red": 0.8, "top": 0.6, "hat": 0.6, "yellow": 0.6, "ear": 0.6}
    assert made.facts["absorbed_phrases"]["yellow ears"] == 2


def test_the_trigger_word_takes_the_place_of_what_the_caption_is_about() -> None:
    texts = [
        "a large pink robot in front of a wooden wall",
        "an orange robot wearing a top hat",
        "this is a picture of a pink robot standing on grass",
        "a small pink robot",
        "a beach with a pink robot",
    ]
    assert ruled(texts, absorb=0.6) == [
        "a large Zorblax in front of a wooden wall",
        "an orange Zorblax wearing a top hat",
        "this is a picture of a Zorblax standing on grass",
        "a small Zorblax",
        "Zorblax, a beach",
    ]
    assert ruled(["an orange cat at night"] * 3, absorb=0.9)[0] == "a Zorblax"


def test_class_word_trigger_word_and_function_words_are_never_absorbed() -> None:
    made = ruled(["a zorblax dog on the left"] * 4, absorb=0.1)
    assert made == ["a zorblax dog on the left"] * 4


def test_absorb_needs_captions_to_compare() -> None:
    with pytest.raises(DataError, match="at least 3 captions"):
        ruled(["a dog", "a red dog"], absorb=0.6)


@pytest.mark.parametrize(
    ("gapped", "mended"),
    [
        (f"a dog with {GAP} and", "a dog"),
        (f"a {GAP}, {GAP}, on the grass", "on the grass"),
        (f"a {GAP} {GAP} owl", "an owl"),
        (f"a dog wearing a {GAP} {GAP} and a {GAP}, in the rain.", "a dog, in the rain."),
        (f"a dog with a {GAP} and big feet", "a dog with big feet"),
        (f"a dog with a {GAP} and a {GAP} on the beach", "a dog on the beach"),
        (f"there is a {GAP} {GAP} on the beach", "on the beach"),
        (f"{GAP}, {GAP}, outdoors, {GAP}", "outdoors"),
        (f"the {GAP} dog and the {GAP} cat", "the dog and the cat"),
        (f"{GAP}-{GAP} dog", "dog"),
    ],
)
def test_what_is_left_is_mended(gapped: str, mended: str) -> None:
    assert leftovers.mended(gapped) == mended


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a close up of a dog on the beach", "Zorblax, a dog on the beach"),
        ("A close-up photo of a dog", "Zorblax, a dog"),
        ("there is a dog on the beach", "Zorblax, a dog on the beach"),
        ("This image shows a dog. The photo depicts a cat.", "Zorblax, a dog. a cat."),
        ("a man holding a photo of a dog", "Zorblax, a man holding a photo of a dog"),
        ("a dog with a watermark in the corner", "Zorblax, a dog"),
        ("a dog, there is a watermark that says 'stock', on a beach", "Zorblax, a dog, on a beach"),
        ("a dog with a hat and a watermark", "Zorblax, a dog with a hat"),
        ("it seems to be a dog, perhaps asleep", "Zorblax, a dog, asleep"),
        ("a dog in my kitchen", "Zorblax, a dog"),
    ],
)
def test_banned_phrases_are_taken_out(text: str, left: str) -> None:
    assert ruled([text], ban=["openers", "watermarks", "hedges", "in my kitchen"]) == [left]


def test_replace_regex_case_and_repetition() -> None:
    subject = Words("Zorblax", "", "none")
    texts = ["A Puppy and a PUPPY Zorblax", "colour and color", "a dog on on the mat, a dog on the mat, the mat"]
    made = ruled(texts, subject, replace={"puppy": "dog"}, regex={"colou?r": "shade"}, case="lower", no_repetition=True)
    assert made == ["a dog and a dog Zorblax", "shade and shade", "a dog on the mat"]
    assert without_repetition("red, blue, red, green") == "red, blue, green"


def test_the_subjects_words_are_put_in_once() -> None:
    begins = {"begins_with": "a photo of {trigger_word} {class_word},"}
    assert (
        ruled(["on the beach", "a photo of Zorblax dog, on the beach"], **begins)
        == ["a photo of Zorblax dog, on the beach"] * 2
    )
    replacing = Words("Zorblax", "dog", "replace_class")
    assert ruled(["a dog on grass", "grass"], replacing, add_class_word=True) == [
        "a Zorblax dog on grass",
        "Zorblax dog, grass",
    ]


def test_cutting_keeps_the_trigger_word() -> None:
    replacing = Words("Zorblax", "dog", "replace_class")
    assert ruled(["a very small and very old dog on grass"], replacing, max_tokens=6) == ["Zorblax, a very small"]


WORDS = "a the red dog dog, Dog with and top hat, ears watermark photo of close up . on in grass Zorblax is"
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS.split()), max_size=14).map(" ".join),
    min_size=3,
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.sampled_from(["prefix", "replace_class"]))
def test_twice_is_once(texts: list[str], how: str) -> None:
    section = TextSection(
        ban=["openers", "watermarks"], case="lower", absorb=0.6, no_repetition=True, add_class_word=True,
        replace={"hat": "cap"}, begins_with="a photo of", max_tokens=9,
    )  # fmt: skip
    subject = Words("Zorblax", "dog", how)  # type: ignore[arg-type]
    once = rules.apply(section, texts, subject, Letters).texts
    assert rules.apply(section, once, subject, Letters).texts == once
    assert all(has_word(text, "Zorblax") and ",," not in text and "a a " not in text for text in once)


def test_rules_that_feed_on_themselves_are_refused() -> None:
    with pytest.raises(RecipeError, match="change their own result"):
        ruled(["a cat"], regex={"cat": "cat cat"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"absorb": 0}, "absorb"),
        ({"absorb": 1.5}, "absorb"),
        ({"regex": {"(": "x"}}, "regex: '('"),
        ({"regex": {"a": r"\9"}}, "regex: 'a'"),
        ({"regex": {"x*": ""}}, "finds the empty text"),
        ({"replace": {"cat": "black cat"}}, "would be replaced again"),
        ({"ban": [" "]}, "ban[0] is empty"),
        ({"ban": ["zorblax"]}, "arm[0].text.ban: 'zorblax' would take the trigger word out"),
        ({"begins_with": "{subject}"}, "unknown {subject}"),
        ({"shout": True}, "unknown key"),
        ({}, "names no rule"),
        ({"max_tokens": 1}, "max_tokens"),
    ],
)
def test_nonsense_is_refused_by_name(text: dict[str, object], said: str) -> None:
    values = {
        "dataset": {"path": "photos", "trigger_word": "zorblax"},
        "train": {"steps": 1},
        "arm": [{"name": "blip", "captioner": {"name": "blip"}, "text": text}],
    }
    with pytest.raises(RecipeError) as error:
        recipe.from_values(values)
    assert said in str(error.value)


def test_absorb_without_a_trigger_word_and_rules_without_a_captioner_are_refused() -> None:
    values = {
        "dataset": {"path": "photos"},
        "train": {"steps": 1},
        "arm": [
            {"name": "blip", "captioner": {"name": "blip"}, "text": {"absorb": 0.5}},
            {"name": "wrong", "shuffled": "blip", "text": {"case": "lower"}},
        ],
    }
    with pytest.raises(RecipeError, match="text needs a captioner"):
        recipe.from_values(values)
    values["arm"] = values["arm"][:1]  # type: ignore[index]
    with pytest.raises(RecipeError, match="leaves words to the trigger word"):
        recipe.from_values(values)


def test_rules_in_a_recipe_survive_being_written_down() -> None:
    text = {"regex": {r"\s+x": "y"}, "replace": {"two words": "one"}, "ban": ["openers"], "absorb": 0.6}
    values = {
        "dataset": {"path": "photos", "trigger_word": "zorblax"},
        "train": {"steps": 1},
        "arm": [{"name": "blip", "captioner": {"name": "blip"}, "text": text}],
    }
    read = recipe.from_values(values)
    assert recipe.from_values(tomllib.loads(recipe.as_toml(read))) == read


def arm(**fields: object) -> ArmSection:
    return ArmSection(name="human", captioner=CaptionerSection(name="sidecar"), **fields)  # type: ignore[arg-type]


def captioned(tmp_path: Path, section: ArmSection) -> tuple[list[str], dict[str, object]]:
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    examples = []
    for index, text in enumerate(BLIP):
        (photos / f"{index}.txt").write_text(text)
        (photos / f"{index}.png").touch()
        examples.append(
            Example(str(index), photos / f"{index}.png", photos / f"{index}.png", 1, 1, 1, 1, 1, f"{index}")
        )
    dataset = DatasetSection(path=photos, trigger_word="Zorblax", class_word="dog")
    folder = StageFolder(tmp_path / "run")
    made = caption_examples(section, dataset, examples, folder, Silent(), engines.load())
    return [c.text for c in made], folder.manifest()


def test_what_was_absorbed_and_said_before_is_kept(tmp_path: Path) -> None:
    plain, _ = captioned(tmp_path, arm())
    texts, manifest = captioned(tmp_path, arm(text=TextSection(absorb=0.6)))
    assert texts[0] == "Zorblax, a dog on the beach"
    assert manifest["text"]["absorbed"]["red"] == 0.8  # type: ignore[index]
    records = provenance.read(tmp_path / "run" / "captions.jsonl")
    assert records[0].said == BLIP[0] and records[0].edited_by == "rules"
    assert [(row["text"], row["by"]) for row in records[0].previous] == [(plain[0], "sidecar")]
    assert (tmp_path / "run/captions/0.txt").read_text() == texts[0] + "\n"


def test_a_change_of_rules_asks_no_captioner_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.captioners.sidecar import Sidecar

    captioned(tmp_path, arm())
    monkeypatch.setattr(Sidecar, "caption", lambda *_: pytest.fail("asked again"))
    texts, _ = captioned(tmp_path, arm(text=TextSection(absorb=0.6)))
    assert texts[1] == "Zorblax, a dog in the snow"


def test_the_plan_reads_captions_after_the_rules(tmp_path: Path) -> None:
    from tests.tiny_base import write_photos

    values = {
        "dataset": {"path": str(write_photos(tmp_path / "p")), "trigger_word": "zorblax", "resolution": 16},
        "base": {"model": str(tmp_path)},
        "train": {"steps": 1},
        "arm": [{"name": "human", "captioner": {"name": "sidecar"}, "text": {"absorb": 0.6}}],
        "evaluate": {"metrics": []},
    }
    warnings = " ".join(planning.plan(recipe.from_values(values))["warnings"])
    assert "left to the trigger word, as they stand in 60% of the captions: ball (100%)" in warnings

"""Caption scores: equal to the COCO evaluation, with what they rest on, and with a warning where they mean little."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captune.errors import DataError, RecipeError
from captune.metrics import captions
from captune.metrics.captions import meteor, score
from captune.metrics.captions.endings import ends_properly
from captune.metrics.captions.hallucination import things_in

SHARED = Path(__file__).parents[3] / "shared" / "data" / "metrics" / "coco_caption_cases.json"
LITERATURE = ("bleu", "rouge_l", "cider")
EQUAL = 1.01e-6  # the reference scores are rounded to 6 digits

CANDIDATES = {
    "a": "a dog runs on the grass",
    "b": "two men ride a horse",
    "c": "",
    "d": "a red bus a red bus a red bus",
    "e": "cat",
}
REFERENCES = {
    "a": ["a dog is running on the green grass", "the dog runs over a lawn"],
    "b": ["two men ride a horse"],
    "c": ["a plate of food"],
    "d": ["a red bus parked near a bus stop", "a bus on the street", "the red bus"],
    "e": ["a cat", "cat"],
}
# What pycocoevalcap 1.2 gives for these: BLEU-1 to BLEU-4, ROUGE-L, CIDEr.
CORPUS = (0.7017582997, 0.5675047991, 0.4304700967, 0.3348544319, 0.6625017296, 3.0715323948)
PER_CAPTION = {
    "a": (1.0, 0.77459667, 5.31e-06, 1e-08, 0.69634703, 1.98950685),
    "b": (1.0, 1.0, 1.0, 1.0, 1.0, 10.0),
    "c": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "d": (0.55555556, 0.372678, 0.27072175, 4.264e-05, 0.61616162, 0.88539623),
    "e": (1.0, 0.001, 0.0001, 3.162e-05, 1.0, 2.4827589),
}
COLUMNS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


def test_scores_are_those_of_the_coco_evaluation() -> None:
    scored = score(CANDIDATES, REFERENCES, LITERATURE, "none")
    assert [scored.corpus[name] for name in COLUMNS] == pytest.approx(CORPUS, abs=1e-8)
    for key, expected in PER_CAPTION.items():
        assert [scored.per_caption[key][name] for name in COLUMNS] == pytest.approx(expected, abs=1e-8), key


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    if not SHARED.exists():
        pytest.skip("the reference scores are not here")
    found: dict[str, Any] = json.loads(SHARED.read_text(encoding="utf-8"))
    return found


def assert_equal(found: dict[str, float], expected: dict[str, float]) -> None:
    assert {name: found[name] for name in COLUMNS} == pytest.approx(
        {name: expected[name] for name in COLUMNS}, abs=EQUAL
    )


@pytest.mark.parametrize(
    ("kind", "tokenizer"), [("ptb", "ptb"), ("simple", "simple"), ("raw", "none")], ids=["ptb", "simple", "raw"]
)
def test_reference_scores_from_raw_text(cases: dict[str, Any], kind: str, tokenizer: str) -> None:
    texts = {case["id"]: case["candidate"] for case in cases["cases"]}
    scored = score(texts, {case["id"]: case["references"] for case in cases["cases"]}, LITERATURE, tokenizer)
    assert_equal(scored.corpus, cases["corpus"][kind])
    for case in cases["cases"]:
        if f"scores_{kind}" in case:
            assert_equal(scored.per_caption[case["id"]], case[f"scores_{kind}"])


def _kind(word: str) -> Callable[[list[Any]], list[Any]]:
    return lambda found: [case for case in found if case["kind"].startswith(word)]


def _last(count: int) -> Callable[[list[Any]], list[Any]]:
    return lambda found: found[-count:]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("kind:caption", _kind("caption")),
        ("kind:human", _kind("human")),
        ("kind:model", _kind("model")),
        ("kind:perturbed", _kind("perturbed")),
        ("kind:single", _kind("single")),
        *((f"last:{count}", _last(count)) for count in (1, 2, 11, 50)),
    ],
)
def test_reference_scores_of_other_corpora(
    cases: dict[str, Any], name: str, chosen: Callable[[list[Any]], list[Any]]
) -> None:
    some = chosen(cases["cases"])
    expected = cases["sub_corpora_ptb"][name]
    assert len(some) == expected["n"]
    texts = {case["id"]: case["candidate"] for case in some}
    assert_equal(score(texts, {case["id"]: case["references"] for case in some}, LITERATURE).corpus, expected)


def test_reference_scores_with_one_reference_each(cases: dict[str, Any]) -> None:
    texts = {case["id"]: case["candidate"] for case in cases["cases"]}
    first = {case["id"]: case["references"][:1] for case in cases["cases"]}
    assert_equal(score(texts, first, LITERATURE).corpus, cases["sub_corpora_ptb"]["first_reference_only"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ptb", "simple"])
def test_meteor_is_that_of_the_java_program(cases: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    texts = {case["id"]: case["candidate"] for case in cases["cases"]}
    scored = score(texts, {case["id"]: case["references"] for case in cases["cases"]}, ["meteor"], kind)
    if scored.absent:
        pytest.skip(scored.absent["meteor"])
    assert scored.corpus["METEOR"] == pytest.approx(cases["corpus"][kind]["METEOR"], abs=EQUAL)
    for case in cases["cases"]:
        assert scored.per_caption[case["id"]]["METEOR"] == pytest.approx(case[f"scores_{kind}"]["METEOR"], abs=EQUAL)


def test_meteor_says_why_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)
    scored = score(CANDIDATES, REFERENCES, ["bleu", "meteor"])
    assert "METEOR" not in scored.corpus
    assert "install a Java runtime" in scored.absent["meteor"]
    monkeypatch.setattr(meteor.shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(meteor.importlib.util, "find_spec", lambda name: None)
    assert "captune[caption-metrics]" in score(CANDIDATES, REFERENCES, ["meteor"]).absent["meteor"]


def test_rouge_1_and_2_take_the_best_reference() -> None:
    pytest.importorskip("rouge_score")
    scored = score({"a": "the red dog"}, {"a": ["a cat", "the red car"]}, ["rouge_n"])
    assert scored.corpus == pytest.approx({"ROUGE_1": 2 / 3, "ROUGE_2": 1 / 2})


def test_corpus_bleu_is_not_the_mean_of_the_captions() -> None:
    scored = score(CANDIDATES, REFERENCES, ["bleu"])
    mean = sum(values["Bleu_4"] for values in scored.per_caption.values()) / len(CANDIDATES)
    assert abs(scored.corpus["Bleu_4"] - mean) > 0.1


@pytest.mark.parametrize(("words", "expected"), [(1, 2.5), (2, 5.0), (3, 7.5), (4, 10.0)])
def test_equal_captions_without_4_grams_cannot_reach_10(words: int, expected: float) -> None:
    texts = {str(place): " ".join(f"w{place}x{word}" for word in range(words)) for place in range(3)}
    scored = score(texts, {key: [text] for key, text in texts.items()}, ["cider"], "none")
    assert scored.corpus["CIDEr"] == pytest.approx(expected)


def test_what_scores_rest_on_stands_beside_them() -> None:
    scored = score(CANDIDATES, REFERENCES, ["cider"], "simple", decode={"beams": 3})
    assert scored.facts == {
        "captions": 5,
        "references_per_caption": {"fewest": 1, "most": 3},
        "references": 9,
        "tokenizer": "simple",
        "idf_corpus": "the references scored here: 5 sets, 9 captions",
        "decode": {"beams": 3},
    }
    assert score(CANDIDATES, REFERENCES, ["cider"]).facts["decode"] == "not given"


PLAIN = {str(n): f"a photo of thing{n} beside place{n} today" for n in range(60)}
SAME = {key: [text, text + " again"] for key, text in PLAIN.items()}


def _warned(
    candidates: dict[str, str] = PLAIN, references: dict[str, Sequence[str]] | None = None, tokenizer: str = "ptb"
) -> str:
    return "\n".join(score(candidates, references or {**SAME}, tokenizer=tokenizer).warnings)


def test_sound_captions_bring_no_warning() -> None:
    assert _warned() == ""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (lambda: _warned({key: f"{text} and so {text} on" for key, text in PLAIN.items()}), "in another style"),
        (lambda: _warned(dict.fromkeys(PLAIN, "photo")), "in another style"),
        (lambda: _warned(dict.fromkeys(PLAIN, "one two three four five six seven")), "next to none of 10"),
        (lambda: _warned({"1": PLAIN["1"]}), "59 sets of references have no candidate"),
        (lambda: _warned({"1": PLAIN["1"]}), "CIDEr of a single caption is always 0"),
        (lambda: _warned({key: PLAIN[key] for key in "123"}), "CIDEr over 3 captions is noise in part"),
        (lambda: _warned(PLAIN, {key: texts[:1] for key, texts in SAME.items()}), "have one reference"),
        (lambda: _warned({**PLAIN, "7": " ! "}), "1 of 60 captions have no words, such as '7'"),
        (lambda: _warned(PLAIN, {**SAME, "7": ["...", "a b"]}), "1 references have no words"),
        (lambda: _warned(tokenizer="none"), "as they are (tokenizer none)"),
    ],
)
def test_what_makes_scores_mean_less_is_told(told: Callable[[], str], expected: str) -> None:
    assert expected in told()


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        (({}, {}), DataError, "there is no candidate caption"),
        (({"a": "x", "b": "y"}, {"a": ["x"]}), DataError, "1 of 2 candidates have no reference, such as 'b'"),
        (({"a": "x"}, {"a": []}), DataError, "1 of 1 candidates have no reference"),
        (({"a": "x"}, {"a": ["x"]}, ["blue"]), RecipeError, "did you mean 'bleu'?"),
        (({"a": "x"}, {"a": ["x"]}, ["bleu"], "ptp"), RecipeError, "did you mean 'ptb'?"),
    ],
)
def test_mistakes_are_sentences(arguments: tuple[Any, ...], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected.replace("?", r"\?")):
        score(*arguments)


def test_length_vocabulary_and_repetition() -> None:
    texts = {"a": "a dog a dog a dog", "b": "a cat", "c": "a cat", "d": "big big bear"}
    references = {key: ["one two three"] for key in texts}
    scored = score(texts, references, ["length", "vocabulary", "repetition"])
    assert scored.corpus["Length_ratio"] == pytest.approx(13 / 12)
    assert scored.corpus["Words"] == pytest.approx(13 / 4)
    assert (scored.corpus["Vocabulary"], scored.corpus["Distinct_captions"]) == (5, 0.5)
    assert [scored.per_caption[key]["Repetition"] for key in "abd"] == pytest.approx([0.6, 0, 0])
    assert [scored.per_caption[key]["Repeated_words"] for key in "abd"] == pytest.approx([0, 0, 1 / 3])


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a dog on a bench", True),
        ("A dog.", True),
        ("cars going by", True),
        ("a table (set for two)", True),
        ("a dog on a", False),
        ("a dog and", False),
        ("a dog of the.", False),
        ("a dog, a cat,", False),
        ("a dog -", False),
        ("", False),
        ("...", False),
    ],
)
def test_captions_that_stop_in_the_middle_are_seen(text: str, whole: bool) -> None:
    assert ends_properly(text) is whole


def test_novelty_is_against_the_training_captions() -> None:
    texts = {"a": "A dog on a bench.", "b": "a dog on a chair", "c": "hello"}
    scored = score(texts, {key: ["x"] for key in texts}, ["novelty"], training=["a dog on a bench"])
    assert scored.corpus == pytest.approx({"Novel_captions": 2 / 3, "Novel_4grams": 1 / 4})
    assert "Novel_4grams" not in scored.per_caption["c"]
    assert "--training" in score(texts, {key: ["x"] for key in texts}, ["novelty"]).absent["novelty"]


def test_things_that_no_reference_names_are_counted() -> None:
    texts = {"a": "a man and a dog eat hot dogs", "b": "a cat sleeps", "c": "a bear"}
    references = {"a": ["a boy with a hot dog", "a person eating"], "b": ["two cats", "a kitten asleep"], "c": ["x"]}
    scored = score(texts, references, ["hallucination"])
    assert scored.per_caption["a"]["Hallucinated_objects"] == pytest.approx(1 / 3)
    assert scored.per_caption["b"]["Hallucinated_objects"] == 0
    assert scored.per_caption["b"]["Unsupported_words"] == pytest.approx(1 / 2)  # sleeps
    assert scored.per_caption["c"] == {}
    assert scored.corpus["Hallucinated_objects"] == pytest.approx(1 / 4)
    assert "at least 2 references" in score({"c": "a bear"}, {"c": ["x"]}, ["hallucination"]).absent["hallucination"]


def test_two_words_go_before_one() -> None:
    assert things_in("a teddy bear and buses") == {"teddy bear", "bus"}


def test_clip_scores_follow_their_definition(tmp_path: Path) -> None:
    from captune.metrics._encoder import load_clip

    pictures = {}
    for name, color in (("a", "red"), ("b", "blue")):
        pictures[name] = tmp_path / f"{name}.png"
        Image.new("RGB", (64, 64), color).save(pictures[name])
    texts = {"a": "a red square", "b": "a blue square"}
    references = {"a": ["a red thing", "all red"], "b": ["a blue square", "a robot"]}
    scored = score(texts, references, ["clip_score"], images=pictures, encoder="mini", device="cpu")
    encoder = load_clip("mini", "cpu", field="--encoder")
    image = encoder.embed_images(pictures.values(), 2)
    text = encoder.embed_texts([f"A photo depicts {text}" for text in [*texts.values(), "a red thing", "all red"]], 2)
    own = text["A photo depicts a red square"]
    plain = 2.5 * max(float(own @ image[pictures["a"]]), 0)
    best = max(float(own @ text[f"A photo depicts {reference}"]) for reference in references["a"])
    assert scored.per_caption["a"]["CLIPScore"] == pytest.approx(plain, abs=1e-5)
    assert scored.per_caption["a"]["RefCLIPScore"] == pytest.approx(2 / (1 / plain + 1 / best), abs=1e-5)
    assert (scored.facts["clip_encoder"], scored.facts["captions_cut_by_clip"]) == ("mini", 0)
    assert "--images" in score(texts, references, ["clip_score"]).absent["clip_score"]


@pytest.mark.parametrize("name", [name for name in captions.METRICS if name not in ("meteor", "clip_score")])
def test_every_metric_scores_odd_captions_with_finite_numbers(name: str) -> None:
    odd = {"a": "", "b": "word", "c": "!!!", "d": "a b c d e f", "e": "é" * 300}
    scored = score(odd, {key: ["", "a b"] for key in odd}, [name], training=["a b"])
    if name in scored.absent:
        pytest.skip(scored.absent[name])
    values = [*scored.corpus.values(), *(value for row in scored.per_caption.values() for value in row.values())]
    assert values and all(math.isfinite(value) for value in values)
    assert list(scored.per_caption) == list(odd)


@pytest.mark.parametrize("name", captions.METRICS)
def test_every_metric_tells_its_definition_range_and_source(name: str) -> None:
    import importlib

    documented = importlib.import_module(captions.METRICS[name].partition(":")[0]).__doc__ or ""
    assert [word for word in ("Definition", "Range: ", "Source: ") if word not in documented] == []

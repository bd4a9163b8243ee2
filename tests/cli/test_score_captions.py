"""`captune score-captions`: every form of file, scores as JSON and as a table, and mistakes in one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from captune import cli
from captune.metrics.captions import score

CANDIDATES = {"139": "A woman in a kitchen.", "285": "A bear's face, up close!"}
REFERENCES = {"139": ["A woman stands in a kitchen", "A room."], "285": ["A big bear up close", "The bear's face"]}
LITERATURE = ("--metrics", "bleu,rouge_l", "--metrics", "cider")


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPTUNE_DEBUG", raising=False)


def written(name: str, value: Any) -> str:
    """A file: text as it is, everything else as JSON."""
    Path(name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return name


def scored(candidates: Any = CANDIDATES, references: Any = REFERENCES, *more: str) -> Ended:
    files = ("--candidates", written("c.json", candidates), "--references", written("r.json", references))
    result = CliRunner().invoke(cli.app, ["score-captions", *files, *more])
    return Ended(result.exit_code, result.stdout, result.stderr)


def lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


COCO = {
    "images": [{"id": 139, "file_name": "000000000139.jpg"}],
    "annotations": [
        {"image_id": int(key), "id": 1, "caption": text} for key, own in REFERENCES.items() for text in own
    ],
}


@pytest.mark.parametrize(
    "candidates",
    [
        CANDIDATES,
        {key: [text] for key, text in CANDIDATES.items()},
        [{"image_id": int(key), "caption": text} for key, text in CANDIDATES.items()],
        lines([{"image_id": int(key), "caption": text} for key, text in CANDIDATES.items()]),
        lines([{"id": key, "text": text} for key, text in CANDIDATES.items()]),
        "\ufeff" + json.dumps(CANDIDATES),
    ],
    ids=["object", "lists", "coco results", "lines", "lines with text", "byte order mark"],
)
@pytest.mark.parametrize(
    "references",
    [
        REFERENCES,
        COCO,
        lines([{"id": key, "references": texts} for key, texts in REFERENCES.items()]),
        lines([{"image_id": int(key), "caption": text} for key, texts in REFERENCES.items() for text in texts]),
    ],
    ids=["object", "coco annotations", "lines of lists", "lines"],
)
def test_every_form_of_file_gives_the_same_scores(candidates: Any, references: Any) -> None:
    ended = scored(candidates, references, *LITERATURE, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    expected = score(CANDIDATES, REFERENCES, ("bleu", "rouge_l", "cider"))
    assert found["corpus"] == expected.corpus
    assert found["per_caption"] == expected.per_caption
    assert found["warnings"] == expected.warnings
    assert found["facts"]["tokenizer"] == "ptb"


def test_one_line_is_a_file_too() -> None:
    ended = scored('{"id": 7, "caption": "a cat"}', {"7": ["a cat"]}, "--metrics", "bleu", "--json")
    assert list(json.loads(ended.out)["per_caption"]) == ["7"]


def test_table_has_scores_facts_and_warnings() -> None:
    ended = scored(CANDIDATES, REFERENCES, *LITERATURE, "--tokenizer", "none", "--decode", "beams=3")
    assert ended.code == 0, ended.err
    rows = [line.split() for line in ended.out.splitlines()]
    corpus = score(CANDIDATES, REFERENCES, ("bleu", "cider"), "none").corpus
    assert ["Bleu", "1", f"{corpus['Bleu_1']:.4g}"] in rows
    assert ["tokenizer", "none"] in rows
    assert ["decode", "beams:", "3"] in rows
    assert "warning: CIDEr over 2 captions is noise in part" in ended.out


def test_a_metric_that_cannot_be_had_says_why() -> None:
    ended = scored(CANDIDATES, REFERENCES, "--metrics", "novelty", "--json")
    assert json.loads(ended.out)["absent"] == {
        "novelty": "novelty needs the captions that the captioner was trained on: name them with --training"
    }


@pytest.mark.parametrize("name", ["t.txt", "t.json"])
def test_training_captions_come_as_lines_or_json(name: str) -> None:
    texts = ["a woman in a kitchen", "a dog"]
    file = written(name, "\n".join(texts) + "\n" if name == "t.txt" else {"1": texts})
    ended = scored(CANDIDATES, REFERENCES, "--metrics", "novelty", "--training", file, "--json")
    assert json.loads(ended.out)["corpus"]["Novel_captions"] == 0.5


@pytest.mark.parametrize("names", [("139.png", "285.png"), ("COCO_val2014_000000000139.jpg", "000000000285.jpg")])
def test_pictures_are_found_by_their_ids(names: tuple[str, str]) -> None:
    from captune.metrics.captions import files

    for name in names:
        Path(name).write_bytes(b"")
    assert [path.name for path in files.pictures_of(["139", "285"], Path(".")).values()] == list(names)


@pytest.mark.parametrize(
    ("candidates", "references", "more", "expected"),
    [
        ({"139": "a"}, {"285": ["a"]}, (), "1 of 1 candidates have no reference, such as '139'"),
        (
            [{"image_id": 1, "caption": "a"}] * 2,
            REFERENCES,
            (),
            "c.json has 2 candidates for '1'; give one caption per id",
        ),
        ({"139": ["a", "b"]}, REFERENCES, (), "c.json has 2 candidates for '139'"),
        ({"139": 5}, REFERENCES, (), "the caption of '139' is 5; it must be a text or a list of texts"),
        ([{"caption": "a"}], REFERENCES, (), "c.json, entry 1 has no id and caption"),
        ("a cat\na dog\n", REFERENCES, (), "c.json is not JSON"),
        (lines([{"id": 1, "text": "a"}]) + "{", REFERENCES, (), "c.json, line 2 is not JSON"),
        ("5", REFERENCES, (), "c.json holds a int"),
        ({}, REFERENCES, (), "c.json holds no caption"),
        (CANDIDATES, [], (), "r.json holds no caption"),
        (CANDIDATES, REFERENCES, ("--tokenizer", "ptbb"), "unknown tokenizer 'ptbb'; did you mean 'ptb'?"),
        (CANDIDATES, REFERENCES, ("--metrics", "blue"), "unknown caption metric 'blue'; did you mean 'bleu'?"),
        (CANDIDATES, REFERENCES, ("--decode", "beams"), "--decode 'beams': write it as key=value"),
        (CANDIDATES, REFERENCES, ("--images", "nowhere"), "--images nowhere is no folder"),
        (CANDIDATES, REFERENCES, ("--images", "."), "no picture for 2 of 2 captions, such as '139'"),
        (CANDIDATES, REFERENCES, ("--training", "nothing.json"), "nothing.json cannot be read"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    candidates: Any, references: Any, more: tuple[str, ...], expected: str
) -> None:
    ended = scored(candidates, references, *more)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert expected in ended.err
    assert "Traceback" not in ended.err

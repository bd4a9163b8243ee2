"""Captions of a folder: modes, history, a person's edits, pictures that fail, and runs that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from captune import captioners, captioning, ledger, provenance
from captune.captioning import Outcome, caption_folder, undo
from captune.errors import DataError
from captune.progress import Silent
from captune.recipe import ArmSection, CaptionerSection, DatasetSection, TextSection
from captune.types import Example

ROOT = Path(__file__).parents[2]


class Namer:
    """Says the picture's name and its prompt."""

    def __init__(self, section: CaptionerSection) -> None:
        self.settings: dict[str, object] = {"model": section.model, "prompt": section.prompt, "beams": section.beams}

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Namer:
        return cls(section)

    def sources(self, examples: Sequence[Example]) -> captioners.Sources:
        return captioners.Sources()

    def caption(self, examples: Sequence[Example]) -> list[str]:
        if any(example.id == "broken" for example in examples):
            raise DataError("it cannot be opened")
        return [f"{self.settings['prompt']} number {example.id}".strip() for example in examples]


@pytest.fixture(autouse=True)
def namer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(captioners.CAPTIONERS, "namer", f"{__name__}:Namer")
    monkeypatch.setitem(captioners.OPTIONS, "namer", frozenset({"model", "prompt", "beams"}))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", (24, 24), (index, 0, 0)).save(folder / f"{name}.png")
    return folder


def written(
    folder: Path, prompt: str = "", *, text: TextSection | None = None, word: str = "", **options: object
) -> Outcome:
    arm = ArmSection(name="a", captioner=CaptionerSection(name="namer", prompt=prompt, batch_size=2), text=text)
    dataset = DatasetSection(path=folder, trigger_word=word)
    return caption_folder(arm, dataset, Silent(), **options)  # type: ignore[arg-type]


def texts(folder: Path, extension: str = ".txt") -> dict[str, str]:
    return {path.name.removesuffix(extension): path.read_text() for path in sorted(folder.rglob(f"*{extension}"))}


def agree(folder: Path) -> None:
    """Every record's text stands in its file, there is one a picture, and nothing half-written lies about."""
    lines = (folder / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["example_id"] for row in rows}) == len(rows) == len(list(folder.rglob("*.png")))
    for row in rows:
        record = provenance.CaptionRecord(**row)
        assert (folder / record.file).read_text() == record.in_file
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_missing_captions_are_filled_in_and_others_left(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1", "2", "3")
    (folder / "2.txt").write_bytes(b"a person's\r\nwords")
    told = written(folder, "a photo of")
    assert (told.written, told.kept, told.failed) == (["1", "3"], ["2"], {})
    assert texts(folder)["1"] == "a photo of number 1\n"
    assert (folder / "2.txt").read_bytes() == b"a person's\r\nwords"
    one, two, _ = provenance.read(folder / "captions.jsonl")
    assert (one.captioner, one.model, one.prompt, one.decode) == ("namer", "mini", "a photo of", {"beams": 1})
    assert one.image == "1.png" and len(one.image_sha256) == 64 and one.seconds is not None
    assert (two.captioner, two.edited_by) == ("sidecar", "a person")
    assert written(folder, "a photo of").written == []


def test_replaced_texts_can_be_had_back(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1", "2")
    (folder / "1.txt").write_bytes(b"no line break")
    written(folder, "first")
    before = {p.name: p.read_bytes() for p in folder.glob("*.txt")}
    assert written(folder, "second", mode="replace").written == ["1", "2"]
    assert texts(folder) == {"1": "second number 1\n", "2": "second number 2\n"}
    assert undo(folder) == (["1", "2"], [])
    assert {p.name: p.read_bytes() for p in folder.glob("*.txt")} == before
    assert undo(folder) == ([], [])
    record = provenance.read(folder / "captions.jsonl")[1]
    assert (record.prompt, record.undone[0]["text"]) == ("first", "second number 2")
    written(folder, "third", mode="replace")
    assert texts(folder)["2"] == "third number 2\n"


def test_append_and_prepend_put_the_trigger_word_in_once(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1", "2")
    (folder / "1.txt").write_text("a zorblax at night")
    written(folder, word="zorblax", mode="append")
    assert texts(folder) == {"1": "a zorblax at night, number 1\n", "2": "zorblax, number 2\n"}
    written(folder, "in front", word="zorblax", mode="prepend")
    assert texts(folder)["1"] == "in front number 1, a zorblax at night, number 1\n"
    undo(folder)
    assert texts(folder)["1"] == "a zorblax at night, number 1\n"


@pytest.mark.parametrize("mode", ["append", "prepend"])
def test_the_same_command_again_adds_nothing(mode: str, tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1")
    (folder / "1.txt").write_text("a dog")
    written(folder, word="zorblax", mode=mode)
    once = texts(folder)
    written(folder, word="zorblax", mode=mode)
    assert texts(folder) == once and once["1"].count("number 1") == 1


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfmark\r\n", "ü\r\n".encode("utf-16")])
def test_undo_gives_the_mark_in_front_back(data: bytes, tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1")
    (folder / "1.txt").write_bytes(data)
    written(folder, mode="replace")
    assert texts(folder) == {"1": "number 1\n"}
    undo(folder)
    assert (folder / "1.txt").read_bytes() == data


def test_a_persons_edit_is_noticed_and_kept(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1", "2")
    written(folder, "one")
    written(folder, "two", mode="replace")
    (folder / "2.txt").write_text("much better")
    assert written(folder, "two").edited == ["2"]
    record = provenance.read(folder / "captions.jsonl")[1]
    assert (record.text, record.edited_by) == ("much better", "a person")
    assert [row["text"] for row in record.previous] == ["one number 2", "two number 2"]
    assert undo(folder) == (["1"], ["2"])
    assert texts(folder) == {"1": "one number 1\n", "2": "much better"}


def test_a_picture_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1", "2", "broken", "3")
    told = written(folder)
    assert told.failed == {"broken": "it cannot be opened"} and sorted(told.written) == ["1", "2", "3"]
    assert sorted(texts(folder)) == ["1", "2", "3"]


def test_pictures_that_would_share_a_caption_file_are_told(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1")
    Image.new("RGB", (24, 24)).save(folder / "1.jpg")
    told = written(folder)
    assert list(told.failed.values()) == ["1.txt is the caption file of 1.jpg already; rename one of the pictures"]


def test_captions_elsewhere_and_with_another_extension(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1")
    photos(tmp_path / "p" / "sub", "1")
    written(folder, out=tmp_path / "out", extension=".blip.txt")
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.blip.txt")) == [
        "1.blip.txt",
        "sub/1.blip.txt",
    ]
    assert texts(folder) == {}


def test_rules_apply_to_a_folder_and_absorbing_is_no_history(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1", "2", "3")
    written(folder, "a red", word="zorblax", text=TextSection(absorb=0.9))
    assert texts(folder)["1"] == "zorblax, a 1\n"
    record = provenance.read(folder / "captions.jsonl")[0]
    assert record.said == "a red number 1" and record.previous == [] and record.edited_by == "rules"
    agree(folder)


def test_an_interrupted_write_is_finished(tmp_path: Path) -> None:
    folder = photos(tmp_path / "p", "1", "2")
    written(folder, "one")
    agree(folder)
    opened = ledger.Ledger.open(folder)
    record = replace(opened.records["1"], text="two", was="one number 1\n").after(opened.records["1"])
    with open(folder / "captions.jsonl", "a") as file:
        file.write(json.dumps(vars(record)) + "\n" + '{"example_id": "2", "te')
    (folder / ".2.txt.999999999.part").write_text("ha")
    assert written(folder, "one").edited == []
    assert texts(folder) == {"1": "two\n", "2": "one number 2\n"}
    agree(folder)


def test_a_runs_own_captions_are_not_undone(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "captions.jsonl").write_text("")
    with pytest.raises(DataError, match="come from its recipe"):
        undo(tmp_path)


KILLED = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from captune import captioners, captioning
    from captune.progress import Silent
    from captune.recipe import ArmSection, CaptionerSection, DatasetSection

    class Slow:
        settings = {"model": "slow"}
        @classmethod
        def load(cls, section, device="auto"): return cls()
        def sources(self, examples): return captioners.Sources()
        def caption(self, examples):
            time.sleep(0.002)
            return [f"number {e.id}, and more words about it" for e in examples]

    captioners.CAPTIONERS["slow"] = "__main__:Slow"
    captioners.OPTIONS["slow"] = frozenset()
    arm = ArmSection(name="a", captioner=CaptionerSection(name="slow", batch_size=8))
    print("ready", flush=True)
    told = captioning.caption_folder(arm, DatasetSection(path=Path(sys.argv[1])), Silent(), mode=sys.argv[2])
    print(len(told.written), flush=True)
    """
)


def killed_often(folder: Path, kills: int, longest: float, mode: str) -> None:
    """Run the captioning, killed at `kills` random moments, then to its end; the folder must agree."""
    draw = random.Random("kills")
    command = [sys.executable, "-c", KILLED, str(folder), mode]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    agree(folder)


def many(folder: Path, count: int) -> Path:
    return photos(folder, *(f"{i:03}" for i in range(count)))


def test_a_killed_run_leaves_every_picture_one_caption(tmp_path: Path) -> None:
    folder = many(tmp_path / "p", 60)
    for path in folder.glob("*[05].png"):
        path.with_suffix(".txt").write_text("before")
    killed_often(folder, 2, 0.6, "append")
    records = provenance.read(folder / "captions.jsonl")
    assert {r.text for r in records if r.example_id[-1] in "05"} == {
        f"before, number {i:03}, and more words about it" for i in range(0, 60, 5)
    }
    assert captioning.undo(folder)[0] == [f"{i:03}" for i in range(0, 60, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fill", "replace"])
def test_ten_kills_in_five_hundred_pictures(tmp_path: Path, mode: str) -> None:
    folder = many(tmp_path / "p", 500)
    killed_often(folder, 10, 1.5, mode)
    assert {r.text for r in provenance.read(folder / "captions.jsonl")} == {
        f"number {i:03}, and more words about it" for i in range(500)
    }

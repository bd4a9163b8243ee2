"""A folder of pictures captioned by a server: each by its own answer, none asked for twice, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from captune.captioners import openai_api
from captune.captioning import Outcome, caption_folder
from captune.errors import DataError, ModelError
from captune.progress import Silent
from captune.recipe import ArmSection, DatasetSection
from tests.chat_server import KEY, ChatServer, serving
from tests.unit.test_openai_api import everything_written, make_examples, section


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_api, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("CAPTION_KEY", KEY)


def captioned(folder: Path, server: ChatServer, **settings: object) -> Outcome:
    arm = ArmSection(name="captions", captioner=section(server, **settings))
    return caption_folder(arm, DatasetSection(path=folder), Silent())


def agree(folder: Path) -> dict[str, str]:
    """The captions, which the records and the caption files tell alike, one each."""
    rows = [json.loads(row) for row in (folder / "captions.jsonl").read_text().splitlines()]
    told = {row["example_id"]: row["text"] for row in rows}
    assert len(told) == len(rows)
    assert told == {path.stem: path.read_text().rstrip("\n") for path in folder.glob("*.txt")}
    return told


def first_of(name: str) -> Callable[[str, int], str]:
    """The picture that is asked for first meets this fault, whenever it is asked for."""
    met: list[str] = []

    def fault(picture: str, times: int) -> str:
        met.append(picture)
        return name if picture == met[0] else ""

    return fault


def test_every_picture_has_its_own_caption(tmp_path: Path) -> None:
    make_examples(tmp_path, 10)
    with serving() as server:
        outcome = captioned(tmp_path, server)
        assert len(outcome.written) == 10 and len(set(agree(tmp_path).values())) == 10
        assert outcome.account["asked"] == 10 and outcome.account["tokens_out"] > 0
        assert captioned(tmp_path, server).written == []
    assert sorted(server.asked.values()) == [1] * 10
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".txt", ".jsonl"}
    assert KEY not in everything_written(tmp_path)


def test_failure_is_named_and_asked_for_again_alone(tmp_path: Path) -> None:
    make_examples(tmp_path, 6)
    with serving(first_of("refusal")) as server:
        outcome = captioned(tmp_path, server)
        assert [*outcome.failed.values()] == ["refused: I can't describe people."]
        server.faults = lambda picture, times: ""
        assert captioned(tmp_path, server).written == [*outcome.failed]
    assert len(agree(tmp_path)) == 6 and sorted(server.asked.values()) == [1] * 5 + [2]


def test_empty_account_stops_the_run_and_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    make_examples(tmp_path, 12)
    with serving(lambda picture, times: "quota" if len(server.asked) == 7 else "") as server:
        with pytest.raises(ModelError, match="nothing more is asked"):
            captioned(tmp_path, server, batch_size=1)
        assert len(server.bodies) == 7
        server.faults = lambda picture, times: ""
        captioned(tmp_path, server, batch_size=1)
    assert len(agree(tmp_path)) == 12 and set(server.answered.values()) == {1}


def test_answers_that_cannot_be_kept_are_not_asked_for_again_one_by_one(tmp_path: Path) -> None:
    make_examples(tmp_path, 12)
    (tmp_path / "answers.jsonl").mkdir()  # no file can be written there
    with serving() as server, pytest.raises(DataError, match=r"cannot write .*answers.jsonl"):
        captioned(tmp_path, server, batch_size=2)
    assert set(server.asked.values()) == {1} and len(server.bodies) <= 3  # an error ends it before the others' turn

"""Captions from an OpenAI-compatible server that misbehaves: every picture ends once, within the limits, keys unseen."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune import captioners, engines
from captune.caption import caption_examples
from captune.captioners import openai_api
from captune.errors import CaptuneError, DataError, ModelError, RecipeError
from captune.progress import Silent
from captune.recipe import ArmSection, CaptionerSection, DatasetSection
from captune.runs import StageFolder, sha256_of
from captune.types import Caption, Example
from tests.chat_server import KEY, ChatServer, serving

DATASET = DatasetSection.model_validate({"path": "photos", "trigger_word": "jefpajot", "class_word": "cat"})


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_api, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(openai_api, "LONGEST_WAIT", 0.05)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("CAPTION_KEY", KEY)


def make_examples(folder: Path, count: int, side: int = 16) -> list[Example]:
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for index in range(count):
        path = folder / f"dress_{index:03d}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        examples.append(Example(path.stem, path, path, side, side, side, side, 1, sha256_of(path)))
    return examples


def section(server: ChatServer, **settings: object) -> CaptionerSection:
    values = {"name": "openai_api", "model": "tiny", "base_url": server.url, "image_format": "png", "batch_size": 4}
    return CaptionerSection.model_validate({**values, "api_key_env": "CAPTION_KEY", **settings})


def run(words: CaptionerSection, examples: Sequence[Example], out: Path) -> tuple[list[Caption], list[str]]:
    heard, folder = Heard(), StageFolder(out / "caption")
    arm = ArmSection(name="words", captioner=words)
    return caption_examples(arm, DATASET, examples, folder, heard, engines.load()), heard.lines


def ask(words: CaptionerSection, examples: Sequence[Example]) -> list[str | captioners.Failed]:
    captioners.check(words)
    return [*captioners.load(words, words=captioners.Words("jefpajot", "cat")).caption(examples)]


def everything_written(folder: Path) -> str:
    return "".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file() and p.suffix != ".png")


def faulty(*faults: str) -> Callable[[str, int], str]:
    """Every picture meets some faults, its own and always the same, before it is answered."""

    def fault(picture: str, times: int) -> str:
        met = random.Random(picture).sample(faults, k=random.Random(picture).randint(0, 3))
        return met[times - 1] if times <= len(met) else ""

    return fault


def test_every_picture_ends_with_a_caption_whatever_comes_between(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    examples = make_examples(tmp_path / "photos", 40)
    with serving(faulty("429", "500", "503", "drop", "half", "html", "other")) as server:
        server.seconds = 0.02
        made, lines = run(section(server), examples, tmp_path / "out")
    assert [c.example_id for c in made] == [e.id for e in examples]
    assert len({c.text for c in made}) == 40 and all(c.text.startswith("jefpajot, a picture called ") for c in made)
    assert set(server.answered.values()) == {1} and len(server.answered) == 40
    assert len(server.bodies) > 60 and 2 <= server.most_under_way <= 4
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in everything_written(tmp_path) and KEY not in caplog.text and KEY not in " ".join(lines)
    account = json.loads((tmp_path / "out/caption/manifest.json").read_text())["account"]
    assert account == {"asked": len(server.bodies), "kept": 0, "tokens_in": 40000, "tokens_out": 800, "spent": 0.0}


REFUSALS = {
    "refusal": "refused: I can't describe people.",
    "sorry": "refused: I'm sorry, but I can't help with that.",
    "content_filter": "refused by the server's content filter",
    "empty": "the answer has no text (finish_reason 'stop')",
    "length": "the caption was cut off; raise captioner.max_new_tokens",
    "400": "the server answered 400: trouble with Bearer [key]",
    "wait": "the server answered 429: later; it asks to wait 86400 seconds",
    "503": "the server answered 503: trouble with Bearer [key] (3 requests)",
    "drop": "the connection broke: Server disconnected without sending a response. (3 requests)",
}


def test_failures_are_named_and_only_they_are_asked_again(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 20)
    kinds = list(REFUSALS)
    order: list[str] = []

    def fault(picture: str, times: int) -> str:
        if picture not in order:
            order.append(picture)
        place = order.index(picture)
        return kinds[place] if place < len(kinds) else ""

    with serving(fault) as server:
        words = section(server, batch_size=1, retries=2)
        with pytest.raises(DataError) as caught:
            run(words, examples, tmp_path / "out")
        rows = [json.loads(line) for line in (tmp_path / "out/caption/failed.jsonl").read_text().splitlines()]
        assert [row["reason"] for row in rows] == list(REFUSALS.values())
        assert [row["id"] for row in rows] == [e.id for e in examples[: len(kinds)]]
        told = str(caught.value)
        assert "arm words: 9 of 20 pictures have no caption: dress_000 (refused: I can't describe people.)" in told
        assert KEY not in everything_written(tmp_path) + told
        kept = [json.loads(line) for line in (tmp_path / "out/caption/captions.jsonl").read_text().splitlines()]
        assert [row["example_id"] for row in kept] == [e.id for e in examples[len(kinds) :]]
        texts = sorted((tmp_path / "out/caption/captions").glob("*.txt"))
        assert [path.read_text() for path in texts] == [row["text"] + "\n" for row in kept]
        answered = dict(server.asked)
        server.faults = lambda picture, times: ""
        made, lines = run(section(server, batch_size=3), examples, tmp_path / "out")
        rows = [json.loads(line) for line in (tmp_path / "out/caption/captions.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and not any(row["previous"] for row in rows)
    assert len(made) == 20 and len({c.text for c in made}) == 20
    again = [picture for picture in order if server.asked[picture] > answered[picture]]
    assert again == order[: len(kinds)] and all(server.asked[p] == answered[p] + 1 for p in again)
    assert lines[0].startswith("arm words: 9 requests, 11 answers kept from before")
    assert not (tmp_path / "out/caption/failed.jsonl").exists()


def test_slow_answers_are_not_waited_for(tmp_path: Path) -> None:
    (example,) = make_examples(tmp_path, 1)
    with serving(lambda picture, times: "slow" if times == 1 else "") as server:
        began = time.monotonic()
        (text,) = ask(section(server, timeout=0.3), [example])
    assert isinstance(text, str) and text.startswith("a picture") and time.monotonic() - began < 1.4
    with serving(lambda picture, times: "slow") as server:
        (failed,) = ask(section(server, timeout=0.2, retries=1), [example])
    assert failed == captioners.Failed("no answer within 0.2 seconds (2 requests)")


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        ("401", RecipeError, r"answered 401: trouble with Bearer \[key\] \(it was given the key in CAPTION_KEY\)"),
        ("404", ModelError, "captioner.base_url .* or captioner.model is wrong"),
        ("quota", ModelError, "nothing more is asked until the account"),
    ],
)
def test_what_no_picture_would_get_past_stops_the_run(
    tmp_path: Path, fault: str, kind: type[CaptuneError], told: str
) -> None:
    with serving(lambda picture, times: fault) as server:
        with pytest.raises(kind, match=told):
            run(section(server), make_examples(tmp_path / "photos", 30), tmp_path / "out")
        assert len(server.bodies) <= 8
    assert KEY not in everything_written(tmp_path)


def test_server_that_is_not_there_is_not_asked_for_ever(tmp_path: Path) -> None:
    with serving() as server:
        gone = section(server, retries=1, timeout=2)
    said = ask(gone, make_examples(tmp_path, 30))
    reasons = [text.reason for text in said if isinstance(text, captioners.Failed)]
    assert len(reasons) == 30 and reasons[0].startswith(f"no connection to {server.url}/chat/completions")
    assert reasons[-1] == "not asked for, after 16 pictures in a row had no answer"


# money


def test_spending_limit_holds_with_requests_under_way_and_over_runs(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 30)
    prices = {"price_in": 2.5, "price_out": 10.0}  # an answer costs 0.0027
    limit = 0.0500
    with serving() as server:
        server.seconds = 0.01
        words = section(server, batch_size=8, spending_limit=limit, **prices)
        with pytest.raises(DataError, match=r"captioner.spending_limit = 0.05 leaves no room"):
            run(words, examples, tmp_path / "out")
        paid = len(server.bodies)
        assert paid == sum(server.answered.values()) and paid >= 10 and paid * 0.0027 <= limit
        with pytest.raises(DataError, match="leaves no room"):
            run(words, examples, tmp_path / "out")
        assert len(server.bodies) == paid  # what was spent before counts
        made, lines = run(section(server, spending_limit=1.0, **prices), examples, tmp_path / "out")
    assert len(made) == 30 and len(server.bodies) == 30 and set(server.answered.values()) == {1}
    assert lines[0].endswith("0.0810 spent in all")


def test_what_may_have_been_billed_counts_as_spent(tmp_path: Path) -> None:
    (example,) = make_examples(tmp_path, 1)
    settings = {"price_in": 100.0, "price_out": 100.0, "spending_limit": 1.0, "prompt": "Describe it.", "retries": 9}
    with serving(lambda picture, times: "html") as server:
        (failed,) = ask(section(server, **settings), [example])
    # 3000 tokens for the picture, 212 for the text, 300 for the answer: 0.3512 each, of which two fit
    assert isinstance(failed, captioners.Failed) and "leaves no room" in failed.reason and len(server.bodies) == 2
    with serving(lambda picture, times: "500") as server:
        (failed,) = ask(section(server, **settings), [example])
    assert isinstance(failed, captioners.Failed) and failed.reason.endswith("(10 requests)")  # errors are not billed


def test_server_that_counts_no_tokens_is_charged_what_was_set_aside(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 5)
    settings = {"price_in": 100.0, "price_out": 100.0, "spending_limit": 1.0, "prompt": "Describe it."}
    with serving() as server:
        server.usage = {}
        said = ask(section(server, **settings), examples)
    answered = [isinstance(text, str) for text in said]
    assert sum(answered) == 2  # which of them is not said: all ask at once


CHILD = """
import sys
from pathlib import Path
from tests.unit.test_openai_api import make_examples, run
from captune.captioners import openai_api
from captune.recipe import CaptionerSection
openai_api.FIRST_WAIT = 0.01
run(CaptionerSection.model_validate_json(sys.argv[1]), make_examples(Path(sys.argv[2]), 60), Path(sys.argv[3]))
"""


def test_killed_runs_pay_once_for_every_answer(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 60)
    with serving() as server:
        server.seconds = 0.02
        words = section(server, batch_size=3, price_in=1.0)
        for answers in (7, 30):
            command = [sys.executable, "-c", CHILD, words.model_dump_json(), tmp_path / "photos", tmp_path / "out"]
            child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": f"src{os.pathsep}."})
            while sum(server.answered.values()) < answers and child.poll() is None:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        (tmp_path / "out/answers.jsonl").open("a").write('{"ticket": "torn", "cost": 0.001, "ke')
        made, _ = run(words, examples, tmp_path / "out")
        assert len(made) == 60 and len({c.text for c in made}) == 60
    counts = Counter(server.answered.values())
    assert set(counts) <= {1, 2} and counts[2] <= 2 * 3  # only what was under way when a run was killed
    rows = [json.loads(row) for row in (tmp_path / "out/answers.jsonl").read_text().splitlines() if "torn" not in row]
    keys = Counter(row["key"] for row in rows if "text" in row)
    assert len(keys) == 60 and set(keys.values()) == {1}


# what is asked


def test_request_is_what_the_protocol_says(tmp_path: Path) -> None:
    (example,) = make_examples(tmp_path, 1, side=64)
    (tmp_path / "dress_000.tags").write_text("red dress, beach")
    prompt = 'A {class_word} called {trigger_word}, file {file_name}, tags: {tags}. Answer as {"a": 1}.'
    more = {"prompt": prompt, "extension": ".tags", "image_size": 32, "seed": 7, "image_format": "jpeg"}
    request = {"top_p": 0.5, "temperature": "", "max_tokens": "", "max_completion_tokens": 900}
    with serving() as server:
        ask(section(server, **more, request=request), [example])
        ask(section(server, api_key_env=None), [example])
    first, second = server.bodies
    (message,) = first.pop("messages")
    text, picture = message["content"]
    assert first == {"model": "tiny", "seed": 7, "top_p": 0.5, "max_completion_tokens": 900}
    assert message["role"] == "user" and text == {
        "type": "text",
        "text": 'A cat called jefpajot, file dress_000, tags: red dress, beach. Answer as {"a": 1}.',
    }
    url = picture["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert (second["temperature"], second["max_tokens"], server.keys[1]) == (0.0, 300, None)


def test_prompt_file_and_equal_pictures(tmp_path: Path) -> None:
    (example,) = make_examples(tmp_path, 1)
    (tmp_path / "say.txt").write_text("Say it\nas a {class_word} would.\n")
    with serving() as server:
        words = section(server, prompt_file=tmp_path / "say.txt")
        assert len({*ask(words, [example, example, example])}) == 1
    (body,) = server.bodies  # one question, asked once
    assert body["messages"][0]["content"][0]["text"] == "Say it\nas a cat would."


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "mini"}, "captioner.model is missing: 'openai_api' needs it"),
        ({"prompt": "a {trigger}"}, r"nothing fills \{trigger\}; did you mean \{trigger_word\}"),
        ({"extension": ".tags"}, r"captioner.extension is only read for \{tags\}"),
        ({"prompt_file": "nowhere.txt"}, "captioner.prompt_file = 'nowhere.txt' cannot be read"),
        ({"beams": 3}, "captioner.beams = '3' is not read by 'openai_api'"),
        ({"api_key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY, which holds the key for .* is not set"),
        ({"request": {"max_tokens": ""}, "spending_limit": 1, "price_in": 1}, "needs a number as max_tokens"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(settings: dict[str, object], told: str) -> None:
    values = {"name": "openai_api", "model": "tiny", "base_url": "http://127.0.0.1:9/v1", **settings}
    with pytest.raises(RecipeError, match=told):
        ask(CaptionerSection.model_validate(values), [])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompt": "a", "prompt_file": "b"}, "give prompt or prompt_file, not both"),
        ({"spending_limit": 1.0}, "spending_limit needs price_in and price_out"),
        ({"base_url": "http://me:secret@host/v1"}, "base_url holds a name or password"),
        ({"request": {"model": "other"}}, "request.model cannot be set"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CaptionerSection.model_validate({"name": "openai_api", "model": "tiny", **settings})


def test_openais_key_goes_to_openai_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as server:
        ask(section(server, api_key_env=None), make_examples(tmp_path, 1))
    assert server.keys == [None]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(
        RecipeError, match="OPENAI_API_KEY, which holds the key for https://api.openai.com/v1, is not set"
    ):
        captioners.load(CaptionerSection(name="openai_api", model="gpt-5"))

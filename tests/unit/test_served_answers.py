"""What OpenAI-compatible servers answer in their own ways: captions wherever they stand, nothing that cannot be written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from captune import captioners
from captune.captioners import openai_api
from captune.captioners._answers import Answers, LimitReached, Prices
from captune.errors import DataError, ModelError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example
from tests.chat_server import KEY, serving
from tests.unit.test_openai_api import ask, everything_written, make_examples, run, section


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_api, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("CAPTION_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which this machine's own servers are not asked through
    monkeypatch.delenv("NO_PROXY", raising=False)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_examples(tmp_path_factory.mktemp("one"), 1)[0]


def answered(example: Example, content: object, **more: object) -> str | captioners.Failed:
    """What is made of an answer with this content, which the server gives every time."""
    row = {"model": "m", "choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more}
    with serving(lambda picture, times: f"raw {json.dumps(row)}") as server:
        (text,) = ask(section(server, retries=0), [example])
    return text


@pytest.mark.parametrize(
    "content",
    [
        "a red dress",
        " a red\n dress\u2028",
        ["a red", "dress"],
        [{"type": "text", "text": "a red"}, {"type": "text", "text": "dress"}],
        [{"type": "output_text", "text": "a red dress"}, {"type": "text", "text": None}],
        "<think>blue?\nno</think> a red dress",
        "it is blue, no</think>a red dress",
        "a\x00 red\x1b dress",
    ],
)
def test_caption_is_found_in_every_form_of_a_message(example: Example, content: object) -> None:
    assert answered(example, content) == "a red dress"


@pytest.mark.parametrize(
    "usage", [None, "none", [], {"prompt_tokens": None}, {"prompt_tokens": 9.0, "completion_tokens": -1}]
)
def test_caption_counts_whatever_stands_for_usage(example: Example, usage: object) -> None:
    assert answered(example, "a red dress", usage=usage) == "a red dress"


def test_what_no_file_holds_is_replaced(example: Example, tmp_path: Path) -> None:
    assert answered(example, f"half \ud83d of it, {KEY}", model=f"m\ud83d {KEY}") == "half ? of it, [key]"
    row = {"model": f"m \ud83d {KEY}", "choices": [{"message": {"content": f"half \ud83d of it, {KEY}"}}]}
    with serving(lambda picture, times: f"raw {json.dumps(row)}") as server:
        (made,), _ = run(section(server), [example], tmp_path)
    assert made.text == "jefpajot, half ? of it, [key]" and KEY not in everything_written(tmp_path)


def test_short_key_is_no_secret_that_is_taken_out_of_captions(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_KEY", "none")
    assert answered(example, "nonetheless red") == "nonetheless red"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"type": "refusal", "refusal": "not this one"}], "refused: not this one"),
        ("<think>it goes on and on", "the answer has no text (finish_reason 'stop')"),
        (17, "the answer is no chat completion: {"),
    ],
)
def test_what_is_no_caption_is_named(example: Example, content: object, reason: str) -> None:
    failed = answered(example, content)
    assert isinstance(failed, captioners.Failed) and failed.reason.startswith(reason)


def test_nesting_without_end_is_no_answer(example: Example) -> None:
    with serving(lambda picture, times: "raw " + "[" * 100_000 if times == 1 else "") as server:
        (text,) = ask(section(server), [example])
    assert isinstance(text, str) and len(server.bodies) == 2


def test_packed_answer_that_trickles_in_is_not_waited_for(example: Example) -> None:
    began = time.monotonic()
    with serving(lambda picture, times: "trickle") as server:
        (failed,) = ask(section(server, timeout=0.3, retries=0), [example])
    assert failed == captioners.Failed("no answer within 0.3 seconds (1 requests)") and time.monotonic() - began < 2


def test_key_is_blotted_out_before_a_complaint_is_cut_short(example: Example) -> None:
    with serving(lambda picture, times: "long") as server:
        (failed,) = ask(section(server), [example])
    assert isinstance(failed, captioners.Failed) and failed.reason.endswith("xxx[key]") and KEY[:6] not in failed.reason


def test_errors_that_hold_for_all_pictures_stop_the_run(example: Example) -> None:
    with serving(lambda picture, times: "moved") as server, pytest.raises(ModelError, match=r"key=\[key\]; .*base_url"):
        ask(section(server), [example])
    with serving(lambda picture, times: "field") as server, pytest.raises(RecipeError, match="with captioner.request"):
        ask(section(server), [example])
    assert len(server.bodies) == 1


def test_servers_that_ask_to_wait_for_hours_are_not_asked_for_every_picture(tmp_path: Path) -> None:
    with serving(lambda picture, times: "wait") as server:
        said = ask(section(server, batch_size=1), make_examples(tmp_path, 20))
    assert len(server.bodies) == 16 and all(isinstance(text, captioners.Failed) for text in said)


def test_picture_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 4)
    examples[1].image.write_bytes(b"no picture")
    with serving() as server:
        said = ask(section(server), examples)
    assert [isinstance(text, str) for text in said] == [True, False, True, True] and len(server.bodies) == 3


def test_caption_that_the_server_counts_as_longer_than_allowed_is_kept(example: Example, tmp_path: Path) -> None:
    with serving() as server:
        server.usage = {"prompt_tokens": 1000, "completion_tokens": 900}  # a model's thoughts, say
        run(section(server, max_new_tokens=100), [example], tmp_path)
        for text in ({"trigger": "none"}, {"max_new_tokens": 200}):
            run(section(server, **{"max_new_tokens": 100, **text}), [example], tmp_path)
        assert len(server.bodies) == 1
        run(section(server, max_new_tokens=50), [example], tmp_path)
    assert len(server.bodies) == 2  # a shorter one was asked for


def test_what_pictures_cost_is_known_to_the_next_run(tmp_path: Path) -> None:
    prices, path = Prices(1.0, 1.0), tmp_path / "answers.jsonl"
    first = Answers(path, prices, limit=0.05)
    ticket = first.reserve(200, 3000, 100)
    first.settle(ticket, first.cost(ticket, 30_000, 700), key="k", tokens_in=30_000, tokens_out=700, text="a cat")
    assert first.spent == pytest.approx(0.0307)
    with pytest.raises(LimitReached):  # as much again does not fit
        Answers(path, prices, limit=0.05).reserve(200, 3000, 100)


def test_nobody_waits_for_money_of_a_request_whose_end_could_not_be_noted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answers = Answers(path, Prices(1.0, 1.0), limit=0.004)
    ticket = answers.reserve(200, 3000, 100)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot write"):
        answers.settle(ticket, 0.001, key="k", text="a cat")
    with pytest.raises(LimitReached):
        answers.reserve(200, 3000, 100)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"api_key_env": "sk-proj-0123"}, "api_key_env must be the name of an environment variable"),
        ({"base_url": "http://host/v1?key=sk-proj-0123"}, "base_url must end with its path"),
    ],
)
def test_key_in_the_recipe_is_refused_unseen(settings: dict[str, str], told: str) -> None:
    from captune import recipe

    captioner = {"name": "openai_api", "model": "tiny", **settings}
    values = {"dataset": {"path": "p"}, "train": {"steps": 1}, "arm": [{"name": "a", "captioner": captioner}]}
    with pytest.raises(RecipeError, match=told) as caught:
        recipe.from_values(values, source="r.toml")
    assert "sk-proj" not in str(caught.value)


def test_section_is_as_it_was_given() -> None:
    kept = CaptionerSection(name="openai_api", model="tiny", base_url="http://[::1]:8000/v1/", api_key_env="MY_KEY_2")
    assert (kept.base_url, kept.api_key_env) == ("http://[::1]:8000/v1/", "MY_KEY_2")

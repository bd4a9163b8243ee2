"""A model behind any OpenAI-compatible server as captioner: GPT, vLLM, Ollama, LM Studio, and what else speaks so."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import threading
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from captune import images
from captune.captioners import Failed, Sources
from captune.captioners._answers import Answers, LimitReached, Prices, Ticket
from captune.captioners._instructions import Instruction
from captune.captioners._server import Reply, Server, Trouble
from captune.errors import DataError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

OPENAI, OPENAI_KEY = "api.openai.com", "OPENAI_API_KEY"
LIMITS = ("max_tokens", "max_completion_tokens")  # by either name servers take the longest answer
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a request is sent again: doubled each time, up to the longest
PATIENCE = 600.0  # seconds that a server may ask to wait
GIVE_UP = 16  # pictures without an answer, one after another, after which no other is asked for
PICTURE_TOKENS = 3000  # set aside for a picture before the server has told how it counts; most count 85 to 2,500
LETTERS = 200  # bytes around the instruction that count as tokens too: roles, separators


@dataclass(frozen=True)
class _Request:
    """What is asked of one picture; equal keys are the same question."""

    example: Example
    instruction: str
    key: str

    @property
    def text_tokens(self) -> int:
        """At most so many: no tokenizer makes more tokens of a text than it has bytes."""
        return len(self.instruction.encode()) + LETTERS


class OpenaiApi:
    """Asks for captions, so many at a time; every answer is on disk as it comes."""

    def __init__(self, section: CaptionerSection, key: str, key_name: str, answers: Path | None) -> None:
        self._section = section
        self._instruction = Instruction(section)
        self._server = Server(section.base_url, key, key_name, section.timeout, section.batch_size)
        self._prices = Prices(section.price_in, section.price_out)
        self._answers = Answers(answers, self._prices, section.spending_limit)
        self._body = self._settings_of_a_request()
        self._most_out = self._longest_answer()
        self._stopped = threading.Event()
        self._silent = 0  # pictures in a row without an answer

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto", answers: Path | None = None) -> OpenaiApi:
        """The captioner that the section describes. Raises RecipeError where its key is not in the environment."""
        name = section.api_key_env
        if name is None:
            name = OPENAI_KEY if urllib.parse.urlsplit(section.base_url).hostname == OPENAI else ""
        key = os.environ.get(name, "").strip() if name else ""
        if name and not key:
            raise RecipeError(
                f"the environment variable {name}, which holds the key for {section.base_url}, is not set"
            )
        if not (key.isascii() and key.isprintable()):
            raise RecipeError(f"the environment variable {name} holds characters that no key has")
        return cls(section, key, name, answers)

    @property
    def settings(self) -> dict[str, object]:
        """Everything that is asked alike of every picture."""
        asked = {k: v for k, v in self._body.items() if k != "model"}
        return {
            "model": self._section.model,
            "base_url": self._section.base_url,
            "prompt": self._instruction.text,
            "image_size": self._section.image_size,
            "image_format": self._section.image_format,
            "request": asked,
        }

    def sources(self, examples: Sequence[Example]) -> Sources:
        """The files that tags are read from."""
        return self._instruction.sources(examples)

    def account(self) -> dict[str, float]:
        """Requests sent, answers found, tokens of this run, and what the arm's captions have cost in all."""
        return {**self._answers.counts, "spent": round(self._answers.spent, 6)}

    def caption(self, examples: Sequence[Example]) -> list[str | Failed]:
        """A caption or a failure for each picture; the same question is asked once."""
        requests = [self._request(example) for example in examples]
        unlike = {request.key: request for request in requests}
        pool = ThreadPoolExecutor(self._section.batch_size, thread_name_prefix="caption")
        try:
            said = dict(zip(unlike, pool.map(self._ask_or_stop, unlike.values()), strict=True))
        finally:  # what was sent is waited for: it is paid for
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._stopped.clear()
        return [said[request.key] for request in requests]

    def _settings_of_a_request(self) -> dict[str, Any]:
        section = self._section
        body: dict[str, Any] = {
            "model": section.model,
            "temperature": section.temperature,
            "max_tokens": section.max_new_tokens,
        }
        if section.seed is not None:
            body["seed"] = section.seed
        return {name: value for name, value in {**body, **section.request}.items() if value != ""}

    def _longest_answer(self) -> int:
        """How many tokens an answer may have, by whichever name the server takes it."""
        limits: list[int] = [self._body[name] for name in LIMITS if isinstance(self._body.get(name), int)]
        if self._section.spending_limit is not None and not limits:
            raise RecipeError("captioner.spending_limit needs a number as max_tokens or max_completion_tokens")
        return max([self._section.max_new_tokens, *limits])

    def _request(self, example: Example) -> _Request:
        """The question, known again by all that shapes its answer; not by the length allowed, which cuts none that fits."""
        instruction = self._instruction.of(example)
        shaping = {name: value for name, value in self._body.items() if name not in LIMITS}
        section = self._section
        picture = [example.sha256, section.image_size, section.image_format]
        asked = json.dumps([section.base_url, shaping, instruction, picture], sort_keys=True)
        return _Request(example, instruction, hashlib.sha256(asked.encode()).hexdigest())

    def _ask_or_stop(self, request: _Request) -> str | Failed:
        """As `_ask`; an error that ends the run ends it for the other pictures too, before it is their turn."""
        try:
            return self._ask(request)
        except BaseException:
            self._stopped.set()
            raise

    def _ask(self, request: _Request) -> str | Failed:
        """The caption that is kept from before, or asked for until there is one or it is clear that there is none."""
        known = self._answers.find(request.key, self._most_out)
        if known is not None:
            return known
        if self._silent >= GIVE_UP:
            return Failed(f"not asked for, after {GIVE_UP} pictures in a row had no answer")
        try:
            body = self._whole_body(request)
        except (DataError, OSError) as error:
            return Failed(str(error))
        for attempt in range(self._section.retries + 1):
            if self._stopped.is_set():
                return Failed("not asked for: the run was stopped")
            try:
                ticket = self._answers.reserve(request.text_tokens, PICTURE_TOKENS, self._most_out)
            except LimitReached:
                limit = self._section.spending_limit
                return Failed(f"not asked for: captioner.spending_limit = {limit:g} leaves no room")
            if self._stopped.is_set():  # while it waited for room
                self._answers.settle(ticket, 0.0)
                return Failed("not asked for: the run was stopped")
            came = self._send(body, ticket)
            if isinstance(came, Reply):
                self._silent = 0
                return self._kept(request, ticket, came)
            self._answers.settle(ticket, ticket.price if came.billed else 0.0, key=request.key, failed=came.reason)
            wait = max(came.wait, _pause(request.key, attempt))
            if not came.again:
                return Failed(came.reason)
            if wait > PATIENCE:
                self._silent += 1
                return Failed(f"{came.reason}; it asks to wait {came.wait:.0f} seconds")
            if attempt < self._section.retries:
                self._stopped.wait(wait)
        self._silent += 1
        return Failed(f"{came.reason} ({attempt + 1} requests)")

    def _send(self, body: dict[str, Any], ticket: Ticket) -> Reply | Trouble:
        """Send; what was set aside is free again if nothing came back but an error for the whole run."""
        try:
            return self._server.send(body)
        except BaseException as error:
            self._answers.settle(ticket, 0.0, failed=self._server.tellable(str(error)))
            raise

    def _kept(self, request: _Request, ticket: Ticket, reply: Reply) -> str | Failed:
        """The answer, written down with its cost before anyone reads it."""
        cost = self._answers.cost(ticket, reply.tokens_in, reply.tokens_out)
        tokens = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        facts = {
            "key": request.key,
            "id": request.example.id,
            **tokens,
            "allowed": self._most_out,
            "model": reply.model,
        }
        if reply.reason:
            self._answers.settle(ticket, cost, **facts, failed=reply.reason)
            return Failed(reply.reason)
        self._answers.settle(ticket, cost, **facts, text=reply.text)
        return reply.text

    def _whole_body(self, request: _Request) -> dict[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": self._data_url(request.example.image)}}
        content = [{"type": "text", "text": request.instruction}, picture]
        return {**self._body, "messages": [{"role": "user", "content": content}]}

    def _data_url(self, path: Path) -> str:
        """The picture, no larger than asked, as the text of a data: address."""
        picture, size, kind = images.open_picture(path), self._section.image_size, self._section.image_format
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format=kind.upper(), **({"quality": 92} if kind == "jpeg" else {}))
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _pause(key: str, attempt: int) -> float:
    """Seconds before the next request: twice as many each time, and other fractions of them for every picture, so that
    those that failed together do not come back together."""
    longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
    return longest * random.Random(f"{key} {attempt}").uniform(0.5, 1.0)

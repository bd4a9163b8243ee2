"""One request to an OpenAI-compatible server (chat completions), and what came of it. No key is ever in a message."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from captune import captions
from captune.errors import DataError, ModelError, RecipeError

LONGEST_ANSWER = 8 << 20  # bytes
_AGAIN = frozenset({408, 409, 425, 429})  # and 5xx
_THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_REFUSING = re.compile(
    r"^(?:i['’]?m sorry|i am sorry|sorry,|i (?:can['’]?t|cannot|can not|am unable|am not able)|as an ai)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reply:
    """An answer that can be read. `reason` says why it is no caption, if it is none."""

    text: str
    tokens_in: int | None  # None where the server does not count
    tokens_out: int | None
    model: str
    finish: str
    reason: str = ""


@dataclass(frozen=True)
class Trouble:
    """No answer: why, whether to ask again, and how long the server asks to wait."""

    reason: str
    again: bool
    wait: float = 0.0
    billed: bool = False  # whether the server may have worked all the same


class Server:
    """Sends requests; several threads may."""

    def __init__(self, base_url: str, key: str, key_name: str, timeout: float, connections: int) -> None:
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._key, self._key_name, self._timeout = key, key_name, timeout
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def send(self, body: Mapping[str, Any]) -> Reply | Trouble:
        """What one request brings. Raises RecipeError or ModelError where no other picture would fare better."""
        try:
            status, headers, content = self._exchange(body)
        except httpx2.InvalidURL:
            raise RecipeError(f"captioner.base_url: {self._url} is no address") from None
        except httpx2.UnsupportedProtocol:
            raise RecipeError(f"captioner.base_url: {self._url} must begin with http:// or https://") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return Trouble(self.without_key(f"no connection to {self._url}: {_words(error)}"), again=True)
        except httpx2.TimeoutException:
            return Trouble(f"no answer within {self._timeout:g} seconds", again=True, billed=True)
        except httpx2.HTTPError as error:
            return Trouble(self.without_key(f"the connection broke: {_words(error)}"), again=True, billed=True)
        if status != 200:
            return self._refused(status, headers, content)
        return self._read(content)

    def _exchange(self, body: Mapping[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body; a server that sends a byte now and then does not hold a request for ever."""
        until = time.monotonic() + self._timeout
        with self._client.stream("POST", self._url, json=body) as response:
            content = b""
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > until:
                    raise httpx2.ReadTimeout("the answer was too slow")
                if len(content) > LONGEST_ANSWER:
                    raise httpx2.DecodingError("the answer is too long")
            return response.status_code, response.headers, content

    def _refused(self, status: int, headers: httpx2.Headers, content: bytes) -> Trouble:
        """What an answer without a caption means: for every picture (raised), for this one, or for now."""
        message, code = self._complaint(content)
        told = self.without_key(f"the server answered {status}" + (f": {message}" if message else ""))
        if status in (401, 403):
            key = f"the key in {self._key_name}" if self._key else "no key: name its variable as captioner.api_key_env"
            raise RecipeError(f"{told} (it was given {key})")
        if status == 402 or code == "insufficient_quota":
            raise DataError(f"{told}; nothing more is asked until the account at {self._url} is filled")
        if status in (404, 405) or 300 <= status < 400:
            place = f"; it points to {headers['location']}" if "location" in headers else ""
            raise ModelError(f"{told}{place}; captioner.base_url ({self._url}) or captioner.model is wrong")
        return Trouble(told, again=status in _AGAIN or status >= 500, wait=_asked_to_wait(headers))

    def _complaint(self, content: bytes) -> tuple[str, str]:
        """The message and the code of an error, as far as the server gives them."""
        try:
            found = json.loads(content)
            found = found.get("error", found)
            if isinstance(found, str):
                return _short(found), ""
            return _short(str(found.get("message") or "")), str(found.get("code") or "")
        except (ValueError, AttributeError):
            return _short(content.decode("utf-8", "replace")), ""

    def _read(self, content: bytes) -> Reply | Trouble:
        """An answer's text and costs, or that it is none."""
        try:
            row = json.loads(content)
            choice = row["choices"][0]
            message = choice["message"]
            text, refusal = _spoken(message.get("content")), message.get("refusal")
            usage = row.get("usage") or {}
            tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
            finish, model = str(choice.get("finish_reason") or ""), str(row.get("model") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            message, _ = self._complaint(content)
            told = f"the answer is no chat completion: {message}" if message else "the answer is empty"
            return Trouble(self.without_key(told), again=True, billed=True)
        return Reply(text, *tokens, model, finish, self.without_key(_why_no_caption(text, refusal, finish)))

    def without_key(self, text: str) -> str:
        """The text with the key blotted out: servers repeat it in complaints."""
        return text.replace(self._key, "[key]") if self._key else text


def _why_no_caption(text: str, refusal: Any, finish: str) -> str:
    """Why an answer is no caption; "" if it is one."""
    if refusal:
        return f"refused: {_short(str(refusal))}"
    if finish == "content_filter":
        return "refused by the server's content filter"
    if finish == "length":
        return "the caption was cut off; raise captioner.max_new_tokens"
    if not text:
        return f"the answer has no text (finish_reason {finish or 'not given'!r})"
    if _REFUSING.match(text):
        return f"refused: {_short(text)}"
    return ""


def _spoken(content: Any) -> str:
    """The text of a message, in one piece or in parts, without a model's thoughts before it."""
    if isinstance(content, list):
        content = " ".join(part["text"] for part in content if part.get("type") == "text")
    return captions.one_line(_THINKING.sub("", content or ""))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _asked_to_wait(headers: httpx2.Headers) -> float:
    """The seconds of Retry-After, given as a number or as a date (RFC 9110, 10.2.3); 0 if there is none."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _short(text: str, longest: int = 200) -> str:
    line = captions.one_line(text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _words(error: Exception) -> str:
    return _short(str(error)) or type(error).__name__

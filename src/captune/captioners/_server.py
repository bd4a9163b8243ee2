"""One request to an OpenAI-compatible server (chat completions), and what came of it. No key is ever in a message."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from captune import captions
from captune.errors import ModelError, RecipeError

LONGEST_ANSWER = 8 << 20  # bytes
SHORTEST_SECRET = 8  # characters: shorter keys, such as "none" and "ollama", are words that captions may have
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_AGAIN = frozenset({408, 409, 425, 429})  # and 5xx
_UNREAD = ("unsupported_parameter", "unsupported_value", "unknown_parameter")  # fields that the model does not take
_THINKING = re.compile(r"^.*?</think>|^\s*<think>.*", re.DOTALL)  # templates may open it, and an answer end within it
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
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
            mounts={f"all://{host}": None for host in LOOPBACK},  # a proxy does not know this machine's servers
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
            return Trouble(f"no connection to {self._url}: {self._words(error)}", again=True)
        except httpx2.TimeoutException:
            return Trouble(f"no answer within {self._timeout:g} seconds", again=True, billed=True)
        except httpx2.DecodingError as error:
            return Trouble(f"the answer cannot be read: {self._words(error)}", again=True, billed=True)
        except httpx2.HTTPError as error:
            return Trouble(f"the connection broke: {self._words(error)}", again=True, billed=True)
        if not 200 <= status < 300:
            return self._refused(status, headers, content)
        return self._read(content)

    def _exchange(self, body: Mapping[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body."""
        until = time.monotonic() + self._timeout
        with self._client.stream("POST", self._url, json=body) as response:
            raw = _in_time(response.iter_raw(), until)
            content = b""
            # Unpacked by a response of its own, since this one keeps silent while too little came to be unpacked.
            for part in httpx2.Response(response.status_code, headers=response.headers, content=raw).iter_bytes():
                content += part
                if len(content) > LONGEST_ANSWER:
                    raise httpx2.DecodingError("it is too long")
            return response.status_code, response.headers, content

    def _refused(self, status: int, headers: httpx2.Headers, content: bytes) -> Trouble:
        """What an answer without a caption means: for every picture (raised), for this one, or for now."""
        message, code = self._complaint(content)
        told = f"the server answered {status}" + (f": {message}" if message else "")
        if status in (401, 403):
            key = f"the key in {self._key_name}" if self._key else "no key: name its variable as captioner.api_key_env"
            raise RecipeError(f"{told} (it was given {key})")
        if status == 402 or "insufficient_quota" in code:
            raise ModelError(f"{told}; nothing more is asked until the account at {self._url} is filled")
        if status in (404, 405) or 300 <= status < 400:
            place = f"; it points to {self._short(headers['location'])}" if "location" in headers else ""
            raise ModelError(f"{told}{place}; captioner.base_url ({self._url}) or captioner.model is wrong")
        if status in (400, 422) and (any(name in code for name in _UNREAD) or "max_completion_tokens" in message):
            raise RecipeError(f"{told}; leave the field out or name it otherwise with captioner.request")
        return Trouble(told, again=status in _AGAIN or status >= 500, wait=_asked_to_wait(headers))

    def _complaint(self, content: bytes) -> tuple[str, str]:
        """The message of an error, and its code and type, as far as the server gives them; else what came."""
        text, code = content.decode("utf-8", "replace"), ""
        try:
            found = json.loads(content)
            found = found.get("error", found)
            if isinstance(found, str):
                return self._short(found), ""
            text, code = str(found.get("message") or text), f"{found.get('code')} {found.get('type')}"
        except (ValueError, AttributeError, RecursionError):
            text = _MARKUP.sub(" ", text)
        return self._short(text).rstrip("."), code

    def _read(self, content: bytes) -> Reply | Trouble:
        """An answer's text and costs, or that it is none."""
        try:
            row = json.loads(content)
            choice = row["choices"][0]
            message = choice["message"]
            text, refusal = (
                self._spoken(message.get("content")),
                message.get("refusal") or _refusal(message.get("content")),
            )
            usage = row["usage"] if isinstance(row.get("usage"), dict) else {}
            tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
            finish, model = str(choice.get("finish_reason") or ""), self._short(str(row.get("model") or ""))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            message, _ = self._complaint(content)
            told = f"the answer is no chat completion: {message}" if message else "the answer is empty"
            return Trouble(told, again=True, billed=True)
        return Reply(text, *tokens, model, finish, self._why_no_caption(text, refusal, finish))

    def tellable(self, text: str) -> str:
        """The text as it may be written anywhere: on one line, without the key, which servers repeat, and without control
        characters and halves of characters, which no file holds."""
        if len(self._key) >= SHORTEST_SECRET:
            text = text.replace(self._key, "[key]")
        return captions.one_line(_CONTROL.sub(" ", text).encode("utf-8", "replace").decode())

    def _short(self, text: str, longest: int = 200) -> str:
        line = self.tellable(text)
        return line if len(line) <= longest else line[: longest - 1] + "…"

    def _words(self, error: Exception) -> str:
        return self._short(str(error)) or type(error).__name__

    def _why_no_caption(self, text: str, refusal: Any, finish: str) -> str:
        """Why an answer is no caption; "" if it is one."""
        if refusal:
            return f"refused: {self._short(str(refusal))}"
        if finish == "content_filter":
            return "refused by the server's content filter"
        if finish == "length":
            return "the caption was cut off; raise captioner.max_new_tokens"
        if not text:
            return f"the answer has no text (finish_reason {finish or 'not given'!r})"
        if _REFUSING.match(text):
            return f"refused: {self._short(text)}"
        return ""

    def _spoken(self, content: Any) -> str:
        """The text of a message, in one piece or in parts, without a model's thoughts before it."""
        if isinstance(content, list):
            content = " ".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
        return self.tellable(_THINKING.sub("", content or ""))


def _refusal(content: Any) -> str:
    """The refusal among a message's parts, where it stands there."""
    parts = content if isinstance(content, list) else []
    return next((str(part["refusal"]) for part in parts if isinstance(part, dict) and part.get("refusal")), "")


def _in_time(parts: Iterator[bytes], until: float) -> Iterator[bytes]:
    """The parts, as long as they come before that time; what comes a byte now and then would hold a request for ever."""
    for part in parts:
        if time.monotonic() > until:
            raise httpx2.ReadTimeout("the answer was too slow")
        yield part


def _count(value: Any) -> int | None:
    """A number of tokens, which some servers write as 20.0; None for what is none."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 1 << 53 else None


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

"""A server that speaks the chat completions protocol on a port of its own, and misbehaves as it is told to."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = "sk-proj-a-key-that-nobody-may-read-0123456789"


class ChatServer(ThreadingHTTPServer):
    """Answers every picture with a caption of its own; `faults(picture, times asked)` says what goes wrong instead."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, faults: Callable[[str, int], str] = lambda picture, times: "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = faults
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.asked: dict[str, int] = {}  # requests by picture
        self.answered: dict[str, int] = {}  # captions sent by picture
        self.under_way = self.most_under_way = 0
        self.seconds = 0.0  # what every answer takes
        self.usage = {"prompt_tokens": 1000, "completion_tokens": 20}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or did not wait, is no news."""


def picture_of(body: dict[str, Any]) -> str:
    """The name under which a request's picture is known: a hash of its pixels."""
    (url,) = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    return hashlib.sha256(image.tobytes()).hexdigest()[:8]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": "no such page"}})
            return
        server, picture = self.server, picture_of(body)
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.asked[picture] = server.asked.get(picture, 0) + 1
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            fault = server.faults(picture, server.asked[picture])
        time.sleep(server.seconds)
        with server.lock:
            server.under_way -= 1
        self._answer(fault, picture)

    def _answer(self, fault: str, picture: str) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": f"a picture called {picture}", "refusal": None}
        finish = "stop"
        if fault in ("401", "429", "500", "503", "400", "404"):
            headers = {"Retry-After": "0.01"} if fault == "429" else {}
            self._send(int(fault), {"error": {"message": f"trouble with {self.headers.get('Authorization')}"}}, headers)
            return
        if fault == "moved":
            self._send(307, {}, {"Location": f"/elsewhere?key={KEY}"})
            return
        if fault == "field":
            told = {"message": "Unsupported parameter: 'max_tokens'.", "code": "unsupported_parameter"}
            self._send(400, {"error": told})
            return
        if fault == "long":
            self._send(400, {"error": {"message": "x" * 180 + KEY}})
            return
        if fault == "quota":
            self._send(429, {"error": {"message": "you exceeded your quota", "code": "insufficient_quota"}})
            return
        if fault == "wait":
            self._send(429, {"error": {"message": "later"}}, {"Retry-After": "86400"})
            return
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if fault == "half":
            self._raw(200, b'{"id": "chatcmpl-1", "choices": [{"mess', length=4000)
            self.close_connection = True
            return
        if fault.startswith("raw "):
            self._raw(200, fault.removeprefix("raw ").encode())
            return
        if fault == "trickle":
            self._trickle(gzip.compress(json.dumps({"choices": [{"message": message}]}).encode()))
            return
        if fault == "slow":
            time.sleep(1.5)
        if fault == "html":
            self._raw(200, b"<html>Bad gateway</html>")
            return
        if fault == "other":
            self._send(200, {"choices": []})
            return
        if fault == "refusal":
            message |= {"content": None, "refusal": "I can't describe people."}
        if fault == "sorry":
            message["content"] = "I'm sorry, but I can't help with that."
        if fault == "empty":
            message["content"] = ""
        if fault in ("length", "content_filter"):
            finish = fault
        with self.server.lock:
            self.server.answered[picture] = self.server.answered.get(picture, 0) + 1
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        usage = {**self.server.usage, "total_tokens": sum(self.server.usage.values())} if self.server.usage else None
        row = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny-2026", "choices": [choice]}
        self._send(200, {**row, "usage": usage})

    def _send(self, status: int, row: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(row).encode(), headers)

    def _trickle(self, data: bytes) -> None:
        """A packed body, a byte now and then: for a long time nothing can be unpacked of it."""
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for index in range(len(data)):
            self.wfile.write(data[index : index + 1])
            time.sleep(0.05)

    def _raw(self, status: int, data: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(faults: Callable[[str, int], str] = lambda picture, times: "") -> Iterator[ChatServer]:
    """A server for the time of the with block."""
    server = ChatServer(faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

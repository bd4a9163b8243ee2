"""What a server has answered and what that cost: one line a request, written as answers come, so nothing is paid twice.

The file outlives the stage's folder: a caption belongs to what was asked (picture, instruction, model, settings), and an
answer is found again by that whatever else has changed in the recipe.
"""

from __future__ import annotations

import json
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.errors import DataError

MILLION = 1_000_000


class LimitReached(Exception):
    """The spending limit leaves no room for another request."""


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, read and written."""

    read: float
    written: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.read + tokens_out * self.written) / MILLION


@dataclass(frozen=True)
class Ticket:
    """A request that may be sent: what is set aside for it until it is known what it cost."""

    name: str
    price: float


class Answers:
    """Finds what was answered before, and lets requests through as long as money is left; used by several threads.

    A request's price is set aside before it is sent, at the most it can be; while others are under way that may cost less
    than was set aside, one that does not fit waits for them. What was sent and never answered counts at its most.
    """

    def __init__(self, path: Path | None, prices: Prices, limit: float | None) -> None:
        self._path, self._prices, self._limit = path, prices, limit
        self._known: dict[str, dict[str, Any]] = {}
        self._reserved: dict[str, float] = {}
        self._changed = threading.Condition()
        self._most_in = self._most_out = 0  # the most tokens that a request was counted as, in earlier runs too
        self._counted = False  # whether an answer of this run has told how the server counts
        self._torn = False  # whether the file ends within a line
        self.spent = 0.0
        self.counts = dict.fromkeys(("asked", "kept", "tokens_in", "tokens_out"), 0)
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        """A torn last line is of an answer that came while the run was killed: its request counts at its most."""
        under_way: dict[str, float] = {}
        lines = path.read_bytes().split(b"\n")
        self._torn = bool(lines[-1])
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if "most" in row:
                under_way[row["ticket"]] = row["most"]
                continue
            under_way.pop(row["ticket"], None)
            self.spent += row["cost"]
            self._learn(row.get("tokens_in"), row.get("tokens_out"))
            if "text" in row:
                self._known[row["key"]] = row
        self.spent += sum(under_way.values())

    def _learn(self, tokens_in: int | None, tokens_out: int | None) -> None:
        self._most_in, self._most_out = max(self._most_in, tokens_in or 0), max(self._most_out, tokens_out or 0)

    def find(self, key: str, tokens_out: int) -> str | None:
        """The answer to what has this key, unless it was allowed to be, and is, longer than captions may be now.

        What a server counts is no measure alone: some count a model's thoughts, and more than they were allowed.
        """
        with self._changed:
            row = self._known.get(key)
            if row is None or min(row["tokens_out"] or 0, row.get("allowed", row["tokens_out"] or 0)) > tokens_out:
                return None
            self.counts["kept"] += 1
            text: str = row["text"]
            return text

    def reserve(self, text_tokens: int, picture_tokens: int, tokens_out: int) -> Ticket:
        """Set aside what a request can cost at most, or raise LimitReached.

        How many tokens a picture counts as is the server's secret until it has answered once; with a limit, the first
        request of a run therefore goes alone, and later ones set aside a quarter more than the most that was seen.
        """
        with self._changed:
            while True:
                tokens_in = text_tokens + max(picture_tokens, self._most_in * 5 // 4)
                price = self._prices.of(tokens_in, max(tokens_out, self._most_out))
                fits = self._limit is None or self.spent + sum(self._reserved.values()) + price <= self._limit
                alone = not self._reserved
                if fits and (alone or self._limit is None or self._counted):
                    break
                if alone:
                    raise LimitReached
                self._changed.wait()
            ticket = Ticket(uuid.uuid4().hex, price)
            if price:
                self._write({"ticket": ticket.name, "most": price})
            self._reserved[ticket.name] = price
            self.counts["asked"] += 1
            return ticket

    def settle(self, ticket: Ticket, cost: float, **more: Any) -> None:
        """Note how a request ended and what it cost: `more` is an answer, or why there is none."""
        with self._changed:
            self.spent += cost
            self._reserved.pop(ticket.name)
            self._changed.notify_all()  # first of all: where nothing can be written, nobody waits for ever
            if ticket.price or "text" in more:
                self._write({"ticket": ticket.name, "cost": cost, **more})
            if "text" in more:
                self._known[more["key"]] = more

    def cost(self, ticket: Ticket, tokens_in: int | None, tokens_out: int | None) -> float:
        """What an answered request cost; what was set aside where the server does not count tokens."""
        with self._changed:
            self.counts["tokens_in"] += tokens_in or 0
            self.counts["tokens_out"] += tokens_out or 0
            self._learn(tokens_in, tokens_out)
            self._counted = True
        if tokens_in is None or tokens_out is None:
            return ticket.price
        return self._prices.of(tokens_in, tokens_out)

    def _write(self, row: dict[str, Any]) -> None:
        """One whole line at the file's end, in the system's hands before anything else happens."""
        if self._path is None:
            return
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab", buffering=0) as file:
                file.write(b"\n" + line if self._torn else line)
        except OSError as error:
            raise DataError(
                f"cannot write {self._path}: {error.strerror}; free space or choose another --out"
            ) from None
        self._torn = False

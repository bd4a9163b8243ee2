"""Engines: who maps a worker over rows in batches. Here: this process; larger ones can be added to the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast

from captune import parts

ENGINES: dict[str, str] = {"local": "captune.engines.local:Local"}

Row = TypeVar("Row")
Result = TypeVar("Result")


class Engine(Protocol):
    """Applies a worker to batches of rows, yielding each batch's results in order as soon as they are there."""

    def map_batches(
        self, worker: Callable[[Sequence[Row]], list[Result]], rows: Sequence[Row], batch_size: int
    ) -> Iterator[list[Result]]:
        """Results of worker(rows[0:batch_size]), worker(rows[batch_size:...]), ... in the rows' order."""


def load(name: str = "local") -> Engine:
    """The engine of that name."""
    return cast(Engine, cast(Any, parts.load("engine", ENGINES, name))())

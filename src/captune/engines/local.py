"""Maps a worker over rows in this process, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Row = TypeVar("Row")
Result = TypeVar("Result")


class Local:
    """The engine that needs nothing: no other process, no other machine."""

    def map_batches(
        self, worker: Callable[[Sequence[Row]], list[Result]], rows: Sequence[Row], batch_size: int
    ) -> Iterator[list[Result]]:
        """Results of worker(rows[0:batch_size]), worker(rows[batch_size:...]), ... in the rows' order."""
        for start in range(0, len(rows), batch_size):
            yield worker(rows[start : start + batch_size])

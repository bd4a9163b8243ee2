"""Batches as large as memory holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Row = TypeVar("Row")
Result = TypeVar("Result")


class Fitting(Generic[Row, Result]):
    """Applies a worker to rows; where the GPU's memory does not hold them all, to half as many, then and afterwards."""

    def __init__(self, worker: Callable[[Sequence[Row]], list[Result]]) -> None:
        self._worker = worker
        self._most: int | None = None

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """The worker's results in order. Raises torch's OutOfMemoryError where a single row is too much."""
        done: list[Result] = []
        while len(done) < len(rows):
            left = len(rows) - len(done)
            size = left if self._most is None else min(left, self._most)
            results = self._attempt(rows[len(done) : len(done) + size])
            if results is None:
                self._most = size // 2
            else:
                done += results
        return done

    def _attempt(self, rows: Sequence[Row]) -> list[Result] | None:
        """The results, or None where they do not fit: outside the handler, so that what the error holds is let go."""
        import torch

        try:
            return self._worker(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        torch.cuda.empty_cache()
        return None

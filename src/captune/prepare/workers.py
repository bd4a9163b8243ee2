"""Many pictures at a time: in threads where there are few, in processes where there are many; results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from captune.errors import DataError

Row = TypeVar("Row")
Result = TypeVar("Result")

MANY = 256  # from so many on, starting processes pays; below, Pillow's work outside Python's lock is enough
WAITING = 4  # rows handed out per worker; a bounded number, however many there are


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Row], Result], rows: Sequence[Row], workers: int
) -> Generator[tuple[Row, Result], None, None]:
    """Each row with what `work` makes of it, in the rows' order; `work` and rows can be pickled.

    Raises DataError, naming the rows in hand, where a worker dies (a decoder that crashes, memory that runs out).
    """
    with _executor(len(rows), workers) as pool:
        handed: deque[tuple[Row, Future[Result]]] = deque()
        waiting = iter(rows)
        try:
            for row in waiting:
                handed.append((row, pool.submit(work, row)))
                if len(handed) >= workers * WAITING:
                    yield _first(handed)
            while handed:
                yield _first(handed)
        except BrokenProcessPool:
            names = ", ".join(str(getattr(row, "path", row)) for row, _ in list(handed)[: workers + 1])
            raise DataError(
                f"a worker process died while it worked on one of {names}: take out the picture that crashes its "
                "decoder, or use fewer --workers if memory ran out; the same command goes on from here"
            ) from None
        finally:
            for _, future in handed:
                future.cancel()


def _first(handed: deque[tuple[Row, Future[Result]]]) -> tuple[Row, Result]:
    row, future = handed[0]
    result = future.result()
    handed.popleft()
    return row, result


def _executor(rows: int, workers: int) -> Executor:
    if rows < MANY or workers == 1:
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_alone)


def _alone() -> None:
    """Each process works with one thread, since there is one per processor."""
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(1)

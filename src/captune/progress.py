"""How stages tell how far they are, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """One running piece of work."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count work done; `note` is a short live line such as the loss."""

    def move_to(self, done: int) -> None:
        """Set the count, for work that was already done in an earlier run."""


class Progress(Protocol):
    """Whoever shows the bars: the terminal, a test, or nobody."""

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Bar]:
        """A bar titled `title` over `total` pieces of work, for the time of the with block."""
        ...

    def say(self, line: str) -> None:
        """A line that stays: a stage's result or a warning."""


class _SilentBar:
    def advance(self, count: int = 1, note: str = "") -> None: ...

    def move_to(self, done: int) -> None: ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Bar]:
        yield _SilentBar()

    def say(self, line: str) -> None: ...

"""What a picture of the mini world shows: the things in a scene and the words that they are told by."""

from __future__ import annotations

from dataclasses import dataclass

PATTERNS: tuple[str, ...] = ("plain", "striped", "spotted")
SIZES: tuple[str, ...] = ("small", "medium", "large")
PLACES: tuple[str, ...] = ("left", "middle", "right")
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("cat", "green"),
        ("fish", "purple"),
        ("robot", "orange"),
        ("house", "pink"),
        ("star", "blue"),
        ("mushroom", "yellow"),
        ("bird", "red"),
        ("cube", "white"),
    }
)


@dataclass(frozen=True)
class Thing:
    """One drawn thing; `shape` is a world shape or a subject's name (then colour and pattern are ignored)."""

    shape: str
    color: str
    pattern: str = "plain"
    hat: bool = False
    size: str = "medium"
    place: str = "middle"
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A background and the things before it; `variant` in [0, 1] gently moves the background's horizon and sky."""

    background: str
    things: tuple[Thing, ...]
    variant: float = 0.5

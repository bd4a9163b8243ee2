"""What the oracle_* metrics share: the mini world's oracle, loaded once, and what a prompt asks for in its words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from captune import weights
from captune.errors import ModelError
from captune.metrics._encoder import open_rgb, version_of
from captune.mini import grammar, world
from captune.mini.oracle import Oracle, Reading

ENCODER = "mini world oracle"
_BETWEEN = {"small", "little", "medium", "medium-sized", "large", "big", *world.PATTERNS}


class Readings:
    """Reads pictures with the oracle, each once."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self._known: dict[tuple[str, int, int], Reading] = {}

    def read(self, paths: Sequence[Path], batch_size: int) -> list[Reading]:
        keys = [version_of(path) for path in paths]
        missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in self._known}
        for start in range(0, len(missing), batch_size):
            chunk = dict(list(missing.items())[start : start + batch_size])
            readings = self.oracle.read([open_rgb(path) for path in chunk.values()], batch_size)
            self._known.update(zip(chunk, readings, strict=True))
        return [self._known[key] for key in keys]


@lru_cache(maxsize=1)
def load() -> Readings:
    """The shipped oracle."""
    path = weights.EMBEDDED / "oracle.safetensors"
    try:
        return Readings(Oracle.load(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the mini world's oracle {path} could not be loaded ({str(error).splitlines()[0]}); install captune "
            "again, or leave the oracle_* metrics out of evaluate.metrics"
        ) from error


@dataclass(frozen=True)
class Asked:
    """One thing that a prompt asks for; `color` is None if it names none."""

    shape: str
    color: str | None


def asked_background(prompt: str) -> str | None:
    """The background that the prompt names; None if it names none, or several."""
    text = prompt.lower()
    named = [
        name
        for name, words in grammar.BACKGROUND_WORDS.items()
        if any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)
    ]
    return named[0] if len(named) == 1 else None


def asked_things(prompt: str) -> list[Asked]:
    """The world's shapes that the prompt names, each with the colour said directly before it."""
    words = re.findall(r"[\w-]+", prompt.lower())
    things = []
    for index, word in enumerate(words):
        if word not in world.SHAPES:
            continue
        before = index - 1
        while before >= 0 and words[before] in _BETWEEN:
            before -= 1
        color = words[before] if before >= 0 and words[before] in world.COLORS else None
        things.append(Asked(word, color))
    return things

"""Importers: other tools' configurations as a recipe's values, and the table to choose from. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import tomli_w

from captune import parts

IMPORTERS: dict[str, str] = {
    "kohya": "captune.importers.kohya:Kohya",
    "civitai": "captune.importers.civitai:Civitai",
    "dreambooth": "captune.importers.dreambooth:DreamBooth",
}


@dataclass
class Translation:
    """A recipe's values, and what became of every setting of the other tool; each setting is in one of the lists."""

    values: dict[str, Any] = field(default_factory=dict)
    translated: list[str] = field(default_factory=list)  # "--network_dim 16 -> train.rank = 16"
    missing: list[str] = field(default_factory=list)  # has no counterpart here: what it does, and what to do about it
    ignored_there: list[str] = field(default_factory=list)  # the other tool would not have read it either

    def put(self, said: str, place: str, value: Any, note: str = "") -> None:
        """Set `section.field`, and note that `said` became it."""
        *sections, last = place.split(".")
        target = self.values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
        self.translated.append(f"{said} -> {place} = {value!r}" + (f" ({note})" if note else ""))


class Importer(Protocol):
    """Reads one tool's configuration."""

    def translate(self, source: str, arguments: Sequence[str] | str = ()) -> Translation:
        """The configuration in `source` (the text of a file, "" for none) with command-line arguments."""


def load(name: str) -> Importer:
    """The importer of that name; a RecipeError lists those known."""
    return cast(Importer, parts.load("configuration", IMPORTERS, name)())


def as_toml(found: Translation) -> str:
    """The translation as a recipe, with comments on what it leaves out; reading it back gives the values."""
    lines = [f"# no counterpart: {line}" for line in found.missing]
    lines += [f"# not read there either: {line}" for line in found.ignored_there]
    return "".join(line + "\n" for line in lines) + tomli_w.dumps(found.values)

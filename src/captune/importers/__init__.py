"""Importers: other tools' configurations as a recipe's values, and the table to choose from. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

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
    sections = {name: value for name, value in found.values.items() if isinstance(value, dict | list)}
    lines += [f"{name} = {_toml(value)}" for name, value in found.values.items() if name not in sections]
    for name, content in sections.items():
        for table in content if isinstance(content, list) else [content]:
            lines += ["", f"[[{name}]]" if isinstance(content, list) else f"[{name}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A key, quoted where it is more than a word, such as a pattern of module names."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's texts and numbers are TOML's

"""One option of another tool, and how several are written in one. Imports no torch."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One option of the other tool: its value, and how it was written there."""

    value: Any
    said: str


Settings = dict[str, Setting]  # sd-scripts' name of an option, without the dashes -> what was given
NEVER_GIVEN = "not given"


def off(value: Any) -> bool:
    """Whether an option is there but says nothing: a switch that is off, or a number for "none"."""
    return value is None or value is False or value == ""


def pairs(given: Setting) -> Settings:
    """`name=value` pairs, as --network_args and --optimizer_args take them."""
    words = given.value if isinstance(given.value, list) else str(given.value).split()
    found = {}
    for word in words:
        name, _, value = str(word).partition("=")
        found[name] = Setting(value, str(word))
    return found


def literal(text: str) -> Any:
    """The Python value that a text spells, as sd-scripts reads arguments; a text that spells none is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

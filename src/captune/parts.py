"""Chooses an interchangeable part from a table `name -> "module:Class"`; the module is imported only then."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from captune.errors import RecipeError


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, if any is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown(kind: str, name: str, known: Iterable[str]) -> RecipeError:
    """The error for a name that no table has, with the nearest name and the whole list."""
    names = sorted(known)
    guess = nearest(name, names)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return RecipeError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


def load(kind: str, table: Mapping[str, str], name: str) -> Any:
    """The class or function that the table gives for `name`; a RecipeError lists the known names otherwise."""
    if name not in table:
        raise unknown(kind, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)

"""Writes docs/recipe.md from the models in captune.recipe: `python docs/make_recipe_reference.py`."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from captune.recipe import Recipe

PAGE = Path(__file__).with_name("recipe.md")
HEAD = """# The recipe

<!-- Written by docs/make_recipe_reference.py from src/captune/recipe/; change it there and run `make docs`. -->

A recipe is a TOML file that holds every setting of a run. It is checked once, before any work: all its errors are told
together, and a key that captune does not know is refused with the nearest one it knows. The resolved recipe, with every
default written out, is kept in the run folder as `recipe.toml`.

Any value can be changed for one run: `captune run recipe.toml --set train.rank=16 --set arm.blip.captioner.beams=3`.
Paths are relative to the folder one stands in. A recipe for
`captune tune-captioner` has a `[tune]` alone, with the keys of `arm.tune` below. The smallest recipe of a run:

```toml
[dataset]
path = "photos"
trigger_word = "jefpajot"

[train]
epochs = 10

[[arm]]
name = "blip"
captioner = { name = "blip" }
```
"""
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true, false", Path: "path"}
LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def kind_of(annotation: Any) -> str:
    """A type in a reader's words."""
    if annotation in PLAIN:
        return PLAIN[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind_of(part) for part in inner if part is not type(None))
    if origin is list:
        return f"list of {kind_of(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} of {kind_of(inner[0])}"
    return "table" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else str(annotation)


def limits_of(field: FieldInfo) -> str:
    """The limits of a number: ">= 1"."""
    found = [(sign, getattr(rule, name, None)) for rule in field.metadata for name, sign in LIMITS.items()]
    return " and ".join(f"{sign} {limit:g}" for sign, limit in found if limit is not None)


def default_of(field: FieldInfo) -> str:
    """The default as it would stand in TOML; "required" or "-" where there is none."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "-"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, list | tuple):
        return "`[" + ", ".join(f'"{entry}"' if isinstance(entry, str) else str(entry) for entry in value) + "]`"
    return f"`{value}`"


def table_of(model: type[BaseModel]) -> list[str]:
    """The keys of one section."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        value = " ".join(filter(None, [kind_of(field.annotation), limits_of(field)]))
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {value} | {default_of(field)} | {meaning} |")
    return lines


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a recipe's field, also where it is repeated; None for a plain value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def reference() -> str:
    """The whole page."""
    lines = [HEAD.rstrip(), "", "## Beside the sections", "", "| key | default | meaning |", "|---|---|---|"]
    for name, field in Recipe.model_fields.items():
        if section_of(field) is None:
            lines.append(f"| `{name}` | {default_of(field)} | {field.description} |")
    for name, field in Recipe.model_fields.items():
        model = section_of(field)
        if model is None:
            continue
        heading = f"[[{name}]]" if get_origin(field.annotation) is list else f"[{name}]"
        lines += ["", f"## `{heading}`", "", (model.__doc__ or "").strip(), "", *table_of(model)]
        for inner_name, inner in model.model_fields.items():
            nested = section_of(inner)
            if nested is not None:
                lines += ["", f"### `{name}.{inner_name}`", "", (nested.__doc__ or "").strip(), "", *table_of(nested)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")

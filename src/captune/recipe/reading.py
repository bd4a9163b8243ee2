"""Recipes from TOML files and plain values, and back."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from captune.errors import RecipeError
from captune.recipe.problems import sentences
from captune.recipe.whole import Recipe, TuneRecipe

Whole = TypeVar("Whole", Recipe, TuneRecipe)


def _overridden(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {text!r}: write it as section.key=value, for example train.rank=16")
        try:
            parsed = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()  # a bare word or path, as one would write it in a shell
        place: Any = values
        *parents, last = key.strip().split(".")
        for parent in parents:
            if isinstance(place, list):
                named = [row for row in place if isinstance(row, dict) and row.get("name") == parent]
                if not named and not (parent.isdigit() and int(parent) < len(place)):
                    raise RecipeError(f"--set {text!r}: there is no {parent!r} in the list")
                place = named[0] if named else place[int(parent)]
            else:
                place = place.setdefault(parent, {})
            if not isinstance(place, dict | list):
                raise RecipeError(f"--set {text!r}: {parent!r} is a value, not a section")
        if isinstance(place, list):
            raise RecipeError(f"--set {text!r}: name one of the list's entries before {last!r}")
        place[last] = parsed
    return values


def from_values(values: Mapping[str, Any], *, source: str = "recipe", overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from plain values; a RecipeError tells every problem at once, one a line."""
    return _made(Recipe, values, source, overrides)


def tuning_from_values(
    values: Mapping[str, Any], *, source: str = "recipe", overrides: Iterable[str] = ()
) -> TuneRecipe:
    """As `from_values`, for a recipe that tunes a captioner."""
    return _made(TuneRecipe, values, source, overrides)


def _made(model: type[Whole], values: Mapping[str, Any], source: str, overrides: Iterable[str]) -> Whole:
    changed = _overridden(_copied(values), overrides)
    try:
        return model(**changed)
    except ValidationError as error:
        lines: list[str] = sentences(error, model)
        count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError("\n  ".join([f"{source} has {count}:", *lines])) from None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def read(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a TOML recipe. Relative paths in it are relative to the folder one stands in, as in a shell."""
    return from_values(_values(path), source=str(path), overrides=overrides)


def read_tuning(path: Path, overrides: Iterable[str] = ()) -> TuneRecipe:
    """As `read`, for a recipe that tunes a captioner: its only section is [tune]."""
    return tuning_from_values(_values(path), source=str(path), overrides=overrides)


def tuning_of(source: str, overrides: Iterable[str] = ()) -> TuneRecipe:
    """The tuning that a recipe file, or a folder of pictures with captions, stands for."""
    if source.endswith(".toml"):
        return read_tuning(Path(source), overrides)
    place = Path(source).expanduser()
    if not place.is_dir():
        raise RecipeError(f"{source!r} is neither a recipe (.toml) nor a folder of pictures with captions")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", place.absolute().name).lstrip("_.-") or "captions"
    values = {"name": f"tune-{name}", "tune": {"path": source, "captioner": {"name": "blip"}}}
    return tuning_from_values(values, source=f"the tuning on {source}", overrides=overrides)


def split_targets(text: str) -> str | list[str]:
    """Targets as a shell has them: a preset, or names and patterns with commas between (none within brackets)."""
    entries = [entry.strip() for entry in re.split(r",(?![^({\[]*[)}\]])", text) if entry.strip()]
    return entries[0] if len(entries) == 1 else entries


def _values(path: Path) -> dict[str, Any]:
    """What a TOML file holds, its name as the recipe's if it gives none."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from None
    values.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem))
    return values


def as_toml(recipe: Recipe | TuneRecipe) -> str:
    """The resolved recipe, every value written out; reading it back gives an equal recipe."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))

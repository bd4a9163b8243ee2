"""Arguments and options that several commands have, and what is read from them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from captune.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.", show_default=False)]
Source = Annotated[
    Path, typer.Argument(metavar="RECIPE|FOLDER", help="A recipe, or a folder of pictures.", show_default=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.rank=16; repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; runs/<recipe name> if not given.")]
Device = Annotated[str | None, typer.Option("--device", help="Like --set base.device=...: cpu, cuda, cuda:1, mps.")]
Processes = Annotated[
    int,
    typer.Option("--processes", min=1, help="Train with so many processes, one GPU each; leave out under a launcher."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]


def read_recipe(file: Path, settings: list[str] | None, device: str | None) -> Recipe:
    """The recipe with what the command line changes."""
    from captune import recipe

    device_setting = [f"base.device={json.dumps(device)}"] if device else []
    return recipe.read(file, [*(settings or []), *device_setting])


def typed() -> str:
    """What a person would type to do this again."""
    return shlex.join(["captune", *sys.argv[1:]])


def refuse(source: str, options: Mapping[str, object]) -> None:
    """Refuse the options that are given and not read for this kind of source."""
    from captune.errors import RecipeError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise RecipeError(f"{given[0]} is not read for {source}; leave it out")

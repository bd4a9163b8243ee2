"""`captune prepare`: of a recipe, or of a folder by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captune import console
from captune.cli.options import AsJson, Device, Out, Settings, Source, refuse
from captune.cli.story import run_until


def prepare(
    source: Source,
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="For a folder: the new folder to write.", show_default=False)
    ] = None,
    settings: Settings = None,
    crop: Annotated[str | None, typer.Option(help="Like --set prepare.crop=...: square or bucket.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Like --set dataset.resolution=...")] = None,
    blur_faces: Annotated[
        str | None, typer.Option(help="Like --set prepare.blur_faces=...: none, others or all.")
    ] = None,
    near_duplicates: Annotated[
        str | None, typer.Option(help="Like --set prepare.near_duplicates=...: keep or drop.")
    ] = None,
    multiple: Annotated[
        int | None, typer.Option(min=1, help="For a folder: sides are multiples of so many pixels; 8, or 16 for FLUX.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="For a folder: processes to share the work; one per processor.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="For a folder: remove what this command made of others in OUT.")
    ] = False,
    out: Out = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Bring the pictures to the size that training needs: a recipe's into its run, or a FOLDER's into OUT."""
    given = {
        "prepare.crop": crop,
        "dataset.resolution": resolution,
        "prepare.blur_faces": blur_faces,
        "prepare.near_duplicates": near_duplicates,
    }
    changed = [*(settings or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    if source.is_file() or (target is None and not source.is_dir()):
        with console.told():
            refuse("a recipe, whose run folder is named by --out", {"OUT": target})
            refuse("a recipe", {"--multiple": multiple, "--workers": workers, "--replace": replace or None})
        run_until("prepare")(source, changed, out, device, as_json=as_json)
        return
    with console.told():
        refuse("a folder", {"--out": out, "--device": device})
        _prepare_folder(source, target, changed, multiple, replace, workers, as_json)


def _prepare_folder(
    source: Path,
    target: Path | None,
    settings: list[str],
    multiple: int | None,
    replace: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    from captune import recipe
    from captune.errors import RecipeError

    if target is None:
        raise RecipeError(
            f"{source} is a folder: name the new folder to write, as in captune prepare {source} prepared"
        )
    only = {
        "dataset": {"path": str(source)},
        "train": {"steps": 1},
        "arm": [{"name": "a", "captioner": {"name": "sidecar"}}],
    }
    chosen = recipe.from_values(only, source="the command", overrides=settings)
    from captune.prepare.folder import prepare_folder

    with console.shown() as progress:
        told = prepare_folder(chosen, target, progress, multiple=multiple or 8, replace=replace, workers=workers)
    if as_json:
        console.print_json(told)
        return
    if told.already_done:
        console.print_lines(f"nothing to do: all of this was done before, in {told.out}")
    console.print_lines(f"pictures: {told.pictures} in {told.images}; files left out: {told.skipped}", style="bold")
    console.print_lines(f"beside them: caption files {told.captions}, masks {told.masks}")
    if told.masks:
        console.print_lines("train on them with train.masked_loss = true, so that the masks are read")
    console.print_lines(f"what became of every file: {told.out / 'files.jsonl'}")
    if told.contact_sheets:
        console.print_lines(f"look at: {', '.join(str(path) for path in told.contact_sheets)}")

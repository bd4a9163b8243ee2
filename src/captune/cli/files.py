"""LoRA files and other tools' settings: inspect, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captune import console
from captune.cli.options import AsJson, Device, Settings, refuse
from captune.cli.story import run_until

LoraPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="A LoRA file (.safetensors) of any tool.", show_default=False)
]


def inspect(file: LoraPath, as_json: AsJson = False) -> None:
    """Say what is in a LoRA file: family, rank, modules, norms, header, hashes, and which tools read all of it."""
    with console.told():
        from captune.inspection import inspect_lora

        found = inspect_lora(file)
        if as_json:
            console.print_json(found)
        else:
            console.print_table(str(file), found)


def export_lora(
    source: Annotated[
        Path, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a LoRA file.", show_default=False)
    ],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; for a file, the file to write.")] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="For a file: kohya (if not given), peft, or merged (a diffusers folder of the base)."
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="For a file: fp32, fp16 or bf16; fp16 if not given.")] = None,
    base: Annotated[str | None, typer.Option(help="For merged: the base model, a folder or a hub name.")] = None,
    family: Annotated[
        str | None, typer.Option(help="For merged: the base's family: sd (if not given), sdxl or flux.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write the LoRA files that other tools load: of a recipe's run, or from a LoRA file of any tool."""
    if source.suffix != ".safetensors":
        given = {"--format": form, "--precision": precision, "--base": base, "--family": family}
        with console.told():
            refuse("a recipe, whose own settings are in [export] and [base]", given)
        run_until("export")(source, settings, out, device, as_json=as_json)
        return
    with console.told(), console.shown() as progress:
        from captune import pipeline

        refuse("a LoRA file", {"--set": settings, "--device": device})
        if form != "merged":
            refuse(f"--format {form or 'kohya'}", {"--base": base, "--family": family})
        path, warnings = pipeline.convert(source, form or "kohya", out, precision or "fp16", base or "", family or "sd")
        for line in warnings:
            progress.say(line)
        if as_json:
            console.print_json({"file": path, "warnings": warnings})
        else:
            console.print_lines(f"written: {path}")


def import_recipe(
    context: typer.Context,
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="kohya, civitai or dreambooth.", show_default=False)],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Its configuration: a TOML (kohya) or JSON file (civitai).", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The recipe to write; printed if not given.")] = None,
) -> None:
    """Translate another tool's settings into a recipe, and say what became of each; its flags may follow."""
    with console.told():
        from captune import importers

        given = file if file is not None and not str(file).startswith("-") else None
        flags = context.args if given is not None or file is None else [str(file), *context.args]
        found = importers.load(tool).translate(_text_of(given), flags)
        for line in found.translated:
            console.print_aside("translated", line)
        for line in found.missing:
            console.print_aside("no counterpart", line)
        for line in found.ignored_there:
            console.print_aside("not read there either", line)
        if out is None:
            console.print_lines(importers.as_toml(found))
            return
        from captune import runs

        runs.write_text(out, importers.as_toml(found))
        console.print_lines(f"recipe: {out}")


def _text_of(file: Path | None) -> str:
    from captune.errors import DataError

    try:
        return "" if file is None else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None

"""The commands around captions: of a folder, their history, their formats, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune import console
from captune.cli.options import AsJson, Device, Source, refuse
from captune.cli.story import run_until

if TYPE_CHECKING:
    from captune.recipe import TrainSection

history = typer.Typer(help="Take back what the last captioning of a folder replaced (undo).", no_args_is_help=True)

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, such as train.rank=16; for a folder captioner.beams=3, text.absorb=0.6; repeatable.",
    ),
]
TrainSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, such as train.rank=16; for a folder one of training, such as train.flip=true; repeatable.",
    ),
]
Extension = Annotated[
    str | None, typer.Option(help="The caption files' extension, .txt if not given: .caption, .blip.txt ...")
]


def caption(
    source: Source,
    captioner: Annotated[
        str | None, typer.Option("--captioner", help="For a folder: who writes, such as blip.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="For a folder: like --set captioner.model=...")] = None,
    prompt: Annotated[str | None, typer.Option(help="For a folder: like --set captioner.prompt=...")] = None,
    trigger_word: Annotated[
        str | None, typer.Option(help="For a folder: the word that calls the subject; put in where missing.")
    ] = None,
    class_word: Annotated[str | None, typer.Option(help="For a folder: what the subject is.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="For a folder: new captions for all pictures.")] = False,
    append: Annotated[bool, typer.Option("--append", help="For a folder: add to captions that are there.")] = False,
    prepend: Annotated[bool, typer.Option("--prepend", help="For a folder: put in front of those there.")] = False,
    extension: Extension = None,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run folder; for a folder of pictures, where the caption files go."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write captions: a recipe's arms into its run, or a FOLDER's beside its pictures, filling in what is missing."""
    changes = {"captioner.model": model, "captioner.prompt": prompt}
    changes |= {"dataset.trigger_word": trigger_word, "dataset.class_word": class_word}
    given = [f"{key}={json.dumps(value)}" for key, value in changes.items() if value is not None]
    modes = [name for name, on in (("replace", replace), ("append", append), ("prepend", prepend)) if on]
    if not source.is_dir():
        with console.told():
            options = {"--captioner": captioner, "--model": model, "--prompt": prompt, "--trigger-word": trigger_word}
            options |= {"--class-word": class_word, "--extension": extension}
            _refuse_for_recipes(options | {f"--{mode}": True for mode in modes})
        run_until("caption")(source, settings, out, device, as_json=as_json)
        return
    with console.told():
        _caption_folder(
            source, captioner, [*given, *(settings or [])], modes, extension or ".txt", out, device, as_json
        )


def _refuse_for_recipes(options: Mapping[str, object]) -> None:
    refuse("a recipe, which says it in its own sections (--set changes them)", options)


def _train_of_folder(source: Path, settings: Sequence[str]) -> TrainSection:
    """How a folder's captions would be trained on, by --set train.flip=true and the like."""
    from captune import recipe
    from captune.errors import RecipeError

    other = [text for text in settings if not text.startswith("train.")]
    if other:
        raise RecipeError(f"--set {other[0]}: of a folder's lint only train.* can be set, such as train.flip=true")
    values = {
        "dataset": {"path": str(source)},
        "train": {"steps": 1},
        "arm": [{"name": "captions", "captioner": {"name": "sidecar"}}],
    }
    return recipe.from_values(values, source="the command", overrides=settings).train


def _caption_folder(
    source: Path,
    captioner: str | None,
    settings: Sequence[str],
    modes: Sequence[str],
    extension: str,
    out: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    from captune import captioners, recipe
    from captune.errors import RecipeError

    if captioner is None:
        known = ", ".join(sorted(captioners.CAPTIONERS))
        raise RecipeError(f"{source} is a folder: say who captions it with --captioner (known: {known})")
    if len(modes) > 1:
        raise RecipeError(f"--{modes[0]} and --{modes[1]} say different things; give one of them")
    own = ("captioner.", "text.")
    placed = [f"arm.captions.{text}" if text.startswith(own) else text for text in settings]
    values = {
        "dataset": {"path": str(source)},
        "train": {"steps": 1},
        "arm": [{"name": "captions", "captioner": {"name": captioner}}],
    }
    chosen = recipe.from_values(values, source="the command", overrides=placed)
    from captune import captioning
    from captune.tokens import Tokens

    counted = any(text.startswith("base.model") for text in settings)
    with console.shown() as progress:
        told = captioning.caption_folder(
            chosen.arm[0],
            chosen.dataset,
            progress,
            mode=modes[0] if modes else "fill",  # type: ignore[arg-type]
            out=out,
            extension=extension,
            device=device or chosen.base.device,
            load_tokens=(lambda: Tokens.load(chosen.base)) if counted else None,
        )
    if as_json:
        console.print_json(told)
    else:
        console.print_lines(f"captions written in {told.out}: {len(told.written)}", style="bold")
        if told.kept:
            console.print_lines(f"left as they are: {len(told.kept)}; --replace writes others in their place")
        if told.edited:
            console.print_lines(f"edited by a person since, and kept: {', '.join(told.edited)}")
        for name, reason in told.failed.items():
            console.print_lines(f"not captioned: {name}: {reason}", style="red")
    if told.failed:
        raise typer.Exit(1)


@history.command("undo")
def undo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder with captions.jsonl.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Give the pictures that the last run captioned anew their former captions; the texts taken back stay in captions.jsonl."""
    with console.told():
        from captune import captioning

        restored, edited = captioning.undo(folder)
        if as_json:
            console.print_json({"restored": restored, "edited": edited})
            return
        console.print_lines(f"{len(restored)} captions restored in {folder}" if restored else "nothing to undo")
        if edited:
            console.print_lines(f"edited by a person since, and left: {', '.join(edited)}")


def compile_captions(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="A folder of pictures or shards, or a data set by name (owner/name).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="The folder or file to write; DIR itself if not given.", show_default=False),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="jsonl, csv, parquet (metadata tables), sidecars, kohya or webdataset.")
    ] = "jsonl",
    extension: Extension = None,
    trigger_word: Annotated[
        str | None, typer.Option(help="For kohya: what the subject is called, in its folder's name.")
    ] = None,
    class_word: Annotated[
        str | None, typer.Option(help="For kohya: what the subject is, in its folder's name.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="For kohya: repeats of all pictures.")] = None,
    per_shard: Annotated[
        int | None, typer.Option(min=1, help="For webdataset: pictures in a shard, 1000 if not given.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a data set by name: which part of it is read, train if not given.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Of a data set by name: which configuration, where it has several.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Of a data set by name: its column of pictures; the only one if not given.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Of a data set by name: its column of captions; found by its name if not given.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Take only so many pictures.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a folder's captions into a metadata table, or into any other format, and back; every byte of text is kept."""
    with console.told():
        from itertools import islice

        from captune import formats
        from captune.errors import DataError
        from captune.formats import hub

        place = Path(source).expanduser()
        named = not place.exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))
        if not named:
            columns = {"--image-column": image_column, "--caption-column": caption_column}
            refuse("a folder", {"--split": split, "--config": config, **columns})
        if form != "kohya":
            words = {"--trigger-word": trigger_word, "--class-word": class_word, "--repeats": repeats}
            refuse(f"--format {form}", words)
        if form != "webdataset":
            refuse(f"--format {form}", {"--per-shard": per_shard})
        options = formats.Options(
            extension or ".txt", repeats, trigger_word or "", class_word or "", per_shard or 1000, replace
        )
        if out is None and (named or form in ("kohya", "webdataset")):
            raise DataError(f"name the folder to write, as in captune compile-captions {source} out --format {form}")
        of_hub = (split or "train", config or "", image_column or "", caption_column or "")
        rows = hub.read(source, *of_hub) if named else formats.read(place, options)
        written = formats.write(form, islice(rows, count), out or place, options)
        if as_json:
            console.print_json(written)
            return
        console.print_lines(f"{written.captions} captions in {written.out}", style="bold")
        if written.without:
            from captune.captions import some

            console.print_lines(
                f"{len(written.without)} pictures have no caption: {some(written.without)}", style="yellow"
            )


def lint(
    source: Source,
    extension: Extension = None,
    trigger_word: Annotated[str | None, typer.Option(help="For a folder: the word that calls the subject.")] = None,
    class_word: Annotated[str | None, typer.Option(help="For a folder: what the subject is.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="For a folder: smaller pictures are named.")] = None,
    base: Annotated[
        str | None, typer.Option(help="For a folder: the base whose tokens are counted, such as mini.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="For a folder: the base's family: sd (if not given), sdxl or flux.")
    ] = None,
    settings: TrainSettings = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with captions and pictures of a recipe or a folder; leaves with 1 where an error is among it."""
    with console.told():
        from captune import lint as linting
        from captune import recipe
        from captune.recipe import BaseSection

        if source.is_dir():
            if base is None:
                refuse("a folder without --base", {"--family": family})
            chosen = BaseSection(family=family or "sd", model=base) if base is not None else None
            findings = linting.lint_folder(
                source,
                extension=extension or ".txt",
                trigger_word=trigger_word or "",
                class_word=class_word or "",
                resolution=resolution,
                base=chosen,
                train=_train_of_folder(source, settings or []),
            )
        else:
            options = {"--trigger-word": trigger_word, "--class-word": class_word, "--resolution": resolution}
            _refuse_for_recipes(options | {"--base": base, "--family": family, "--extension": extension})
            findings = linting.lint_recipe(recipe.read(source, settings or []))
        if as_json:
            console.print_json({"ok": not findings, "findings": findings})
        else:
            for finding in findings:
                colour = {"error": "red", "warning": "yellow", "info": "cyan"}[finding.severity]
                console.print_marked(f"{finding.severity} [{finding.code}]", colour, finding.sentence)
            console.print_lines(
                f"{len(findings)} finding{'s' * (len(findings) > 1)}" if findings else "nothing to find fault with"
            )
        if any(finding.severity == "error" for finding in findings):
            raise typer.Exit(1)

"""The command line: one short command per stage, and run, demo, plan, study, doctor.

Heavy imports wait until they are needed, so that help and a recipe's errors come at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import captune
from captune import caption_commands, console

if TYPE_CHECKING:
    from captune.pipeline import Outcome
    from captune.recipe import Recipe

app = typer.Typer(
    help="Teach an image generator your subject from a folder of pictures, and see which captions taught it best.",
    epilog="Start with: captune demo",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

STORY, STAGE, MACHINE = "The whole story", "One stage, after the stages before it", "This machine"
FILES = "LoRA files and other tools"
CAPTIONS = "Captions"
STAGES = {
    "prepare": "Bring the pictures to the size that training needs.",
    "caption": "Write every arm's captions.",
    "train": "Train one LoRA per arm.",
    "sample": "Draw the same prompts and seeds with every LoRA, and without.",
    "evaluate": "Score the pictures and compare the arms.",
    "report": "Write the page that shows it all.",
}

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.", show_default=False)]
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


@app.callback(invoke_without_command=True)
def _captune(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"captune {captune.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _read(file: Path, settings: list[str] | None, device: str | None) -> Recipe:
    """The recipe with what the command line changes."""
    from captune import recipe

    device_setting = [f"base.device={json.dumps(device)}"] if device else []
    return recipe.read(file, [*(settings or []), *device_setting])


def _typed() -> str:
    """What a person would type to do this again."""
    return shlex.join(["captune", *sys.argv[1:]])


def _show(outcome: Outcome, folder: Path, as_json: bool) -> None:
    """Print what a run came to."""
    if as_json:
        facts = {"verdict": outcome.verdict, "report": outcome.report, "already_done": outcome.already_done}
        failures = [vars(failure) for failure in outcome.failures]
        console.print_json({"run": folder, **facts, "failures": failures, "summary": outcome.summary})
        return
    if outcome.already_done:
        console.print_lines(f"nothing to do: all of this was done before, in {folder}")
    console.print_lines(outcome.verdict, style="bold")
    for failure in outcome.failures:
        who = f"{failure.arm}, seed {failure.training_seed}"
        console.print_lines(f"not trained: {who}: {failure.reason}", style="red")
    if outcome.report is not None:
        console.print_lines(f"report: {outcome.report}")


def _run_until(upto: str | None) -> Callable[..., None]:
    """The command that runs a recipe's story up to a stage, or to its end."""

    def command(
        recipe: RecipeFile,
        settings: Settings = None,
        out: Out = None,
        device: Device = None,
        processes: Processes = 1,
        as_json: AsJson = False,
    ) -> None:
        with console.told() as running:
            if "RANK" in os.environ:  # a launcher started several of this command
                from captune.train import crew

                if crew.follows():
                    crew.serve()
                    sys.stdout.flush()
                    os._exit(0)  # its work is over; gloo's threads sometimes abort a process that ends in the usual way
            chosen = _read(recipe, settings, device)
            from captune import pipeline, runs

            folder = runs.RunFolder(out or Path("runs") / chosen.name)
            folder.check_writable()
            running.log = folder.path / "error.log"
            with console.shown() as progress:
                outcome = pipeline.run(chosen, folder, progress, upto=upto, command=_typed(), processes=processes)
            _show(outcome, folder.path, as_json)
            if outcome.failures:
                raise typer.Exit(1)

    return command


app.command("run", help="Run a recipe; a second run continues, or says that all is done.", rich_help_panel=STORY)(
    _run_until(None)
)


@app.command(rich_help_panel=STORY)
def demo(
    out: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("runs/demo"),
    subject: Annotated[str, typer.Option(help="Which creature to teach.")] = "jefpajot",
    as_json: AsJson = False,
) -> None:
    """Teach a creature that the embedded model cannot draw, with two arms of captions; no download, minutes."""
    with console.told() as running:
        from captune import runs
        from captune.demo import run_demo

        folder = runs.RunFolder(out)
        folder.check_writable()
        running.log = folder.path / "error.log"
        with console.shown() as progress:
            outcome = run_demo(folder, progress, subject=subject, command=_typed())
        _show(outcome, folder.path, as_json)


@app.command(rich_help_panel=STORY)
def plan(
    recipe: RecipeFile,
    settings: Settings = None,
    device: Device = None,
    processes: Processes = 1,
    measure: Annotated[
        int | None,
        typer.Option("--measure", min=3, help="Train so many steps, keep nothing, and say how long all will take."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe will do, and change nothing."""
    with console.told():
        chosen = _read(recipe, settings, device)
        from captune import planning

        values = planning.plan(chosen, processes)
        if measure is not None:
            from captune import measuring

            with console.shown() as progress:
                values["time"] = measuring.measure(chosen, values, measure, progress, processes=processes)
        if as_json:
            console.print_json(values)
            return
        console.print_table(f"plan of {chosen.name}", _readable(values))
        for warning in values.get("warnings", ()):
            console.print_lines(f"warning: {warning}", style="yellow")


def _readable(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan without its warnings, which stand below it, and with its time in hours and minutes."""
    rows = {name: value for name, value in plan.items() if name != "warnings"}
    if "time" in rows:
        rows["time"] = {**rows["time"], "training_time": console.duration(rows["time"]["training_seconds"])}
    return rows


@app.command(rich_help_panel=STORY)
def study(
    training_seeds: Annotated[int, typer.Option(min=1, help="Trainings per arm.")] = 3,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts.")] = 25,
    seeds: Annotated[int, typer.Option(min=1, help="Sampling seeds per prompt.")] = 4,
    difference: Annotated[
        float | None, typer.Option(min=0, help="The difference between two arms that you want to find.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A finished run to learn from how much scores vary.")
    ] = None,
    metric: Annotated[str, typer.Option(help="With --from: which metric; the study's primary one if not given.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what a study of some size can find, and what size finds a difference."""
    with console.told():
        from captune import designing
        from captune.evaluate.statistics import Design

        name, truth = ("CLIP-T, assumed", designing.TYPICAL)
        if source is not None:
            name, truth = designing.measured(source, metric)
        told = designing.plan_study(truth, Design(training_seeds, prompts, seeds), difference)
        if as_json:
            console.print_json({"metric": name, **told})
        else:
            console.print_lines(*designing.sentences(name, told))


for _stage, _sentence in STAGES.items():
    if _stage in ("prepare", "caption"):
        continue  # it takes a folder too: below
    app.command(_stage, help=_sentence, rich_help_panel=STAGE)(_run_until(_stage))


@app.command(rich_help_panel=STAGE)
def prepare(
    source: Annotated[
        Path,
        typer.Argument(metavar="RECIPE|FOLDER", help="A recipe, or a folder of pictures.", show_default=False),
    ],
    target: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="For a folder: the new folder to write.", show_default=False)
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
    if target is None and not source.is_dir():
        with console.told():
            _refuse("a recipe", {"--multiple": multiple, "--workers": workers, "--replace": replace or None})
        _run_until("prepare")(source, changed, out, device, as_json=as_json)
        return
    with console.told():
        _refuse("a folder", {"--out": out, "--device": device})
        _prepare_folder(source, target, changed, multiple, replace, workers, as_json)


def _refuse(source: str, options: dict[str, object]) -> None:
    """Refuse the options that are given and not read for this kind of source."""
    from captune.errors import RecipeError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise RecipeError(f"{given[0]} is not read for {source}; leave it out")


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
    console.print_lines(f"{told.pictures} pictures in {told.images}, {told.skipped} files left out", style="bold")
    console.print_lines(f"with {told.captions} caption files and {told.masks} masks beside them")
    if told.masks:
        console.print_lines("train on them with train.masked_loss = true, so that the masks are read")
    console.print_lines(f"what became of every file: {told.out / 'files.jsonl'}")
    if told.contact_sheets:
        console.print_lines(f"look at: {', '.join(str(path) for path in told.contact_sheets)}")


app.command("caption", rich_help_panel=STAGE)(caption_commands.caption_command(_run_until("caption")))
app.command("compile-captions", rich_help_panel=CAPTIONS)(caption_commands.compile_captions)
app.command("lint", rich_help_panel=CAPTIONS)(caption_commands.lint)
app.add_typer(caption_commands.history, name="captions", rich_help_panel=CAPTIONS)


LoraPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="A LoRA file (.safetensors) of any tool.", show_default=False)
]


@app.command(rich_help_panel=FILES)
def inspect(file: LoraPath, as_json: AsJson = False) -> None:
    """Say what is in a LoRA file: family, rank, modules, norms, header, hashes, and which tools read all of it."""
    with console.told():
        from captune.inspection import inspect_lora

        found = inspect_lora(file)
        if as_json:
            console.print_json(found)
        else:
            console.print_table(str(file), found)


@app.command("export", rich_help_panel=STAGE)
def export_lora(
    source: Annotated[
        Path, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a LoRA file.", show_default=False)
    ],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; for a file, the file to write.")] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="For a file: kohya, peft, or merged (a diffusers folder of the base)."),
    ] = None,
    precision: Annotated[str, typer.Option(help="For a file: fp32, fp16 or bf16.")] = "fp16",
    base: Annotated[str, typer.Option(help="For merged: the base model, a folder or a hub name.")] = "",
    family: Annotated[str, typer.Option(help="For merged: the base's family.")] = "sd",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write the LoRA files that other tools load: of a recipe's run, or from a LoRA file of any tool."""
    if source.suffix != ".safetensors":
        _run_until("export")(source, settings, out, device, as_json=as_json)
        return
    with console.told(), console.shown() as progress:
        from captune import pipeline

        path, warnings = pipeline.convert(source, form or "kohya", out, precision, base, family)
        for line in warnings:
            progress.say(line)
        if as_json:
            console.print_json({"file": path, "warnings": warnings})
        else:
            console.print_lines(f"written: {path}")


@app.command(
    "import",
    rich_help_panel=FILES,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help"]},
)
def import_recipe(
    context: typer.Context,
    tool: Annotated[str, typer.Argument(help="kohya, civitai or dreambooth.", show_default=False)],
    file: Annotated[
        Path | None, typer.Argument(help="Its configuration: a TOML (kohya) or JSON file (civitai).")
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


@app.command("score-captions", rich_help_panel=CAPTIONS)
def score_captions(
    candidates: Annotated[Path, typer.Option("--candidates", help="The captions to score: JSON or JSON lines.")],
    references: Annotated[Path, typer.Option("--references", help="What they are scored against: JSON or JSON lines.")],
    tokenizer: Annotated[str, typer.Option(help="ptb (as COCO's evaluation), simple, or none.")] = "ptb",
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", help="Names, with commas or repeated; all that are possible if not given."),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option("--training", help="The captioner's training captions, for novelty: JSON, lines or .txt."),
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="The folder of the pictures, for CLIPScore.")] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", help="The CLIP model for CLIPScore: mini, a folder or a hub name.")
    ] = "openai/clip-vit-base-patch32",
    device: Annotated[str, typer.Option("--device", help="Where CLIP runs: auto, cpu, cuda, mps.")] = "auto",
    decode: Annotated[
        list[str] | None,
        typer.Option("--decode", metavar="KEY=VALUE", help="How the captions were generated; kept beside the scores."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score captions against references as the literature does, with what every number rests on."""
    with console.told():
        from captune.metrics import captions
        from captune.metrics.captions import files

        judged = files.read_candidates(candidates)
        asked = [name.strip() for part in metrics or () for name in part.split(",") if name.strip()]
        scored = captions.score(
            judged,
            files.read_references(references),
            asked or captions.possible(training=training is not None, images=images is not None),
            tokenizer,
            training=files.read_texts(training) if training is not None else (),
            images=files.pictures_of(judged, images) if images is not None else None,
            encoder=encoder,
            device=device,
            decode=files.settings(decode or ()),
        )
        if as_json:
            console.print_json(scored)
            return
        console.print_table("caption scores", {**scored.corpus, **scored.absent})
        console.print_table("what these scores rest on", scored.facts)
        for warning in scored.warnings:
            console.print_lines(f"warning: {warning}", style="yellow")


@app.command("tune-captioner", rich_help_panel=CAPTIONS)
def tune_captioner(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|DATASET_DIR",
            help="A recipe with a \\[tune] section, or a folder of pictures with captions.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUTPUT_DIR", help="Where the adapter goes; runs/<name> if not given.")
    ] = None,
    settings: Settings = None,
    captioner: Annotated[str | None, typer.Option(help="blip or blip2.")] = None,
    model: Annotated[str | None, typer.Option(help="The captioner's model: mini, a folder, a hub name.")] = None,
    rank: Annotated[int | None, typer.Option(help="Like --set tune.rank=...; so are the options below.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Scale of the update: alpha / rank.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Share of the adapter's inputs zeroed while training.")] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="text, cross_attention, vision, all_linear, or module names or patterns, with commas between."
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Also write the whole model with the LoRA in it.")] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Upload the adapter to this hub repository; the token is HF_TOKEN's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tune a captioner on pictures that have captions, and say by intervals whether it captions new ones better."""
    given = {
        **{"rank": rank, "alpha": alpha, "dropout": dropout, "learning_rate": learning_rate},
        **{"weight_decay": weight_decay, "batch_size": batch_size, "epochs": epochs, "device": device, "push": push},
        **{"captioner.name": captioner, "captioner.model": model, "merged": merged or None},
    }
    with console.told() as running:
        from captune import recipe, runs

        changes = [f"tune.{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
        if target_modules is not None:
            changes.append(f"tune.targets={json.dumps(recipe.split_targets(target_modules))}")
        chosen = recipe.tuning_of(source, [*changes, *(settings or [])])
        from captune import tuning

        folder = runs.RunFolder(output or Path("runs") / chosen.name)
        folder.check_writable()
        running.log = folder.path / "error.log"
        with console.shown() as progress:
            tuned = tuning.tune(chosen, folder.path, progress, command=_typed())
        if as_json:
            console.print_json(vars(tuned))
            return
        if tuned.already_done:
            console.print_lines(f"nothing to do: all of this was done before, in {folder.path}")
        console.print_lines(tuned.verdict, style="bold")
        console.print_lines(f"adapter: {tuned.adapter}", f"report: {tuned.report}")


@app.command(rich_help_panel=MACHINE)
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what this machine can do, and what to mend."""
    with console.told():
        from captune import doctor as examination

        findings = examination.examine()
        if as_json:
            console.print_json({"ok": examination.healthy(findings), "findings": findings})
        else:
            examination.show(findings)
        if not examination.healthy(findings):
            raise typer.Exit(1)


def main() -> None:
    """The `captune` command."""
    app(prog_name="captune")


if __name__ == "__main__":
    main()

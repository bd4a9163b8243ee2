"""The command line: one short command per stage, and run, demo, plan, doctor.

Heavy imports wait until they are needed, so that help and a recipe's errors come at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import captune
from captune import console

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
STAGES = {
    "prepare": "Bring the pictures to the size that training needs.",
    "caption": "Write every arm's captions.",
    "train": "Train one LoRA per arm.",
    "sample": "Draw the same prompts and seeds with every LoRA, and without.",
    "evaluate": "Score the pictures and compare the arms.",
    "report": "Write the page that shows it all.",
    "export": "Write the LoRA files that other tools load.",
}

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.rank=16; repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; runs/<recipe name> if not given.")]
Device = Annotated[str | None, typer.Option("--device", help="Like --set base.device=...: cpu, cuda, cuda:1, mps.")]
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


def _show(outcome: Outcome, folder: Path, as_json: bool) -> None:
    """Print what a run came to."""
    if as_json:
        facts = {"verdict": outcome.verdict, "report": outcome.report, "already_done": outcome.already_done}
        console.print_json({"run": folder, **facts, "summary": outcome.summary})
        return
    if outcome.already_done:
        console.print_lines(f"nothing to do: all of this was done before, in {folder}")
    console.print_lines(outcome.verdict, style="bold")
    if outcome.report is not None:
        console.print_lines(f"report: {outcome.report}")


def _run_until(upto: str | None) -> Callable[..., None]:
    """The command that runs a recipe's story up to a stage, or to its end."""

    def command(
        recipe: RecipeFile, settings: Settings = None, out: Out = None, device: Device = None, as_json: AsJson = False
    ) -> None:
        with console.told() as running:
            chosen = _read(recipe, settings, device)
            from captune import pipeline, runs

            folder = runs.RunFolder(out or Path("runs") / chosen.name)
            folder.check_writable()
            running.log = folder.path / "error.log"
            with console.shown() as progress:
                outcome = pipeline.run(chosen, folder, progress, upto=upto)
            _show(outcome, folder.path, as_json)

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
            outcome = run_demo(folder, progress, subject=subject)
        _show(outcome, folder.path, as_json)


@app.command(rich_help_panel=STORY)
def plan(recipe: RecipeFile, settings: Settings = None, device: Device = None, as_json: AsJson = False) -> None:
    """Say what a recipe will do, and change nothing."""
    with console.told():
        chosen = _read(recipe, settings, device)
        from captune import planning

        values = planning.plan(chosen)
        if as_json:
            console.print_json(values)
            return
        console.print_table(f"plan of {chosen.name}", {name: v for name, v in values.items() if name != "warnings"})
        for warning in values.get("warnings", ()):
            console.print_lines(f"warning: {warning}", style="yellow")


for _stage, _sentence in STAGES.items():
    app.command(_stage, help=_sentence, rich_help_panel=STAGE)(_run_until(_stage))


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

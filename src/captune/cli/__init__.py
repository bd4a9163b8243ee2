"""The command line: one short command per stage, and run, demo, plan, study, doctor.

Heavy imports wait until they are needed, so that help and a recipe's errors come at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import captune
from captune import console
from captune.cli import captioners, captions, files, pictures, story
from captune.cli.options import AsJson

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
    "prepare": pictures.prepare.__doc__,
    "caption": captions.caption.__doc__,
    "train": "Train one LoRA per arm.",
    "sample": "Draw the same prompts and seeds with every LoRA, and without.",
    "evaluate": "Score the pictures and compare the arms.",
    "report": "Write the page that shows it all.",
}
OF_FOLDERS_TOO: dict[str, Callable[..., None]] = {"prepare": pictures.prepare, "caption": captions.caption}


@app.callback(invoke_without_command=True)
def _captune(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"captune {captune.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


app.command("run", help="Run a recipe; a second run continues, or says that all is done.", rich_help_panel=STORY)(
    story.run_until(None)
)
app.command(rich_help_panel=STORY)(story.demo)
app.command(rich_help_panel=STORY)(story.plan)
app.command(rich_help_panel=STORY)(story.study)
for _stage, _sentence in STAGES.items():
    app.command(_stage, help=_sentence, rich_help_panel=STAGE)(OF_FOLDERS_TOO.get(_stage) or story.run_until(_stage))
app.command("export", rich_help_panel=STAGE)(files.export_lora)
app.command("compile-captions", rich_help_panel=CAPTIONS)(captions.compile_captions)
app.command("lint", rich_help_panel=CAPTIONS)(captions.lint)
app.add_typer(captions.history, name="captions", rich_help_panel=CAPTIONS)
app.command("score-captions", rich_help_panel=CAPTIONS)(captioners.score_captions)
app.command("tune-captioner", rich_help_panel=CAPTIONS)(captioners.tune_captioner)
app.command("inspect", rich_help_panel=FILES)(files.inspect)
app.command(
    "import",
    rich_help_panel=FILES,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help"]},
)(files.import_recipe)


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

"""The whole story: run, demo, plan, study, and the commands that end at a stage."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune import console
from captune.cli.options import AsJson, Device, Out, Processes, RecipeFile, Settings, read_recipe, typed

if TYPE_CHECKING:
    from captune.pipeline import Outcome


def show(outcome: Outcome, folder: Path, as_json: bool) -> None:
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


def run_until(upto: str | None) -> Callable[..., None]:
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
            chosen = read_recipe(recipe, settings, device)
            from captune import pipeline, runs

            folder = runs.RunFolder(out or Path("runs") / chosen.name)
            folder.check_writable()
            running.log = folder.path / "error.log"
            with console.shown() as progress:
                outcome = pipeline.run(chosen, folder, progress, upto=upto, command=typed(), processes=processes)
            show(outcome, folder.path, as_json)
            if outcome.failures:
                raise typer.Exit(1)

    return command


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
            outcome = run_demo(folder, progress, subject=subject, command=typed())
        show(outcome, folder.path, as_json)


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
        chosen = read_recipe(recipe, settings, device)
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

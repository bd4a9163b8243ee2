"""Captions judged, and captioners tuned: score-captions, tune-captioner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from captune import console
from captune.cli.options import AsJson, Settings, typed


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
    captioner: Annotated[str | None, typer.Option(help="blip, blip2 or vlm.")] = None,
    model: Annotated[str | None, typer.Option(help="The captioner's model: mini, a folder, a hub name.")] = None,
    rank: Annotated[
        int | None, typer.Option(help="Like --set tune.rank=...: rank of the LoRA; so are those below.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="The LoRA's change is scaled by alpha / rank.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Share of the adapter's inputs zeroed while training.")] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="text, cross_attention, vision, all_linear, or module names or patterns, with commas between."
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the LoRA; 1e-4, or 1e-3 for the embedded BLIP.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="A step takes learning rate x this from every weight.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per forward pass.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
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
            tuned = tuning.tune(chosen, folder.path, progress, command=typed())
        if as_json:
            console.print_json(vars(tuned))
            return
        if tuned.already_done:
            console.print_lines(f"nothing to do: all of this was done before, in {folder.path}")
        console.print_lines(tuned.verdict, style="bold")
        console.print_lines(f"adapter: {tuned.adapter}", f"report: {tuned.report}")

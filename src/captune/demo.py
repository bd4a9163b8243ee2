"""The demonstration: a creature the embedded model has never seen, taught from 11 pictures by two arms of captions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from captune import pipeline, recipe, runs
from captune.mini import grammar, subjects, world
from captune.parts import unknown
from captune.pipeline import Outcome
from captune.progress import Progress
from captune.recipe import Recipe
from captune.runs import RunFolder

PICTURES = 11
SIDE = 128  # drawn at twice the model's size, so that the report shows the subject sharp
PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def run_demo(folder: RunFolder, progress: Progress, *, subject: str = "jefpajot", command: str = "") -> Outcome:
    """Draw the subject's pictures, caption them twice, train both LoRAs, sample, evaluate and report."""
    if subject not in subjects.SUBJECTS:
        raise unknown("subject", subject, subjects.SUBJECTS)
    pictures = folder.path / "photos"
    draw_photos(subject, pictures)
    outcome = pipeline.run(demo_recipe(subject, pictures), folder, progress, command=command)
    overview = folder.path / "demo.png"
    with runs.atomic(overview) as part:
        draw_overview(folder).save(part, "PNG")
    progress.say(f"picture: {overview}")
    return outcome


def draw_overview(folder: RunFolder, columns: int = 8, tile: int = 128) -> Image.Image:
    """The demo in one picture: photographs, and below each other the same prompts without and with each arm's LoRA."""
    chosen = recipe.read(folder.recipe)
    first = chosen.training_seeds[0]
    places = {"without LoRA": folder.stage("base/sample").path}
    places |= {arm.name: folder.training(arm.name, first, "sample").path for arm in chosen.arm}
    rows: dict[str, list[Path]] = {"photographs": sorted((folder.path / "photos").glob("*.png"))[:columns]}
    every = max(1, 24 // columns)  # spread over the backgrounds and the places
    for title, place in places.items():
        rows[title] = sorted((place / "pictures").glob("*.png"))[: columns * every : every]
    margin, gap = 150, 4
    sheet = Image.new("RGB", (margin + columns * (tile + gap), len(rows) * (tile + gap)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for y, (title, paths) in enumerate(rows.items()):
        pen.text((8, y * (tile + gap) + tile // 2), title, fill=(40, 40, 48), font=font, anchor="lm")
        for x, path in enumerate(paths):
            with Image.open(path) as picture:
                shown = picture.convert("RGB").resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(shown, (margin + x * (tile + gap), y * (tile + gap)))
    return sheet


def draw_photos(subject: str, folder: Path, count: int = PICTURES) -> None:
    """`count` pictures of the subject, each with a caption as a person would write it beside it (.txt)."""
    rng = random.Random(f"captions of {subject}")
    for index, scene in enumerate(subjects.training_scenes(subject, count)):
        style = "long" if index % 4 == 3 else "short"
        path = folder / f"{index:02d}.png"
        runs.write_text(path.with_suffix(".txt"), grammar.describe(scene, style, rng, name=subject) + "\n")
        with runs.atomic(path) as part:
            world.draw(scene, SIDE).save(part, "PNG")


def draw_captioned(folder: Path, count: int, style: str) -> None:
    """`count` pictures of the world's ordinary things, each with a caption in one style of the grammar beside it (.txt)."""
    rng = random.Random(f"captions in style {style}")
    for index in range(count):
        scene, path = world.random_scene(rng), folder / f"{index:02d}.png"
        runs.write_text(path.with_suffix(".txt"), grammar.describe(scene, style, rng) + "\n")
        with runs.atomic(path) as part:
            world.draw(scene, 64).save(part, "PNG")


def write_true_captions(subject: str, folder: Path, count: int, style: str) -> None:
    """Captions in one style for the pictures that `draw_photos` draws: what a perfect captioner of that style would say."""
    rng = random.Random(f"captions of {subject} in style {style}")
    for index, scene in enumerate(subjects.training_scenes(subject, count)):
        runs.write_text(folder / f"{index:02d}.txt", grammar.describe(scene, style, rng, name=subject) + "\n")


def subject_prompts(word: str = "{trigger_word}") -> list[str]:
    """24 prompts that ask for the subject: eight backgrounds x three places."""
    return [
        f"a {word} {PLACES[place]}, {grammar.BACKGROUND_PHRASES[background][0]}"
        for background in world.BACKGROUNDS
        for place in world.PLACES
    ]


def ordinary_prompts(count: int, seed: int, *, style: str = "short") -> list[str]:
    """Prompts of things the base knows, without the trigger word: one thing each, all seen in training."""
    rng = random.Random(seed)
    return [grammar.describe(world.random_scene(rng, two_share=0), style, rng) for _ in range(count)]


def demo_recipe(subject: str, pictures: Path) -> Recipe:
    """The demo's recipe; `captune run` on the run folder's recipe.toml does the same."""
    about = subjects.SUBJECTS[subject]
    values: dict[str, Any] = {
        "name": "demo" if subject == "jefpajot" else f"demo-{subject}",
        "dataset": {
            "path": str(pictures),
            "trigger_word": about.trigger_word,
            "class_word": about.class_word,
            "resolution": 64,
            "repeats": 4,
        },
        "train": {
            "rank": 8,
            "alpha": 8,
            "targets": "all",
            "learning_rate": 1e-3,
            "lr_scheduler": "cosine",
            "steps": 200,
            "batch_size": 8,
        },
        "regularization": {"count": 48, "prompts": ordinary_prompts(48, seed=1)},
        "arm": [
            {"name": "human", "captioner": {"name": "sidecar"}},
            {"name": "blip", "captioner": {"name": "blip", "batch_size": 11}},
        ],
        "sample": {
            "prompts": [*subject_prompts(), *ordinary_prompts(16, seed=2)],
            "batch_size": 20,
        },
        "study": {"primary": "oracle_subject"},
        "evaluate": {
            "metrics": ["clip_t", "clip_i", "oracle_subject", "oracle_background", "oracle_prompt", "oracle_leak"]
        },
    }
    return recipe.from_values(values, source="the demo's recipe")

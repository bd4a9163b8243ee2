"""What a recipe will do, said before anything is done or loaded: pictures, captions, tokens, steps, files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from captune import captioners, captions, images, weights
from captune.caption import told_cuts
from captune.errors import CaptuneError, DataError
from captune.families import FACTS
from captune.pipeline import check
from captune.prepare import buckets, held_out_names, scan
from captune.prepare.scan import Picture
from captune.recipe import ArmSection, Recipe
from captune.tokens import Tokens
from captune.train.plan import Steps, count_steps
from captune.types import BASE, Caption, Example


def plan(recipe: Recipe) -> dict[str, Any]:
    """What running the recipe would do; writes nothing and loads no weights. A DataError tells what cannot work."""
    check(recipe)
    found = scan(recipe.dataset.path, recipe.dataset.repeats)
    warnings = [f"{s.file} is skipped: {s.reason}" for s in found.skipped] + list(found.warnings)
    sizes = buckets.allowed_sizes(recipe.dataset.resolution, recipe.prepare, FACTS[recipe.base.family].multiple)
    visits: Counter[tuple[int, int]] = Counter()
    held = held_out_names([p.id for p in found.pictures], recipe.study.held_out)
    for picture in found.pictures:
        if picture.id in held:
            continue
        header = images.read_header(picture.path)
        visits[buckets.nearest_bucket(header.width, header.height, sizes)] += picture.repeats
    regularization = _regularization(recipe, visits)
    length = _steps(recipe, visits)
    said: dict[str, list[str]] = {}
    arms = [_arm(recipe, arm, said, list(found.pictures), warnings) for arm in recipe.arm]
    warnings += _about_prompts(recipe, said)
    trainings = len(recipe.arm) * len(recipe.training_seeds)
    return {
        "name": recipe.name,
        "base": recipe.base.model,
        "images": len(found.pictures),
        "captioned": min(a["captioned"] for a in arms),
        "repeats": recipe.dataset.repeats,
        "regularization_images": regularization,
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(visits.items())},
        "steps_per_epoch": length.steps_per_epoch,
        "epochs": length.epochs,
        "total_steps": length.total_steps,
        "arithmetic": length.arithmetic,
        "arms": arms,
        "held_out": recipe.study.held_out,
        "training_seeds": recipe.training_seeds,
        "trainings": trainings,
        "pictures_to_draw": _pictures(recipe, len(found.pictures) - recipe.study.held_out, trainings),
        "progress_pictures": _progress_pictures(recipe, length),
        "metrics": recipe.judging.measured,
        "primary": recipe.primary,
        "exports": [f"{recipe.name}-{arm.name} ({name})" for arm in recipe.arm for name in recipe.export.formats],
        "drawn_without_lora": BASE,
        "warnings": warnings,
    }


def _regularization(recipe: Recipe, visits: Counter[tuple[int, int]]) -> int:
    """Add the regularization images to the visits; returns how many there are."""
    section = recipe.regularization
    if section.path is not None:
        found = scan(section.path, section.repeats)
        sizes = buckets.allowed_sizes(recipe.dataset.resolution, recipe.prepare, FACTS[recipe.base.family].multiple)
        for picture in found.pictures:
            header = images.read_header(picture.path)
            visits[buckets.nearest_bucket(header.width, header.height, sizes)] += picture.repeats
        return len(found.pictures)
    if section.count:
        visits[recipe.dataset.resolution, recipe.dataset.resolution] += section.count * section.repeats
    return section.count


def _steps(recipe: Recipe, visits: Counter[tuple[int, int]]) -> Steps:
    train = recipe.train
    return count_steps(visits, train.batch_size, train.gradient_accumulation, epochs=train.epochs, steps=train.steps)


def _pictures(recipe: Recipe, trained_on: int, trainings: int) -> int:
    """How many pictures are drawn: the recipe's prompts, and every training picture asked back by its caption."""
    prompts = len(recipe.prompts) * len(recipe.sample.seeds) * (1 + trainings)
    if "reproduction" not in recipe.judging.measured:
        return prompts
    return prompts + trained_on * len(recipe.study.reproduction_seeds) * (len(recipe.arm) + trainings)


def _about_prompts(recipe: Recipe, said: dict[str, list[str]]) -> list[str]:
    """What makes the comparison weaker than it could be."""
    lines = []
    if not recipe.prompts:
        lines.append("sample.prompts is empty: no picture is drawn, and the arms cannot be compared")
    known = captions.known_prompts(
        recipe.prompts, {arm: [Caption("", text, "") for text in texts] for arm, texts in said.items()}
    )
    for index, arms in known.items():
        lines.append(f"the prompt {recipe.prompts[index]!r} stands in the captions of {', '.join(arms)}")
    if len(recipe.arm) > 1 and len(recipe.training_seeds) < 3:
        lines.append(
            "fewer than 3 study.training_seeds: the comparison will be about these files, not about the captions; "
            "set study.training_seeds = [0, 1, 2]"
        )
    return lines


def _progress_pictures(recipe: Recipe, length: Steps) -> int:
    every = recipe.sample.every_epochs
    rounds = length.epochs // every if every else 0
    return (
        rounds * min(recipe.sample.progress_prompts, len(recipe.prompts)) * len(recipe.arm) * len(recipe.training_seeds)
    )


def _arm(
    recipe: Recipe, arm: ArmSection, said: dict[str, list[str]], found: list[Picture], warnings: list[str]
) -> dict[str, Any]:
    """How many captions the arm has already; for a person's captions, their length in the base's tokens too."""
    told: dict[str, Any] = {"name": arm.name, "captions": arm.source}
    if arm.captioner is None:
        return {**told, "captioned": len(found), "to_write": 0}
    if arm.captioner.name != "sidecar":
        return {**told, "captioned": len(found), "to_write": len(found)}
    reader = captioners.load(arm.captioner)
    texts = {}
    for picture in found:
        try:
            texts[picture.id] = reader.caption([_as_example(picture)])[0]
        except DataError:
            continue  # told below, all together
    if len(texts) < len(found):
        try:
            reader.sources([_as_example(picture) for picture in found])
        except DataError as error:
            warnings.append(f"arm {arm.name}: {error}; the run would stop there")
    dataset, trigger = recipe.dataset, arm.captioner.trigger
    full = {
        name: captions.with_trigger_word(text, dataset.trigger_word, dataset.class_word, trigger)
        for name, text in texts.items()
    }
    said[arm.name] = list(full.values())
    return {**told, "captioned": len(texts), "to_write": 0, **_token_lengths(recipe, arm, full, warnings)}


def _as_example(picture: Picture) -> Example:
    """A picture as caption readers know it; it is not prepared yet, so its sizes do not matter."""
    return Example(picture.id, picture.path, picture.path, 0, 0, 0, 0, picture.repeats, "")


def _token_lengths(recipe: Recipe, arm: ArmSection, texts: dict[str, str], warnings: list[str]) -> dict[str, Any]:
    """Tokens of the captions by the base's own tokenizer, if it is on this machine; each one that will be cut is told."""
    if not texts:
        return {}
    try:
        if not Path(weights.locate(recipe.base.model, recipe.base.family)).is_dir():
            return {}  # a hub's model: asking for it would be a download
        tokens = Tokens.load(recipe.base)
    except CaptuneError as error:
        if str(error) not in warnings:
            warnings.append(str(error))
        return {}
    lengths = {name: tokens.measure(text) for name, text in texts.items()}
    warnings += told_cuts(arm.name, lengths)
    return {
        "longest_tokens": max(length.count for length in lengths.values()),
        "token_limit": tokens.limit,
        "cut": sum(length.over > 0 for length in lengths.values()),
    }

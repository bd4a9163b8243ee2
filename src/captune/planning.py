"""What a recipe will do, said before anything is done or loaded: pictures, captions, tokens, steps, files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from captune import captioners, captions, images, weights
from captune.errors import CaptuneError, DataError
from captune.pipeline import check
from captune.prepare import buckets, scan
from captune.prepare.scan import Picture
from captune.recipe import ArmSection, Recipe
from captune.train.plan import Steps, count_steps
from captune.types import BASE, Example

MULTIPLE = 8  # the sides' common factor, as the pipeline prepares them


def plan(recipe: Recipe) -> dict[str, Any]:
    """What running the recipe would do; writes nothing and loads no weights. A DataError tells what cannot work."""
    check(recipe)
    found = scan(recipe.dataset.path, recipe.dataset.repeats)
    warnings = [f"{s.file} is skipped: {s.reason}" for s in found.skipped] + list(found.warnings)
    sizes = buckets.allowed_sizes(recipe.dataset.resolution, recipe.prepare, MULTIPLE)
    visits: Counter[tuple[int, int]] = Counter()
    for picture in found.pictures:
        header = images.read_header(picture.path)
        visits[buckets.nearest_bucket(header.width, header.height, sizes)] += picture.repeats
    regularization = _regularization(recipe, visits)
    length = _steps(recipe, visits)
    arms = [_arm(recipe, arm, found.pictures, warnings) for arm in recipe.arm]
    pictures = len(recipe.prompts) * len(recipe.sample.seeds)
    if not recipe.prompts:
        warnings.append("sample.prompts is empty: no picture is drawn, and the arms cannot be compared")
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
        "trainings": len(recipe.arm),
        "pictures_to_draw": pictures * (1 + len(recipe.arm)),
        "progress_pictures": _progress_pictures(recipe, length),
        "metrics": list(recipe.evaluate.metrics),
        "exports": [f"{recipe.name}-{arm.name} ({name})" for arm in recipe.arm for name in recipe.export.formats],
        "drawn_without_lora": BASE,
        "warnings": warnings,
    }


def _regularization(recipe: Recipe, visits: Counter[tuple[int, int]]) -> int:
    """Add the regularization images to the visits; returns how many there are."""
    section = recipe.regularization
    if section.path is not None:
        found = scan(section.path, section.repeats)
        sizes = buckets.allowed_sizes(recipe.dataset.resolution, recipe.prepare, MULTIPLE)
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


def _progress_pictures(recipe: Recipe, length: Steps) -> int:
    every = recipe.sample.every_epochs
    rounds = length.epochs // every if every else 0
    return rounds * min(recipe.sample.progress_prompts, len(recipe.prompts)) * len(recipe.arm)


def _arm(recipe: Recipe, arm: ArmSection, pictures: list[Picture], warnings: list[str]) -> dict[str, Any]:
    """How many captions the arm has already; for a person's captions, their length in the base's tokens too."""
    name = arm.captioner.name
    if name != "sidecar":
        return {"name": arm.name, "captioner": name, "captioned": len(pictures), "to_write": len(pictures)}
    reader = captioners.load(arm.captioner)
    texts = []
    for picture in pictures:
        try:
            texts += reader.caption([_as_example(picture)])
        except DataError:
            continue  # told below, all together
    if len(texts) < len(pictures):
        try:
            reader.sources([_as_example(picture) for picture in pictures])
        except DataError as error:
            warnings.append(f"arm {arm.name}: {error}; the run would stop there")
    told: dict[str, Any] = {"name": arm.name, "captioner": name, "captioned": len(texts), "to_write": 0}
    return told | _token_lengths(recipe, arm, texts, warnings)


def _as_example(picture: Picture) -> Example:
    """A picture as caption readers know it; it is not prepared yet, so its sizes do not matter."""
    return Example(picture.id, picture.path, picture.path, 0, 0, 0, 0, picture.repeats, "")


def _token_lengths(recipe: Recipe, arm: ArmSection, texts: list[str], warnings: list[str]) -> dict[str, Any]:
    """Tokens of the captions by the base's own tokenizer, if it is on this machine."""
    try:
        root = Path(weights.locate(recipe.base.model, recipe.base.family))
    except CaptuneError as error:
        warnings.append(str(error))
        return {}
    if not (root / "tokenizer").is_dir() or not texts:
        return {}
    from transformers import AutoTokenizer

    dataset, captioner = recipe.dataset, arm.captioner
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
    full = [
        captions.with_trigger_word(text, dataset.trigger_word, dataset.class_word, captioner.trigger) for text in texts
    ]
    lengths = [len(ids) for ids in tokenizer(full, truncation=False, verbose=False).input_ids]
    limit = int(tokenizer.model_max_length)
    cut = sum(n > limit for n in lengths)
    if cut:
        warnings.append(f"arm {arm.name}: {cut} captions are longer than {limit} tokens; the rest is not read")
    return {"longest_tokens": max(lengths), "token_limit": limit, "cut": cut}

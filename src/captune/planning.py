"""What a recipe will do, said before anything is done or loaded: pictures, captions, tokens, steps, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, images, lint, rules, weights
from captune.caption_lengths import told_cuts
from captune.checking import check
from captune.errors import CaptuneError, DataError, ModelError
from captune.families import FACTS
from captune.prepare import buckets, duplicates, held_out_names, scan
from captune.prepare.captioned import split_of_folder
from captune.prepare.scan import Picture, Scan, Skipped, relative
from captune.recipe import ArmSection, Recipe, TrainSection
from captune.tokens import Tokens
from captune.train.optimizers import lr_factor
from captune.train.plan import Size, Steps, check_shares, count_steps, tuning_steps
from captune.types import BASE, Caption, Example

if TYPE_CHECKING:
    from captune.train.estimate import Needs


POINTS = 11  # of the learning rate's curve
PNG_BYTES = 2.0  # of a pixel in a photograph's PNG, about


def plan(recipe: Recipe, processes: int = 1) -> dict[str, Any]:
    """What running the recipe would do; writes nothing and loads no weights. A DataError tells what cannot work.

    Steps are exact, whatever the number of processes, which share a step's pictures; disk and memory are estimates.
    """
    check(recipe)
    check_shares(recipe.train.batch_size * recipe.train.gradient_accumulation, processes)
    found = _screened(recipe, scan(recipe.dataset.path, recipe.dataset.repeats, recipe.prepare.smallest_side))
    warnings = [f"{s.file} is skipped: {s.reason}" for s in found.skipped] + list(found.warnings)
    size_of = buckets.chooser(recipe.dataset.resolution, recipe.prepare, FACTS[recipe.base.family].multiple)
    visits: Counter[Size] = Counter()
    prepared: list[Size] = []
    held = held_out_names([p.id for p in found.pictures], recipe.study.held_out)
    for picture in found.pictures:
        header = images.read_header(picture.path)
        size = size_of(header.width, header.height)
        prepared.append(size)
        if picture.id not in held:
            visits[size] += picture.repeats
    warnings += _about_masks(recipe, found.pictures)
    regularization = _regularization(recipe, visits)
    length = _steps(recipe.train, visits)
    said: dict[str, dict[str, str]] = {}
    read: set[Path] = set()
    arms = [_arm(recipe, arm, said, list(found.pictures), read, warnings) for arm in recipe.arm]
    arms = [_with_own_length(recipe, arm, told, visits) for arm, told in zip(recipe.arm, arms, strict=True)]
    arms = [told | _tuning(arm) for arm, told in zip(recipe.arm, arms, strict=True)]
    unread = _unread(found.pictures, read)
    if unread:
        warnings.append(f"caption files that no arm reads: {captions.some([path.name for path in unread])}")
    warnings += lint.of_plan(recipe, found.pictures, said)
    warnings += _about_prompts(recipe, said)
    if recipe.train.stop_after is not None:
        warnings.append("train.stop_after may end the training before all of these steps")
    trainings = len(recipe.arm) * len(recipe.training_seeds)
    pictures = _pictures(recipe, len(found.pictures) - recipe.study.held_out, trainings)
    progress = _progress_pictures(recipe, length)
    needs = _needs(recipe, max(visits, key=lambda size: size[0] * size[1]), warnings)
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
        "processes": processes,
        "learning_rate": _learning_rate(recipe.train, length),
        "arms": arms,
        "held_out": recipe.study.held_out,
        "training_seeds": recipe.training_seeds,
        "trainings": trainings,
        "caption_files": {"read": len(read), "not_read": [str(path) for path in unread]},
        "pictures_to_draw": pictures,
        "progress_pictures": progress,
        "metrics": recipe.judging.measured,
        "primary": recipe.primary,
        "exports": [f"{recipe.name}-{arm.name} ({name})" for arm in recipe.arm for name in recipe.export.formats],
        "drawn_without_lora": BASE,
        **(_estimates(recipe, needs, prepared, length, pictures + progress, processes) if needs else {}),
        "warnings": warnings,
    }


def _screened(recipe: Recipe, found: Scan) -> Scan:
    """The pictures less the near-duplicates that prepare will leave out."""
    section = recipe.prepare
    if section.near_duplicates == "keep":
        return found
    root = recipe.dataset.path
    looks = {relative(p.path, root): duplicates.look(images.open_picture(p.path)) for p in found.pictures}
    headers = {relative(p.path, root): images.read_header(p.path) for p in found.pictures}
    pairs = list(duplicates.near_duplicates(looks, section.duplicate_distance))
    gone = duplicates.dropped(pairs, {name: header.width * header.height for name, header in headers.items()})
    left = [Skipped(name, duplicates.as_reason(pair, name)) for name, pair in gone.items()]
    kept = [picture for picture in found.pictures if relative(picture.path, root) not in gone]
    return replace(found, pictures=kept, skipped=sorted([*found.skipped, *left], key=lambda s: s.file))


def _about_masks(recipe: Recipe, pictures: Sequence[Picture]) -> list[str]:
    """Whether the masks beside the pictures are read, and whether there are any where they should be."""
    masks = sum(images.mask_file(picture.path).is_file() for picture in pictures)
    blurred = recipe.prepare.blur_faces != "none"
    lines = []
    if recipe.train.masked_loss or any(arm.train.get("masked_loss") for arm in recipe.arm):
        stop = "the run would stop: " if not masks and not blurred else ""
        lines.append(f"{stop}{masks} of {len(pictures)} pictures have a mask beside them (train.masked_loss)")
    elif masks:
        lines.append(f"{masks} pictures have a mask beside them that no training reads; set train.masked_loss = true")
    if blurred:
        lines.append("prepare.blur_faces: which faces there are, and so what is masked, is known when prepare has run")
    return lines


def _regularization(recipe: Recipe, visits: Counter[Size]) -> int:
    """Add the regularization images to the visits; returns how many there are."""
    section = recipe.regularization
    if section.path is not None:
        found = scan(section.path, section.repeats, recipe.prepare.smallest_side)
        size_of = buckets.chooser(recipe.dataset.resolution, recipe.prepare, FACTS[recipe.base.family].multiple)
        for picture in found.pictures:
            header = images.read_header(picture.path)
            visits[size_of(header.width, header.height)] += picture.repeats
        return len(found.pictures)
    if section.count:
        visits[recipe.dataset.resolution, recipe.dataset.resolution] += section.count * section.repeats
    return section.count


def _steps(train: TrainSection, visits: Counter[Size]) -> Steps:
    return count_steps(visits, train.batch_size, train.gradient_accumulation, epochs=train.epochs, steps=train.steps)


def _with_own_length(recipe: Recipe, arm: ArmSection, told: dict[str, Any], visits: Counter[Size]) -> dict[str, Any]:
    """An arm with settings of its own has steps of its own."""
    if not arm.train:
        return told
    length = _steps(recipe.train_of(arm, recipe.train.seed), visits)
    return {**told, "train": arm.train, "total_steps": length.total_steps, "arithmetic": length.arithmetic}


def _tuning(arm: ArmSection) -> dict[str, Any]:
    """What an arm's captioner learns first: the split of its pictures, where they are in a folder, and the steps."""
    if arm.tune is None:
        return {}
    split = split_of_folder(arm.tune)
    if split is None:
        return {"tune": {"dataset": arm.tune.dataset}}
    length = tuning_steps(arm.tune, split["train"])
    return {"tune": {"pictures": split, "total_steps": length.total_steps, "arithmetic": length.arithmetic}}


def _learning_rate(train: TrainSection, length: Steps) -> list[dict[str, float]]:
    """The learning rate of some steps, first and last among them."""
    last = length.total_steps - 1
    steps = sorted({round(last * i / (POINTS - 1)) for i in range(POINTS)})
    return [
        {"step": step + 1, "learning_rate": train.learning_rate * lr_factor(train, step, length.total_steps)}
        for step in steps
    ]


def _needs(recipe: Recipe, largest: Size, warnings: list[str]) -> Needs | None:
    """What the training needs by the base's configuration, if that can be read."""
    from captune.train import estimate

    try:
        return estimate.measure(recipe.base, recipe.train, *largest)
    except ModelError as error:
        reason = str(error)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"disk and memory are not estimated: the base's configuration cannot be read ({error})"
    if reason not in warnings:
        warnings.append(reason)
    return None


def _estimates(
    recipe: Recipe, needs: Needs, prepared: list[Size], length: Steps, drawn: int, processes: int
) -> dict[str, Any]:
    """Files to come with their sizes, and peak memory; in MiB, and estimates but for the LoRAs."""
    from captune.train import estimate

    train, trainings = recipe.train, len(recipe.arm) * len(recipe.training_seeds)
    every_epochs, every_steps = train.save_every_epochs, train.save_every_steps
    kept = (length.epochs // every_epochs if every_epochs else 0) + (
        length.total_steps // every_steps if every_steps else 0
    )
    kept = min(kept, train.keep_last or kept) + (train.stop_after is not None)
    stored = 4 if recipe.export.precision == "fp32" else 2
    pixels = [w * h for w, h in prepared]
    side = recipe.sample.width or recipe.dataset.resolution, recipe.sample.height or recipe.dataset.resolution
    latents = sum(estimate.latent_numbers(recipe.base, w, h) for w, h in prepared)
    sizes = {
        "lora": 4 * needs.lora * trainings,
        "lora_on_the_way": 4 * needs.lora * kept * trainings,
        "checkpoint_while_training": 4 * needs.lora * (3 + bool(train.ema)),
        "exports": sum(
            stored * (sum(needs.weights.values()) if name == "merged" else needs.lora) for name in recipe.export.formats
        )
        * trainings,
        "prepared_pictures": sum(pixels) * PNG_BYTES,
        "latents": 4 * latents * (2 if train.flip else 1),
        "pictures_drawn": drawn * side[0] * side[1] * PNG_BYTES,
    }
    mib = {name: round(size / 2**20, 2) for name, size in sizes.items()}
    return {
        "lora_weights": needs.lora,
        "lora_files": {"each_mib": round(4 * needs.lora / 2**20, 2), "on_the_way": kept * trainings},
        "disk_mib": {"in_all": round(sum(mib.values()), 1), **mib},
        "memory": estimate.memory(needs, recipe.base, train, processes),
    }


def _unread(pictures: list[Picture], read: set[Path]) -> list[Path]:
    """The caption files beside the pictures that no arm reads."""
    folders = {picture.path.parent for picture in pictures}
    lying = [p for folder in folders for p in folder.iterdir() if p.suffix in captions.KNOWN_EXTENSIONS]
    return sorted(p for p in lying if p not in read and not p.name.startswith("."))


def _pictures(recipe: Recipe, trained_on: int, trainings: int) -> int:
    """How many pictures are drawn: the recipe's prompts, and every training picture asked back by its caption."""
    prompts = len(recipe.prompts) * len(recipe.sample.seeds) * (1 + trainings)
    if "reproduction" not in recipe.judging.measured:
        return prompts
    return prompts + trained_on * len(recipe.study.reproduction_seeds) * (len(recipe.arm) + trainings)


def _about_prompts(recipe: Recipe, said: dict[str, dict[str, str]]) -> list[str]:
    """What makes the comparison weaker than it could be."""
    lines = []
    if not recipe.prompts:
        lines.append("sample.prompts is empty: no picture is drawn, and the arms cannot be compared")
    known = captions.known_prompts(
        recipe.prompts, {arm: [Caption("", text, "") for text in texts.values()] for arm, texts in said.items()}
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
    recipe: Recipe,
    arm: ArmSection,
    said: dict[str, dict[str, str]],
    found: list[Picture],
    read: set[Path],
    warnings: list[str],
) -> dict[str, Any]:
    """How many captions the arm has already; for a person's captions, their length in the base's tokens too."""
    told: dict[str, Any] = {"name": arm.name, "captions": arm.source}
    if arm.tune is not None:
        told["captioner_tuned_on"] = arm.tune.dataset or str(arm.tune.path)
    if arm.captioner is None:
        return {**told, "captioned": len(found), "to_write": 0}
    if arm.captioner.name != "sidecar":
        return {**told, "captioned": len(found), "to_write": len(found)}
    from captune.captioners.sidecar import Sidecar

    reader = Sidecar.load(arm.captioner)
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
    if texts:
        sources = reader.sources([_as_example(picture) for picture in found if picture.id in texts])
        read |= {Path(file) for file in sources.hashes}
        warnings += [f"arm {arm.name}: {line}" for line in sources.warnings]
    full = _after_rules(recipe, arm, texts, warnings)
    said[arm.name] = full
    warnings += [
        f"arm {arm.name}: {line}" for line in captions.option_warnings(recipe.train_of(arm, 0), list(full.values()))
    ]
    return {**told, "captioned": len(texts), "to_write": 0, **_token_lengths(recipe, arm, full, warnings)}


def _after_rules(recipe: Recipe, arm: ArmSection, texts: dict[str, str], warnings: list[str]) -> dict[str, str]:
    """The captions as they will be trained on, by the picture's id."""
    dataset, captioner = recipe.dataset, arm.captioner
    subject = rules.Words(dataset.trigger_word, dataset.class_word, captioner.trigger if captioner else "prefix")
    if arm.text is None or not texts:
        words = subject.trigger_word, subject.class_word, subject.how
        return {name: captions.with_trigger_word(text, *words) for name, text in texts.items()}
    try:
        tokens = lambda: Tokens.load(recipe.base, recipe.train.caption_chunks)  # noqa: E731 (only max_tokens loads it)
        ruled = rules.apply(arm.text, list(texts.values()), subject, tokens)
    except CaptuneError as error:
        warnings.append(f"arm {arm.name}: {error}; the run would stop there")
        return texts
    warnings += [f"arm {arm.name}: {line}" for line in rules.told(arm.text, ruled.facts)]
    return dict(zip(texts, ruled.texts, strict=True))


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
        tokens = Tokens.load(recipe.base, recipe.train_of(arm, 0).caption_chunks)
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

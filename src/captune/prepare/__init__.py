"""Stage: the user's folder of pictures -> PNGs of exactly the sizes that training needs, and who they are.

The user's files are only read. Every file that is not used, and every picture that is enlarged, is named.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captune
from captune import images, runs
from captune.errors import RecipeError
from captune.prepare import buckets
from captune.prepare.scan import THREADS, Picture, Skipped, list_pictures, none_usable, relative, scan, too_small
from captune.progress import Progress
from captune.recipe import DatasetSection, PrepareSection
from captune.runs import StageFolder
from captune.types import Example

__all__ = ["hold_out", "prepare_images", "scan"]

TOLD = 10  # lines of a kind on the screen; the manifest has them all


@dataclass(frozen=True)
class Prepared:
    """A prepared picture, and how many frames its source has."""

    example: Example
    frames: int


def prepare_images(
    dataset: DatasetSection, section: PrepareSection, multiple: int, folder: StageFolder, progress: Progress
) -> list[Example]:
    """Bring the data set's pictures to sizes whose sides are multiples of `multiple`, in images/<id>.png.

    Raises DataError when the folder has no usable picture; skipped files and warnings are in the manifest.
    """
    images.color(section.background)  # a wrong colour is told before any work
    size_of = buckets.chooser(dataset.resolution, section, multiple)
    listed = list_pictures(dataset.path, dataset.repeats)
    inputs = _inputs(dataset, section, multiple, listed.pictures, listed.skipped)
    records = folder.path / "examples.jsonl"
    if folder.done(inputs):
        manifest = folder.manifest()
        _tell([Skipped(**row) for row in manifest["skipped"]], manifest["warnings"], progress)
        return runs.read_records(records, Example)
    folder.begin(inputs, keep=True)

    def prepare(picture: Picture) -> Prepared | str:
        return _prepare_one(picture, section, size_of, folder.path / "images")

    results = _all(prepare, listed.pictures, progress)
    broken = [Skipped(relative(p.path, dataset.path), r) for p, r in results if isinstance(r, str)]
    prepared = [result for _, result in results if isinstance(result, Prepared)]
    if not prepared:
        raise none_usable(dataset.path, broken)
    examples = [p.example for p in prepared]
    skipped = sorted(listed.skipped + broken, key=lambda s: s.file)
    warnings = listed.warnings + buckets.size_warnings(dataset.resolution, section, multiple)
    warnings += [w for p in prepared for w in _warnings(p, relative(p.example.source, dataset.path))]
    _tell(skipped, warnings, progress)
    runs.write_records(records, examples)
    counts = Counter(f"{e.width}x{e.height}" for e in examples)
    facts: dict[str, Any] = {"pictures": len(examples), "sizes": counts, "skipped": skipped, "warnings": warnings}
    folder.finish(inputs, [records, *(e.image for e in examples)], **facts)
    return examples


def _inputs(
    dataset: DatasetSection,
    section: PrepareSection,
    multiple: int,
    pictures: Sequence[Picture],
    skipped: Sequence[Skipped],
) -> dict[str, Any]:
    """All that prepared pictures depend on: settings, and the content of every picture file."""
    return {
        "captune": captune.__version__,
        "dataset": {"path": str(dataset.path.expanduser().absolute()), "resolution": dataset.resolution},
        "prepare": section.model_dump(mode="json"),
        "multiple": multiple,
        "pictures": [[p.id, p.repeats, relative(p.path, dataset.path), _hash(p.path)] for p in pictures],
        "skipped": [s for s in skipped if not s.reason.startswith("hidden")],
    }


def _hash(path: Path) -> str:
    try:
        return runs.sha256_of(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"  # it will be skipped by name


def _all(
    prepare: Callable[[Picture], Prepared | str], pictures: Sequence[Picture], progress: Progress
) -> list[tuple[Picture, Prepared | str]]:
    """Each picture with what became of it, in order; several at a time, since Pillow works outside Python's lock."""
    results = []
    with progress.track("prepare", len(pictures)) as bar, ThreadPoolExecutor(THREADS) as pool:
        for picture, result in zip(pictures, pool.map(prepare, pictures), strict=True):
            results.append((picture, result))
            bar.advance(1, picture.id)
    return results


def _prepare_one(
    picture: Picture, section: PrepareSection, size_of: Callable[[int, int], buckets.Size], folder: Path
) -> Prepared | str:
    """The prepared picture, or the reason why it cannot be used. A PNG that an interrupted run left is kept."""
    target = folder / f"{picture.id}.png"
    try:
        header = images.read_header(picture.path)
        reason = too_small(header.width, header.height)
        if reason is not None:
            return reason
        size = size_of(header.width, header.height)
        if not target.is_file():
            images.write_png(images.fit(images.open_picture(picture.path, section.background), *size), target)
    except images.PictureError as error:
        return error.reason
    example = Example(
        id=picture.id,
        image=target,
        source=picture.path,
        width=size[0],
        height=size[1],
        source_width=header.width,
        source_height=header.height,
        repeats=picture.repeats,
        sha256=runs.sha256_of(target),
    )
    return Prepared(example, header.frames)


def _warnings(prepared: Prepared, name: str) -> list[str]:
    """What should be known about one picture before it is trained on."""
    example, warnings = prepared.example, []
    target, size = (example.width, example.height), (example.source_width, example.source_height)
    factor = images.enlargement(size, target)
    if factor > 1:
        warnings.append(
            f"{name} ({size[0]} x {size[1]}) is enlarged {factor:.2f} times to fill {target[0]} x {target[1]}"
        )
    if prepared.frames > 1:
        warnings.append(f"{name} has {prepared.frames} frames or pages; only the first is used")
    return warnings


def _tell(skipped: Sequence[Skipped], warnings: Sequence[str], progress: Progress) -> None:
    for lines in ([f"skipped {s.file}: {s.reason}" for s in skipped], list(warnings)):
        for line in lines[:TOLD]:
            progress.say(line)
        if len(lines) > TOLD:
            progress.say(f"... and {len(lines) - TOLD} more such lines, all in prepare/manifest.json")


def hold_out(examples: Sequence[Example], count: int) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and `count` that no arm is trained on, chosen by their names' hashes: at random, for good.

    Raises RecipeError where nothing would be left to train on.
    """
    kept = held_out_names([example.id for example in examples], count)
    return [e for e in examples if e.id not in kept], [e for e in examples if e.id in kept]


def held_out_names(names: Sequence[str], count: int) -> set[str]:
    """Which of the pictures are held out."""
    if names and count >= len(names):
        raise RecipeError(f"study.held_out = {count} leaves none of {len(names)} pictures to train on; hold out fewer")
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])

"""Stage: pictures that have captions already -> one record each, and which of them a captioner learns from, is watched by and
is judged on. Pictures of a folder stay where they are; those of a data set by name are streamed to the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import captune
from captune import captions, images, runs
from captune.errors import DataError
from captune.prepare import hub, split
from captune.prepare.hub import Found
from captune.prepare.scan import Picture, Skipped, list_pictures, relative
from captune.progress import Progress, Silent
from captune.recipe import TuneSection
from captune.runs import StageFolder
from captune.types import CaptionedPicture

TOLD = 5


def prepare_captioned(section: TuneSection, folder: StageFolder, progress: Progress) -> list[CaptionedPicture]:
    """The section's pictures with their captions, split by picture; near-duplicates are on the same side.

    Raises DataError where a picture has no caption, or too few pictures are left to train on.
    """
    records = folder.path / "pictures.jsonl"
    listed = _in_folder(section) if section.path is not None else []
    inputs = {
        "captune": captune.__version__,
        "source": _source(section),
        "shares": [section.validation, section.test, section.seed],
        "pictures": [[f.id, str(f.image), runs.sha256_of(f.image), f.references] for f in listed],
    }
    if folder.done(inputs):
        return runs.read_records(records, CaptionedPicture)
    folder.begin(inputs)
    facts: dict[str, Any] = {}
    if section.path is None:
        listed, facts = hub.stream(section, folder.path / "pictures", progress)
    views, skipped = _views(listed, progress)
    kept = [f for f in listed if f.id in views]
    sides = split.sides(views, section.validation, section.test, section.seed)
    found = [CaptionedPicture(f.id, f.image, f.references, views[f.id].sha256, sides.of[f.id]) for f in kept]
    runs.write_records(records, found)
    counts = Counter(sides.of.values())
    warnings = [f"skipped {s.file}: {s.reason}" for s in skipped]
    if sides.together:
        warnings.append(
            f"{sum(map(len, sides.together))} pictures are near-duplicates, in {len(sides.together)} group(s) that "
            f"stay on one side each: {captions.some([' = '.join(group) for group in sides.together], 3)}"
        )
    for line in warnings[:TOLD]:
        progress.say(line)
    references = Counter(len(f.references) for f in kept)
    progress.say(
        f"{len(found)} pictures with {sum(len(f.references) for f in kept)} captions: {counts['train']} to train, "
        f"{counts['validation']} to validate, {counts['test']} to test"
    )
    folder.finish(
        inputs,
        [records],
        pictures=len(found),
        split={side: counts[side] for side in split.SIDES},
        references_per_picture={str(n): references[n] for n in sorted(references)},
        near_duplicates=sides.together,
        warnings=warnings,
        **facts,
    )
    return found


def split_of_folder(section: TuneSection) -> dict[str, int] | None:
    """How many pictures each side will have; None for a data set by name, which is not read for that. Writes nothing."""
    if section.path is None:
        return None
    views, _ = _views(_in_folder(section), Silent())
    counts = Counter(split.sides(views, section.validation, section.test, section.seed).of.values())
    return {side: counts[side] for side in split.SIDES}


def _source(section: TuneSection) -> dict[str, Any]:
    names = ("path", "extension", "dataset", "config", "split", "count", "image_column", "caption_column")
    return {name: runs.plain(getattr(section, name)) for name in names}


def _in_folder(section: TuneSection) -> list[Found]:
    """The folder's pictures with their captions: a sidecar, else the row of a metadata.jsonl."""
    assert section.path is not None
    root = section.path.expanduser().absolute()
    rows: dict[Path, dict[str, list[str]]] = {}
    found, missing, empty = [], [], []
    pictures = list_pictures(section.path, 1).pictures
    for picture in pictures[: section.count]:
        said = captions.read_sidecar(picture.path, section.extension)
        texts = [said] if said is not None else _row(picture, root, rows)
        if not texts:
            missing.append(relative(picture.path, root))
        elif not all(text.strip() for text in texts):
            empty.append(relative(picture.path, root))
        found.append(Found(picture.id, picture.path, texts))
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} of {len(found)} pictures in {section.path} have no caption: {captions.some(missing)} "
            f"(looked for {captions.dotted(section.extension)} files beside them, and for {captions.METADATA})"
        )
    if empty:
        problems.append(f"the captions of {captions.some(empty)} are empty")
    if problems:
        raise DataError("; ".join(problems) + "; write them, or take the pictures out")
    return found


def _row(picture: Picture, root: Path, rows: dict[Path, dict[str, list[str]]]) -> list[str]:
    for parent in dict.fromkeys((picture.path.parent, root)):
        path = parent / captions.METADATA
        if path not in rows:
            rows[path] = captions.read_references(path) if path.is_file() else {}
        texts = rows[path].get(captions.file_key(picture.path.relative_to(parent).as_posix()))
        if texts:
            return texts
    return []


def _views(listed: Iterable[Found], progress: Progress) -> tuple[dict[str, split.View], list[Skipped]]:
    """How every picture looks, one in memory at a time; broken ones are left out by name."""
    pictures = list(listed)
    views, skipped = {}, []
    with progress.track("look at pictures", len(pictures)) as bar:
        for found in pictures:
            try:
                views[found.id] = split.view(found.image)
            except images.PictureError as error:
                skipped.append(Skipped(found.image.name, error.reason))
            bar.advance(1, found.id)
    return views, skipped

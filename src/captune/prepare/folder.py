"""A folder of pictures prepared by itself, ready to be a data set: for `captune prepare FOLDER OUT`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune import captions, runs
from captune.errors import DataError
from captune.prepare import Options, prepare_images
from captune.progress import Progress
from captune.recipe import Recipe
from captune.runs import StageFolder


@dataclass(frozen=True)
class Told:
    """What a folder came to."""

    out: Path
    images: Path  # the data set: pictures, masks and captions
    pictures: int
    skipped: int
    captions: int
    masks: int
    faces: Mapping[str, Any]
    near_duplicates: int
    contact_sheets: list[Path]
    already_done: bool


def prepare_folder(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    multiple: int = 8,
    replace: bool = False,
    workers: int | None = None,
) -> Told:
    """Prepare the recipe's pictures into out/images, with their captions and masks beside them.

    Raises DataError where `out` holds anything but what this command made of the same pictures and settings; `replace`
    allows what it made of others to be removed.
    """
    source, target = recipe.dataset.path.expanduser().resolve(), out.expanduser().resolve()
    if source == target or source in target.parents or target in source.parents:
        raise DataError(f"{out} and {recipe.dataset.path} lie within each other; choose an OUT outside of the pictures")
    stage = StageFolder(target)
    finished = [False]

    def allow(inputs: Mapping[str, Any]) -> None:
        _check_free(target, out, runs.fingerprint(inputs), replace)
        finished[0] = stage.done(inputs)

    options = Options(workers=workers, carry_masks=True, allow=allow)
    examples = prepare_images(recipe.dataset, recipe.prepare, multiple, stage, progress, options)
    copied = 0
    for example in examples:
        for suffix in sorted(captions.KNOWN_EXTENSIONS):
            file = example.source.with_suffix(suffix)
            if file.is_file():
                _copy(file, example.image.with_suffix(suffix))
                copied += 1
    manifest = stage.manifest()
    return Told(
        out=out,
        images=out / "images",
        pictures=len(examples),
        skipped=len(manifest["skipped"]),
        captions=copied,
        masks=sum(example.mask is not None for example in examples),
        faces=manifest["faces"],
        near_duplicates=len(manifest["near_duplicates"]),
        contact_sheets=[out / name for name in manifest["contact_sheets"]],
        already_done=finished[0],
    )


def _copy(file: Path, target: Path) -> None:
    """Copy a caption file, unless one stands there: it may have been worked on since."""
    if not target.exists():
        with runs.atomic(target) as part:
            shutil.copyfile(file, part)


def _check_free(target: Path, named: Path, fingerprint: str, replace: bool) -> None:
    """Refuse a folder that holds anything which this command would remove and did not make."""
    if not target.exists():
        return
    if not target.is_dir():
        raise DataError(f"{named} is a file; give a folder to write to")
    marks = [mark for name in ("manifest.json", "started.json") if (mark := _fingerprint(target / name)) is not None]
    if not marks and any(target.iterdir()):
        raise DataError(f"{named} holds files that captune prepare did not make; choose a new folder")
    if marks and marks[-1] != fingerprint and not replace:
        raise DataError(
            f"{named} holds what other settings or other pictures gave; choose another folder, or remove what is in it "
            "with --replace"
        )


def _fingerprint(file: Path) -> str | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = value.get("fingerprint") if isinstance(value, dict) else None
    return str(found) if found is not None else None

"""Stage: the user's folder of pictures -> PNGs of exactly the sizes that training needs, and who they are.

The user's files are only read. What became of every file of the folder stands in files.jsonl; every file that is not used,
every picture that is enlarged and every pair that shows nearly the same is named.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import captune
from captune import detectors, images, runs
from captune.detectors import Chosen
from captune.errors import DataError, RecipeError
from captune.prepare import buckets, duplicates, sheet, workers
from captune.prepare.duplicates import Pair, near_duplicates
from captune.prepare.picture import PREPARED, SKIPPED, FileRecord, Job, journal_of, place_of, prepare_picture
from captune.prepare.scan import THREADS, Picture, Scan, Skipped, list_pictures, none_usable, relative, scan
from captune.progress import Progress
from captune.recipe import DatasetSection, PrepareSection
from captune.runs import StageFolder
from captune.types import Example

__all__ = ["check", "hold_out", "near_duplicates", "prepare_images", "scan"]

TOLD = 10  # lines of a kind on the screen; the manifest has them all
BESIDE = "beside"
LIES_BESIDE = "no picture: captions, masks and metadata are read where a picture or an arm needs them"


def check(section: PrepareSection) -> Chosen | None:
    """The face detector that the section comes to here; None where none is needed, or none installed and none asked for.

    Raises RecipeError where faces are to be blurred or looked for and no detector can do it.
    """
    images.color(section.background)
    if section.face_reference is not None and not section.face_reference.is_file():
        raise DataError(f"there is no file {section.face_reference} (prepare.face_reference)")
    if section.blur_faces != "none":
        try:
            return detectors.choose(section.face_detector, section.face_model)
        except RecipeError as error:
            raise RecipeError(f'prepare.blur_faces = "{section.blur_faces}": {error}') from None
    if section.crop != "square" or section.focus not in ("auto", "faces"):
        unread = [n for n in ("face_detector", "face_model", "face_reference") if getattr(section, n) is not None]
        if unread:
            raise RecipeError(
                f"prepare.{unread[0]} is not read: no faces are looked for with crop = {section.crop!r}, "
                f"focus = {section.focus!r} and blur_faces = 'none'; leave it out"
            )
        return None
    if section.focus == "faces":
        return detectors.choose(section.face_detector, section.face_model)
    return detectors.installed(section.face_detector, section.face_model)


@dataclass(frozen=True)
class Options:
    """What differs when a folder is prepared by itself and not for a run."""

    workers: int | None = None  # processes; one per processor if not given
    carry_masks: bool = False  # bring the masks beside the pictures along, cut alike
    allow: Callable[[Mapping[str, Any]], None] | None = None  # told what the result will be made of, before any writing


def prepare_images(
    dataset: DatasetSection,
    section: PrepareSection,
    multiple: int,
    folder: StageFolder,
    progress: Progress,
    options: Options = Options(),
) -> list[Example]:
    """Bring the data set's pictures to sizes whose sides are multiples of `multiple`, in images/<id>.png.

    Raises DataError when the folder has no usable picture; skipped files and warnings are in the manifest.
    """
    chosen = check(section)  # what cannot work is told before any work
    size_of = buckets.chooser(dataset.resolution, section, multiple)
    listed = list_pictures(dataset.path, dataset.repeats)
    inputs = _inputs(dataset, section, multiple, listed, chosen, options.carry_masks)
    records = folder.path / "examples.jsonl"
    if options.allow is not None:
        options.allow(inputs)
    if folder.done(inputs):
        manifest = folder.manifest()
        _tell([Skipped(**row) for row in manifest["skipped"]], manifest["warnings"], folder, progress)
        return runs.read_records(records, Example)
    folder.begin(inputs, keep=True)
    root = dataset.path.expanduser().absolute()
    job = Job(root, folder.path, section, size_of, multiple, chosen, options.carry_masks)
    made = _all(job, listed.pictures, options.workers or workers.processors(), progress)
    made, pairs = _screened(made, section, folder.path)
    examples = [_example(record, folder.path, root) for record in made if record.became == PREPARED]
    broken = [Skipped(record.file, record.reason) for record in made if record.became == SKIPPED]
    if not examples:
        raise none_usable(dataset.path, broken)
    skipped = sorted(listed.skipped + broken, key=lambda s: s.file)
    warnings = listed.warnings + buckets.size_warnings(dataset.resolution, section, multiple)
    warnings += [*_warnings(made, section), *(duplicates.as_warning(pair) for pair in pairs)]
    _tell(skipped, warnings, folder, progress)
    sheets = sheet.draw(made, pairs, root, folder.path, section, progress)
    runs.write_records(folder.path / "files.jsonl", _every_file(made, listed))
    runs.write_records(records, examples)
    facts = {
        "pictures": len(examples),
        "sizes": Counter(f"{e.width}x{e.height}" for e in examples),
        "skipped": skipped,
        "warnings": warnings,
        "near_duplicates": pairs,
        "faces": _faces(made, chosen),
        "contact_sheets": [path.name for path in sheets],
    }
    masks = [e.mask for e in examples if e.mask is not None]
    folder.finish(inputs, [records, folder.path / "files.jsonl", *(e.image for e in examples), *masks], **facts)
    journal_of(folder.path).unlink(missing_ok=True)
    return examples


def _inputs(
    dataset: DatasetSection, section: PrepareSection, multiple: int, listed: Scan, chosen: Chosen | None, carry: bool
) -> dict[str, Any]:
    """All that prepared pictures depend on: settings, the detector, and the content of every picture file."""
    inputs = {
        "captune": captune.__version__,
        "dataset": {"path": str(dataset.path.expanduser().absolute()), "resolution": dataset.resolution},
        "prepare": section.model_dump(mode="json"),
        "multiple": multiple,
        "pictures": [
            [p.id, p.repeats, relative(p.path, dataset.path), digest]
            for p, digest in zip(listed.pictures, _hashes([p.path for p in listed.pictures]), strict=True)
        ],
        "skipped": [s for s in listed.skipped if not s.reason.startswith("hidden")],
        "detector": chosen.settings() if chosen is not None else None,
    }
    if section.face_reference is not None:
        inputs["face_reference"] = runs.sha256_of(section.face_reference)
    if carry:
        masks = [path for p in listed.pictures if (path := images.mask_file(p.path)).is_file()]
        inputs["masks"] = dict(zip([relative(m, dataset.path) for m in masks], _hashes(masks), strict=True))
    return inputs


def _hashes(files: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_hash, files))


def _hash(path: Path) -> str:
    try:
        return runs.sha256_of(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"  # it will be skipped by name


def _all(job: Job, pictures: Sequence[Picture], count: int, progress: Progress) -> list[FileRecord]:
    """What became of each picture, in order; those that an interrupted run has finished are not done again."""
    done = _journal(job.folder)
    left = [picture for picture in pictures if picture.id not in done]
    results = workers.in_order(partial(prepare_picture, job), left, count)
    with progress.track("prepare", len(pictures)) as bar, closing(results):  # stopped, the workers end before we do
        if done:
            bar.move_to(len(pictures) - len(left))
        for picture, record in results:
            done[picture.id] = record
            bar.advance(1, picture.id)
    return [done[picture.id] for picture in pictures]


def _journal(folder: Path) -> dict[str, FileRecord]:
    """The pictures that an interrupted run has noted as finished and whose files are whole, by id."""
    path = journal_of(folder)
    if not path.is_file():
        return {}
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = FileRecord(**runs.tupled(json.loads(line)))
        except (ValueError, TypeError):
            continue  # the line that the run was stopped in
        image = place_of(folder, record.id)
        files = {image: record.sha256, images.mask_file(image): record.mask} if record.became == PREPARED else {}
        if all(not digest or (file.is_file() and runs.sha256_of(file) == digest) for file, digest in files.items()):
            done[record.id] = record
    with open(path, "ab") as journal:
        journal.write(b"\n")  # ends a torn line
    return done


def _screened(made: Sequence[FileRecord], section: PrepareSection, folder: Path) -> tuple[list[FileRecord], list[Pair]]:
    """The records with near-duplicates left out where that is asked for, and all pairs of them."""
    there = {record.file: record for record in made if record.became == PREPARED}
    looks = {file: record.look for file, record in there.items()}
    pairs = list(near_duplicates(looks, section.duplicate_distance))
    if section.near_duplicates == "keep":
        return list(made), pairs
    pixels = {file: record.source_width * record.source_height for file, record in there.items()}
    gone = duplicates.dropped(pairs, pixels)
    for file in gone:
        image = place_of(folder, there[file].id)
        image.unlink(missing_ok=True)
        images.mask_file(image).unlink(missing_ok=True)
    return [
        replace(r, became=SKIPPED, reason=duplicates.as_reason(gone[r.file], r.file)) if r.file in gone else r
        for r in made
    ], pairs


def _example(record: FileRecord, folder: Path, root: Path) -> Example:
    image = place_of(folder, record.id)
    return Example(
        id=record.id,
        image=image,
        source=root / record.file,
        width=record.width,
        height=record.height,
        source_width=record.source_width,
        source_height=record.source_height,
        repeats=record.repeats,
        sha256=record.sha256,
        centering=record.centering,
        mask=images.mask_file(image) if record.mask else None,
    )


def _every_file(made: Iterable[FileRecord], listed: Scan) -> Iterator[FileRecord]:
    """A line for every file of the folder: pictures, what lies beside them, and what is left out."""
    yield from made
    yield from (FileRecord(file, BESIDE, LIES_BESIDE) for file in listed.companions)
    yield from (FileRecord(left.file, SKIPPED, left.reason) for left in listed.skipped)


def _faces(made: Sequence[FileRecord], chosen: Chosen | None) -> dict[str, Any]:
    """Which detector ran, and how much it found and was blurred."""
    there = [record for record in made if record.became == PREPARED]
    return {
        "detector": chosen.name if chosen is not None else None,
        "found": sum(len(record.faces) for record in there),
        "blurred": sum(len(record.blurred) for record in there),
    }


def _warnings(made: Sequence[FileRecord], section: PrepareSection) -> Iterator[str]:
    """What should be known about the pictures before they are trained on."""
    there = [record for record in made if record.became == PREPARED]
    for record in there:
        if record.enlarged > 1:
            size = f"{record.source_width} x {record.source_height}"
            target = f"{record.width} x {record.height}"
            yield f"{record.file} ({size}) is enlarged {record.enlarged:.2f} times to fill {target}"
        if record.frames > 1:
            yield f"{record.file} has {record.frames} frames or pages; only the first is used"
    without = [record.file for record in there if not record.faces]
    if section.blur_faces != "none" and without:
        yield f"no face was found in {len(without)} of {len(there)} pictures, nothing is blurred there: {_some(without)}"


def _some(names: Sequence[str]) -> str:
    more = f" ... and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def _tell(skipped: Sequence[Skipped], warnings: Sequence[str], folder: StageFolder, progress: Progress) -> None:
    for lines in ([f"skipped {s.file}: {s.reason}" for s in skipped], list(warnings)):
        for line in lines[:TOLD]:
            progress.say(line)
        if len(lines) > TOLD:
            progress.say(f"... and {len(lines) - TOLD} more such lines, all in {folder.path.name}/manifest.json")


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

"""What becomes of one picture: opened, cut around its subject, faces blurred, scaled, written, and what is known of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from captune import images, runs
from captune.detectors import Chosen, Detector, Face
from captune.prepare import buckets, duplicates, faces, focus
from captune.prepare.scan import Picture, relative, too_small
from captune.recipe import PrepareSection

PREPARED, SKIPPED = "prepared", "skipped"
_own = threading.local()  # detectors are not made for several threads


@dataclass(frozen=True)
class Job:
    """What the preparation of every picture depends on, beside its file."""

    root: Path  # the data set's folder
    folder: Path  # where the stage writes
    section: PrepareSection
    size_of: Callable[[int, int], buckets.Size]
    cell: int  # the base's multiple: masks are made of such squares
    detector: Chosen | None
    carry_masks: bool  # bring the mask beside the picture along


@dataclass(frozen=True)
class FileRecord:
    """One file of the data set's folder and what became of it; the fields after `reason` are those of pictures.

    Boxes are left, top, right, bottom in pixels of the source as it is shown.
    """

    file: str
    became: str
    reason: str = ""
    id: str = ""
    repeats: int = 1
    sha256: str = ""  # of the prepared PNG
    width: int = 0
    height: int = 0
    source_width: int = 0
    source_height: int = 0
    frames: int = 1
    enlarged: float = 1.0
    centering: tuple[float, float] = images.CENTER
    around: str = "center"  # what it was cut around: face, saliency, center
    faces: tuple[tuple[float, ...], ...] = ()
    subject: int = -1  # which of the faces is the subject's; -1 for none
    blurred: tuple[int, ...] = ()  # which of the faces are blurred
    mask: str = ""  # of the mask's PNG, its SHA-256
    hash: str = ""
    mirrored_hash: str = ""

    @property
    def look(self) -> duplicates.Look:
        return duplicates.Look(self.hash, self.mirrored_hash)


def place_of(folder: Path, name: str) -> Path:
    """Where a prepared picture lies."""
    return folder / "images" / f"{name}.png"


def journal_of(folder: Path) -> Path:
    """Where finished pictures are noted, one JSON object a line, for a run that is stopped and goes on."""
    return folder / "journal.jsonl"


def prepare_picture(job: Job, picture: Picture) -> FileRecord:
    """Prepare one picture, and note in the journal what became of it."""
    name = relative(picture.path, job.root)
    try:
        record = _prepared(job, picture, name)
    except images.PictureError as error:
        record = FileRecord(name, SKIPPED, error.reason, id=picture.id)
    line = json.dumps(runs.plain(record), ensure_ascii=False) + "\n"
    with open(journal_of(job.folder), "ab", buffering=0) as journal:
        journal.write(line.encode())  # one call, so that lines of several workers do not mix
    return record


def _prepared(job: Job, picture: Picture, name: str) -> FileRecord:
    section = job.section
    header = images.read_header(picture.path)
    shown = header.width, header.height
    small = too_small(*shown, section.smallest_side)
    if small is not None:
        return FileRecord(name, SKIPPED, small, id=picture.id, source_width=shown[0], source_height=shown[1])
    image = images.open_picture(picture.path, section.background)
    size = job.size_of(*image.size)
    looked = duplicates.look(image)
    found = _find(job, image, size)
    subject = _subject(job, found, image)
    record = FileRecord(
        file=name,
        became=PREPARED,
        id=picture.id,
        repeats=picture.repeats,
        width=size[0],
        height=size[1],
        source_width=image.width,
        source_height=image.height,
        frames=header.frames,
        enlarged=round(images.enlargement(image.size, size), 4),
        faces=tuple(tuple(round(v, 1) for v in face.box) for face in found),
        subject=-1 if subject is None else subject,
        hash=looked.hash,
        mirrored_hash=looked.mirrored,
    )
    record = _centered(section, record, image, found)
    return _written(job, record, image, found, place_of(job.folder, picture.id))


def _find(job: Job, image: Image.Image, size: buckets.Size) -> list[Face]:
    """The faces, where they are needed: to blur them, or to cut around one where something is cut off."""
    section = job.section
    cut = section.crop == "square" and image.width * size[1] != image.height * size[0]
    if job.detector is None or (section.blur_faces == "none" and not (cut and section.focus in ("auto", "faces"))):
        return []
    return faces.find(_detector(job.detector), image)


def _detector(chosen: Chosen) -> Detector:
    """This thread's own detector."""
    if getattr(_own, "chosen", None) != chosen:
        _own.chosen, _own.detector = chosen, chosen.load()
    detector: Detector = _own.detector
    return detector


def _subject(job: Job, found: Sequence[Face], image: Image.Image) -> int | None:
    """Which face is the subject's; none where all are blurred."""
    section = job.section
    if section.blur_faces == "all" or job.detector is None:
        return None
    return faces.subject_of(found, image, _reference(job.detector, section.face_reference))


def _reference(chosen: Chosen, path: Path | None) -> NDArray[np.float64] | None:
    """The description of the reference face, read once by each thread."""
    if path is None:
        return None
    if getattr(_own, "reference", None) != (chosen, path):
        _own.described = faces.read_reference(path, _detector(chosen))
        _own.reference = chosen, path
    described: NDArray[np.float64] = _own.described
    return described


def _centered(section: PrepareSection, record: FileRecord, image: Image.Image, found: Sequence[Face]) -> FileRecord:
    """The record with where the picture is cut."""
    target = record.width, record.height
    if section.crop != "square" or image.width == image.height:
        return record
    if record.subject >= 0 and section.focus in ("auto", "faces"):
        left, top, right, bottom = found[record.subject].box
        centering = focus.on_point(image.size, target, (left + right) / 2, (top + bottom) / 2)
        return replace(record, centering=centering, around="face")
    if section.focus in ("auto", "saliency"):
        centering = focus.on_salient(image, target)
        return replace(record, centering=centering, around="saliency" if centering != images.CENTER else "center")
    return record


def _written(job: Job, record: FileRecord, image: Image.Image, found: Sequence[Face], target: Path) -> FileRecord:
    """Blur, cut, scale and write the picture, and its mask where there is one or faces are blurred."""
    section, size = job.section, (record.width, record.height)
    if section.blur_faces != "none":
        blurred = tuple(i for i in range(len(found)) if i != record.subject)
        record = replace(record, blurred=blurred)
    mask = _mask(job, record, found)
    if mask is not None:
        if mask.getbbox() is None:
            return replace(record, became=SKIPPED, reason="its mask is black everywhere: nothing is left to learn")
        images.write_png(mask, images.mask_file(target))
        record = replace(record, mask=runs.sha256_of(images.mask_file(target)))
    if record.blurred:
        kept = found[record.subject] if record.subject >= 0 else None
        image = faces.blur(image, [found[i] for i in record.blurred], kept)
    images.write_png(images.fit(image, *size, record.centering), target)
    return replace(record, sha256=runs.sha256_of(target))


def _mask(job: Job, record: FileRecord, found: Sequence[Face]) -> Image.Image | None:
    """What is learned of the prepared picture: not what is blurred, nor what a mask beside it leaves out."""
    source, size = (record.source_width, record.source_height), (record.width, record.height)
    mask = None
    if job.section.blur_faces != "none":
        mask = faces.mask([found[i].box for i in record.blurred], source, size, record.centering, job.cell)
    beside = images.mask_file(job.root / record.file)
    if job.carry_masks and beside.is_file():
        cut = images.fit_mask(beside, source, size, record.centering)
        mask = cut if mask is None else ImageChops.multiply(mask, cut)
    return mask

"""What is wrong with a folder's files: captions without pictures, pictures without captions, sizes, repeats, duplicates."""

from __future__ import annotations

import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from captune import captions, images
from captune.errors import DataError
from captune.formats.metadata import Listed
from captune.formats.sidecars import listed
from captune.lint.finding import Finding
from captune.prepare.scan import KOHYA_FOLDER, Picture, relative

UNEVEN = 3.0  # a folder that is visited so many times as often as another


@dataclass
class Gathered:
    """The captions of a folder by the picture's id, the files to name for them, and what stood in the way."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def gather(pictures: Sequence[Picture], root: Path, extension: str, folder: Path | None = None) -> Gathered:
    """Every picture's caption: its caption file, else its row in a metadata file."""
    found = Gathered()
    tables: dict[Path, Mapping[str, Listed]] = {}
    for picture in pictures:
        flat = captions.sidecar_path(picture.path, extension, folder)
        path = folder / f"{picture.id}{extension}" if folder is not None else flat
        path = path if path.is_file() else flat
        name = _named(path, root)
        try:
            row = None if path.is_file() else listed(picture.path, root, tables)
            text = captions.read_exact(path) if path.is_file() else row.text if row is not None else None
        except DataError as error:
            found.findings.append(Finding("unreadable_caption", "error", name, str(error), "save it as UTF-8"))
            continue
        if text is None:
            found.findings.append(_missing(picture, root, extension, folder))
        elif not any(unicodedata.category(c)[0] in "LNS" for c in text):
            empty = "the caption file has no words" if text.strip() else "the caption file is empty"
            found.findings.append(
                Finding("empty_caption", "error", name, empty, "write its caption, or take both away")
            )
        else:
            found.texts[picture.id] = captions.one_line(text)
            found.files[picture.id] = name
    return found


def _missing(picture: Picture, root: Path, extension: str, folder: Path | None) -> Finding:
    others = [e for e in captions.KNOWN_EXTENSIONS if captions.sidecar_path(picture.path, e, folder).is_file()]
    lies = f' (there is a {others[0]} file, which extension = "{others[0]}" would read)' if others else ""
    return Finding(
        "missing_caption", "error", relative(picture.path, root),
        f"the picture has no caption: no {extension} file and no row of a metadata file{lies}",
        "write one, or run captune caption FOLDER --captioner NAME",
    )  # fmt: skip


def _named(path: Path, root: Path) -> str:
    return relative(path, root) if root in path.parents else str(path)


def orphans(pictures: Sequence[Picture], root: Path, extensions: Sequence[str]) -> Iterator[Finding]:
    """Caption files beside which there is no picture of their name."""
    whole = {picture.path for picture in pictures}
    stems = {path.with_suffix("") for path in whole}
    folders = sorted({root, *(picture.path.parent for picture in pictures)})
    ends = sorted({*captions.KNOWN_EXTENSIONS, *extensions}, key=lambda e: -len(e))
    for path in sorted(p for folder in folders for p in folder.iterdir() if p.is_file()):
        end = next((e for e in ends if path.name.endswith(e) and path.name != e), None)
        if end is None or path.name.startswith("."):
            continue
        # A caption file of a longer extension, such as 0.blip.txt, is of the picture 0.
        named = path.with_name(path.name[: -len(end)])
        names = [named, path.with_name(path.name.partition(".")[0])]
        if named in whole:
            yield Finding(
                "orphan_caption", "warning", relative(path, root),
                f"the caption file is not read: it is named after {named.name} with its extension",
                f"name it {captions.sidecar_path(named, end).name}, or give {named.suffix}{end} as extension",
            )  # fmt: skip
        elif not any(name in stems for name in names):
            yield Finding(
                "orphan_caption", "warning", relative(path, root), "the caption file matches no picture",
                "rename it like its picture, or remove it",
            )  # fmt: skip


def sizes(pictures: Sequence[Picture], root: Path, resolution: int | None) -> Iterator[Finding]:
    """Pictures that would be enlarged; without a resolution, those of less than half of the usual side."""
    sides = {}
    for picture in pictures:
        try:
            header = images.read_header(picture.path)
        except images.PictureError:
            continue  # broken pictures are told when the folder is read
        sides[picture.id] = header.width, header.height
    if not sides:
        return
    usual = statistics.median(min(size) for size in sides.values())
    for picture in pictures:
        if picture.id not in sides:
            continue
        width, height = sides[picture.id]
        short = min(width, height)
        if resolution is not None and short < resolution:
            what = f"would be enlarged {resolution / short:.2f} times to the resolution {resolution}"
        elif resolution is None and short < usual / 2:
            what = f"is less than half of the usual {usual:g} pixels a side"
        else:
            continue
        yield Finding(
            "small_picture", "warning", relative(picture.path, root), f"the picture ({width} x {height}) {what}",
            "take a larger one, or train at a smaller resolution",
        )  # fmt: skip


def imbalance(pictures: Sequence[Picture], root: Path) -> Iterator[Finding]:
    """Folders that are visited many times as often as others."""
    visits: Counter[str] = Counter()
    for picture in pictures:
        visits[PurePosixPath(relative(picture.path, root)).parent.as_posix()] += picture.repeats
    repeats = {PurePosixPath(relative(p.path, root)).parent.as_posix(): p.repeats for p in pictures}
    if len(visits) < 2 or len(set(repeats.values())) < 2:
        return
    (most, high), (least, low) = visits.most_common()[0], visits.most_common()[-1]
    if high >= UNEVEN * low:
        yield Finding(
            "uneven_repeats", "warning", most,
            f"an epoch visits pictures of {most!r} {high} times and of {least!r} {low} times",
            f"rename the folders, so that repeats x pictures are alike ({repeats[most]} and {repeats[least]} repeats now)",
        )  # fmt: skip


def near_duplicates(pictures: Sequence[Picture], root: Path, distance: int = 10) -> Iterator[Finding]:
    """Pairs of pictures that show nearly the same."""
    from captune.prepare import duplicates

    looks = {}
    for picture in pictures:
        try:
            looks[relative(picture.path, root)] = duplicates.look(images.open_picture(picture.path))
        except images.PictureError:
            continue
    for pair in duplicates.near_duplicates(looks, distance):
        yield Finding(
            "near_duplicate", "warning", pair.first, duplicates.as_warning(pair),
            "keep the better one; what is there twice is learnt twice",
        )  # fmt: skip


def names_of_folders(pictures: Sequence[Picture], root: Path) -> dict[str, tuple[str, str]]:
    """The trigger word and the class that kohya's folder `10_word class` gives its pictures, by the picture's id."""
    found = {}
    for picture in pictures:
        for name in reversed(PurePosixPath(relative(picture.path, root)).parent.parts):
            match = KOHYA_FOLDER.match(name)
            parts = name[match.end() :].split() if match else []
            if len(parts) > 1:  # one word alone is a class, as of regularization images
                found[picture.id] = parts[0].lower(), " ".join(parts[1:])
                break
    return found


def class_of(of_folders: Mapping[str, tuple[str, str]], word: str) -> str:
    """The class that kohya's folders give the subject of this trigger word, or ""."""
    return next((kind for named, kind in of_folders.values() if named == word.lower()), "")

"""Finds the pictures of a folder and names every file that is left out, with the reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from captune import images
from captune.errors import DataError

KOHYA_FOLDER = re.compile(r"(\d+)_")  # "30_jefpajot man": 30 repeats
COMPANIONS = frozenset((".txt", ".caption", ".cap", ".json", ".jsonl", ".csv", ".toml", ".yaml", ".yml", ".md", ".npz"))
SMALLEST_SIDE = 16
MASKLIKE = images.MASK.removesuffix(".png")  # a picture of this name, as PNG, would be taken for another one's mask
THREADS = min(8, os.cpu_count() or 1)  # each holds a decoded picture


class Picture(NamedTuple):
    """A picture file, its id (relative path without extension, unique) and how often it is visited per epoch."""

    path: Path
    id: str
    repeats: int


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, relative to the data set's folder, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a folder holds: pictures in the order of their paths, what is left out, and what looks like a mistake."""

    pictures: list[Picture]
    skipped: list[Skipped]
    warnings: list[str]
    companions: list[str] = field(default_factory=list)  # what lies beside the pictures: captions, masks, metadata


def scan(path: Path, default_repeats: int, smallest_side: int = SMALLEST_SIDE) -> Scan:
    """The pictures below `path` that can be decoded. Raises DataError when there is none.

    Subfolders are read too; those named like kohya's `30_name class` set the repeats of what lies below them.
    """
    listed = list_pictures(path, default_repeats)
    with ThreadPoolExecutor(THREADS) as pool:  # Pillow decodes outside the interpreter's lock
        problems = list(pool.map(lambda picture: problem_of(picture.path, smallest_side), listed.pictures))
    broken = [
        Skipped(relative(picture.path, path), problem)
        for picture, problem in zip(listed.pictures, problems, strict=True)
        if problem is not None
    ]
    kept = [p for p, problem in zip(listed.pictures, problems, strict=True) if problem is None]
    if not kept:
        raise none_usable(path, broken)
    return replace(listed, pictures=kept, skipped=sorted(listed.skipped + broken, key=lambda s: s.file))


def list_pictures(path: Path, default_repeats: int) -> Scan:
    """As `scan`, but by file names alone: broken pictures are still among the pictures."""
    root = path.expanduser().absolute()
    _check_folder(path, root)
    found: list[tuple[Path, int]] = []
    masks: list[Path] = []
    skipped: list[Skipped] = []
    companions: list[str] = []
    for file in _walk(root, skipped):
        reason = _no_picture(file)
        if reason is None and file.name.endswith(images.MASK):
            masks.append(file)
            continue
        repeats = _repeats(file.parent.relative_to(root), default_repeats)
        if reason is None and repeats == 0:
            reason = "its folder's name says 0 repeats"
        if reason is None:
            found.append((file, repeats))
        elif reason:
            skipped.append(Skipped(relative(file, root), reason))
        else:
            companions.append(relative(file, root))
    pictures = {file.with_suffix("") for file, _ in found}
    for file in masks:
        if file.with_name(file.name.removesuffix(images.MASK)) not in pictures:
            skipped.append(Skipped(relative(file, root), "a mask, and no picture of that name is used"))
        else:
            companions.append(relative(file, root))
    if not found:
        also = f" (left out: {_some([f'{s.file}: {s.reason}' for s in skipped])})" if skipped else ""
        raise DataError(
            f"there are no pictures in {path}: looked there and in its subfolders for {images.FORMATS}{also}"
        )
    found.sort(key=lambda row: relative(row[0], root))
    ids = _unique_ids([relative(file, root) for file, _ in found])
    named = [Picture(file, name, repeats) for (file, repeats), name in zip(found, ids, strict=True)]
    warnings = [*_root_warnings(root, default_repeats), *_namesakes([relative(file, root) for file, _ in found])]
    return Scan(named, sorted(skipped, key=lambda s: s.file), warnings, sorted(companions))


def problem_of(path: Path, smallest_side: int = SMALLEST_SIDE) -> str | None:
    """Why a picture cannot be used, or None; decodes it whole, since a cut-off file shows only then."""
    try:
        width, height = images.open_picture(path).size
    except images.PictureError as error:
        return error.reason
    return too_small(width, height, smallest_side)


def too_small(width: int, height: int, smallest_side: int = SMALLEST_SIDE) -> str | None:
    """The reason against a picture that has hardly any pixels, or None."""
    if min(width, height) >= smallest_side:
        return None
    return f"{width} x {height} pixels are too few (at least {smallest_side} a side)"


def none_usable(path: Path, broken: list[Skipped]) -> DataError:
    """The error for a folder in which no picture can be used."""
    count = "the only picture" if len(broken) == 1 else f"none of the {len(broken)} pictures"
    verb = "cannot" if len(broken) == 1 else "can"
    return DataError(f"{count} in {path} {verb} be used: {_some([f'{s.file}: {s.reason}' for s in broken], 10)}")


def relative(file: Path, root: Path) -> str:
    """The file's place below the data set's folder, with forward slashes."""
    return file.relative_to(root.expanduser().absolute()).as_posix()


def _check_folder(path: Path, root: Path) -> None:
    looked_for = f"dataset.path (or regularization.path) must be a folder of pictures ({images.FORMATS})"
    try:
        os.listdir(root)
    except FileNotFoundError:
        stood = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"there is no folder {path}{stood}: {looked_for}") from None
    except NotADirectoryError:
        raise DataError(f"{path} is a file, not a folder: {looked_for}") from None
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read ({error.strerror}): {looked_for}") from error


def _walk(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """All files below root, linked folders included; hidden folders and run folders are noted and not entered."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=lambda e: _unreadable(e, root, skipped)):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up the tree
            skipped.append(Skipped(relative(Path(parent), root) + "/", "a link to a folder that is read already"))
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(folders):
            reason = _no_entry(Path(parent, name))
            if reason:
                folders.remove(name)
                skipped.append(Skipped(_printable(relative(Path(parent, name), root)) + "/", reason))
        folders.sort()
        for name in sorted(files):
            if _printable(name) != name:
                place = _printable(relative(Path(parent, name), root))
                skipped.append(Skipped(place, "its name is not valid UTF-8; rename it"))
            else:
                yield Path(parent, name)


def _unreadable(error: OSError, root: Path, skipped: list[Skipped]) -> None:
    place = relative(Path(str(error.filename)), root)
    skipped.append(Skipped(place + "/", f"the folder cannot be read ({error.strerror})"))


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def _no_entry(folder: Path) -> str | None:
    """Why a folder is not entered, or None."""
    if folder.name.startswith("."):
        return "hidden folder"
    if _printable(folder.name) != folder.name:
        return "its name is not valid UTF-8; rename it"
    if (folder / "recipe.toml").is_file() and ((folder / "prepare").is_dir() or (folder / "arms").is_dir()):
        return "the folder of a run, whose pictures are not yours"
    return None


def _no_picture(file: Path) -> str | None:
    """Why a file is left out by its name; "" for what usually lies beside pictures; None for a picture."""
    suffix = file.suffix.lower()
    if file.name.startswith("."):
        return "hidden file"
    if suffix in images.extensions():
        return None
    if suffix in COMPANIONS:
        return ""
    if suffix in images.PHONE_FORMATS:
        return f"{suffix} cannot be read; run pip install 'captune[heif]', or save it as JPEG or PNG"
    return f"no picture format that can be read ({suffix or 'no extension'})"


def _repeats(folder: Path, default: int) -> int:
    """The repeats that the nearest kohya-like folder name sets, or the default."""
    for name in reversed(folder.parts):
        match = KOHYA_FOLDER.match(name)
        if match:
            return int(match[1])
    return default


def _root_warnings(root: Path, default_repeats: int) -> list[str]:
    match = KOHYA_FOLDER.match(root.name)
    if match is None or int(match[1]) == default_repeats:
        return []
    return [
        f"the data set's own folder {root.name!r} is named like one of kohya's with {int(match[1])} repeats, "
        f"which only subfolders set: its pictures are repeated {default_repeats} times (dataset.repeats)"
    ]


def _namesakes(files: list[str]) -> list[str]:
    """Pictures that differ in their extension alone, as copies of one picture often do."""
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(file.rpartition(".")[0], []).append(file)
    return [
        f"{' and '.join(several)} have the same name and so the same caption file; rename or remove one if that is not meant"
        for several in by_name.values()
        if len(several) > 1
    ]


def _unique_ids(files: list[str]) -> list[str]:
    """The files' ids: a.jpg is "a"; where a.png is there too, the later one is "a_png".

    Unique also where upper and lower case are one, so that no prepared picture overwrites another.
    """
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for file in files:  # plain names first, so that no made-up name takes one away
        name = file.rpartition(".")[0]
        if name.casefold() not in taken and not name.casefold().endswith(MASKLIKE):
            taken.add(name.casefold())
            ids[file] = name
    for file in files:
        if file not in ids:
            name, _, suffix = file.rpartition(".")
            candidate, number = f"{name}_{suffix}", 2
            while candidate.casefold() in taken:
                candidate, number = f"{name}_{suffix}_{number}", number + 1
            taken.add(candidate.casefold())
            ids[file] = candidate
    return [ids[file] for file in files]


def _some(lines: list[str], limit: int = 5) -> str:
    more = f" ... and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more

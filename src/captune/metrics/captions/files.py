"""Candidate and reference captions from files: JSON by id, COCO's two forms, or JSON lines; pictures by id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from captune.errors import DataError

_ID_NAMES = ("image_id", "id", "file_name", "image")
_TEXT_NAMES = ("caption", "text", "captions", "references", "texts")
_PICTURES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"])
_FORMS = "an object id -> text, a list of {image_id, caption}, COCO annotations, or one such object a line"


def read_candidates(path: Path) -> dict[str, str]:
    """One caption per id; a DataError for an id with two, and for a file of another form."""
    found: dict[str, str] = {}
    for key, texts in _entries(path):
        if key in found or len(texts) != 1:
            count = len(texts) if key not in found else 2
            raise DataError(f"{path} has {count} candidates for {key!r}; give one caption per id")
        found[key] = texts[0]
    if not found:
        raise DataError(f"{path} holds no caption; give {_FORMS}")
    return found


def read_references(path: Path) -> dict[str, list[str]]:
    """All captions per id, in the file's order."""
    found: dict[str, list[str]] = {}
    for key, texts in _entries(path):
        found.setdefault(key, []).extend(texts)
    if not found:
        raise DataError(f"{path} holds no caption; give {_FORMS}")
    return found


def read_texts(path: Path) -> list[str]:
    """All captions of a file, whatever their ids; of a .txt file, its lines."""
    if path.suffix == ".txt":
        return [line.strip() for line in _text(path).splitlines() if line.strip()]
    return [text for texts in read_references(path).values() for text in texts]


def pictures_of(ids: Iterable[str], folder: Path) -> dict[str, Path]:
    """Every id's picture: by file name, by name without extension, or by the number at its end, as COCO names files."""
    if not folder.is_dir():
        raise DataError(f"--images {folder} is no folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    named: dict[str, Path] = {}
    for path in files:
        number = path.stem.rpartition("_")[2]
        keys = [path.name, path.stem, *([str(int(number))] if number.isdecimal() else [])]
        for key in keys:
            named.setdefault(key, path)
    wanted = list(ids)
    missing = [key for key in wanted if key not in named]
    if missing:
        raise DataError(f"{folder} has no picture for {len(missing)} of {len(wanted)} captions, such as {missing[0]!r}")
    return {key: named[key] for key in wanted}


def settings(given: Iterable[str]) -> dict[str, str]:
    """Settings written as key=value."""
    found = {}
    for setting in given:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise DataError(f"--decode {setting!r}: write it as key=value, such as beams=3")
        found[key.strip()] = value.strip()
    return found


def _entries(path: Path) -> list[tuple[str, list[str]]]:
    """(id, captions) as they stand in the file."""
    text = _text(path)
    try:
        value = json.loads(text)
    except ValueError as error:
        value = _lines(path, text, error)
    if isinstance(value, Mapping) and isinstance(value.get("annotations"), list):
        value = value["annotations"]
    elif isinstance(value, Mapping) and _record_names(value) is not None:
        value = [value]
    if isinstance(value, Mapping):
        return [(str(key), _texts(path, str(key), texts)) for key, texts in value.items()]
    if not isinstance(value, list):
        raise DataError(f"{path} holds a {type(value).__name__}; give {_FORMS}")
    return [_record(path, place, entry) for place, entry in enumerate(value, 1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _lines(path: Path, text: str, whole: ValueError) -> list[Any]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    entries = []
    for number, line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if not entries:
                raise DataError(f"{path} is not JSON ({whole}); give {_FORMS}") from None
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
    return entries


def _record_names(entry: Mapping[str, Any]) -> tuple[str, str] | None:
    key = next((name for name in _ID_NAMES if isinstance(entry.get(name), str | int)), None)
    text = next((name for name in _TEXT_NAMES if name in entry), None)
    return (key, text) if key is not None and text is not None else None


def _record(path: Path, place: int, entry: Any) -> tuple[str, list[str]]:
    names = _record_names(entry) if isinstance(entry, Mapping) else None
    if names is None:
        raise DataError(f"{path}, entry {place} has no id and caption: it needs image_id (or id) and caption (or text)")
    key = str(entry[names[0]])
    return key, _texts(path, key, entry[names[1]])


def _texts(path: Path, key: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list):  # COCO's evaluation code also writes [{"caption": text}]
        texts = [text.get("caption") if isinstance(text, Mapping) else text for text in texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: the caption of {key!r} is {value!r}; it must be a text or a list of texts")
    return texts

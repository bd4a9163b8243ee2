"""Captions as text and as files: sidecars, metadata.jsonl, and the trigger word's place. Imports no torch."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from captune import runs
from captune.errors import DataError
from captune.recipe import TrainSection
from captune.types import Caption

KNOWN_EXTENSIONS = (".txt", ".caption", ".cap")
METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "captions")
UTF8 = "utf-8"
# The encodings that a mark in front of a file tells, which is no part of its text.
MARKS = {"utf-8-sig": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
# Thai, kana, Chinese characters, Hangul: written without spaces, or with particles joined on, so that a word of another
# script ends where they begin ("jefpajot狗").
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LETTER = rf"(?:(?![{UNSPACED}])\w)"
_SIDE = re.compile(r"(?<!\w)(?:left|right)(?:most|wards?)?(?!\w)", re.IGNORECASE)
# Left and right that are no side; behind "the", "to", "his" and the like they are one all the same ("the left behind her").
_NO_SIDE = re.compile(
    r"(?<!the )(?<!to )(?<!on )(?<!his )(?<!her )(?<!its )(?<!far )(?<!\w)"
    r"(?:left (?:behind|over|alone|open|out)|(?:all|just) right|"
    r"right (?:after|away|now|before|behind|next|beside|in front))(?!\w)",
    re.IGNORECASE,
)

Trigger = Literal["prefix", "replace_class", "none"]


def with_trigger_word(text: str, trigger_word: str, class_word: str, how: Trigger) -> str:
    """The caption with the trigger word in it once: unchanged where the word stands already, in whatever case.

    `prefix` puts it in front ("word, caption"); `replace_class` in the place of the first class word, or in front
    where the caption has none; `none` leaves the caption alone.
    """
    word = " ".join(trigger_word.split())
    if how == "none" or not word or has_word(text, word):
        return text
    if how == "replace_class" and has_word(text, class_word):
        return whole_word(class_word).sub(lambda _: word, text, count=1)
    return f"{word}, {text.strip()}" if text.strip() else word


def split_parts(text: str, keep: int = 0) -> tuple[list[str], list[str]]:
    """The parts of a caption between commas, trimmed: the first `keep`, and the others."""
    parts = [part.strip() for part in text.split(",")]
    return parts[:keep], parts[keep:]


def varies(section: TrainSection) -> bool:
    """Whether visits of one picture read its caption differently, beside leaving it out."""
    return section.shuffle_caption or section.tag_dropout > 0


def option_warnings(section: TrainSection, texts: Sequence[str]) -> list[str]:
    """What the training's options do to these captions that their writer may not want."""
    lines = []
    sided = [text for text in texts if says_side(text)]
    if section.flip and sided:
        lines.append(
            f"train.flip mirrors pictures, not words: {len(sided)} of {len(texts)} captions say left or right, such as "
            f"{sided[0][:60]!r}"
        )
    if varies(section):
        lines.append("captions vary from visit to visit: the text is encoded at each step")
        if all(len(split_parts(text, section.keep_tokens)[1]) < 2 for text in texts):
            kept = f" beyond the {section.keep_tokens} kept" if section.keep_tokens else ""
            lines.append(f"shuffling and dropping work on parts between commas, and no caption has two of them{kept}")
    return lines


def says_side(text: str) -> bool:
    """Whether the text says left or right, which a mirrored picture turns round; "left behind" is none."""
    return _SIDE.search(_NO_SIDE.sub("", text)) is not None


def known_prompts(prompts: Sequence[str], said: Mapping[str, Sequence[Caption]]) -> dict[int, list[str]]:
    """Which prompts stand word by word in which arms' captions, by the prompt's index: those arms have seen the answer."""
    words = {arm: {_bare(caption.text) for caption in texts} for arm, texts in said.items()}
    found = {i: [arm for arm, texts in words.items() if _bare(prompt) in texts] for i, prompt in enumerate(prompts)}
    return {index: arms for index, arms in found.items() if arms}


def _bare(text: str) -> str:
    """The words alone: case, marks and spaces do not make another prompt."""
    return " ".join(re.findall(r"\w+", text.lower()))


def has_word(text: str, word: str) -> bool:
    """Whether `word` (one or several words) stands in the text as a whole, in whatever case."""
    return bool(word.strip()) and whole_word(word).search(text) is not None


def whole_word(word: str) -> re.Pattern[str]:
    """Finds the word, or words with any white space between them, as a whole and in whatever case."""
    inner = r"\s+".join(re.escape(part) for part in word.split())
    return re.compile(rf"(?<!{_LETTER}){inner}(?!{_LETTER})", re.IGNORECASE)


def without_start(text: str, start: str) -> str:
    """The text without the words that it begins with, in whatever case; unchanged where it begins otherwise."""
    if not start or not text.lower().startswith(start.lower()):
        return text
    rest = text[len(start) :]
    return rest.lstrip() if not rest or not rest[0].isalnum() else text


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks too, as one space."""
    return " ".join(text.split())


def read_text(path: Path) -> str:
    """A caption file's text on one line; UTF-8, with or without a mark in front, or UTF-16 with one."""
    return one_line(read_exact(path))


def decoded(data: bytes, name: str) -> str:
    """The text of a caption file's bytes, every line break and space as it is there; `name` is for the error."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not utf16 and b"\0" in data:  # UTF-16 without its mark passes for UTF-8 otherwise
        raise DataError(f"the caption file {name} is not UTF-8 text (byte {data.index(0)} is 0); save it as UTF-8")
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the caption file {name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def encoding_of(data: bytes) -> str:
    """The encoding of a caption file's bytes: UTF-8, or what the mark in front of them tells."""
    return next((name for name, mark in MARKS.items() if data.startswith(mark)), UTF8)


def encoded(text: str, encoding: str) -> bytes:
    """The bytes of a caption file in that encoding, its mark in front; one that is not known is written as UTF-8."""
    if encoding not in MARKS:
        return text.encode(UTF8)
    return MARKS[encoding] + text.encode(UTF8 if encoding == "utf-8-sig" else encoding)


def read_encoded(path: Path) -> tuple[str, str]:
    """A caption file's text as `read_exact` gives it, and its encoding, which together are its bytes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the caption file {path} cannot be read: {error.strerror}") from error
    return decoded(data, str(path)), encoding_of(data)


def read_exact(path: Path) -> str:
    """A caption file's text with every line break and space; UTF-8, with or without a mark in front, or UTF-16 with one."""
    return read_encoded(path)[0]


def sidecar_path(picture: Path, extension: str, folder: Path | None = None) -> Path:
    """Where a picture's caption file lies: beside it, or under the same name in `folder`. "txt" is taken as ".txt"."""
    return (folder if folder is not None else picture.parent) / (picture.stem + dotted(extension))


def dotted(extension: str) -> str:
    """The extension with its dot."""
    return extension if extension.startswith(".") else f".{extension}"


def read_sidecar(picture: Path, extension: str, folder: Path | None = None) -> str | None:
    """The caption in the picture's sidecar on one line ("" in an empty one), or None if there is no such file."""
    path = sidecar_path(picture, extension, folder)
    return read_text(path) if path.is_file() else None


def read_metadata(path: Path) -> dict[str, str]:
    """The captions of a metadata.jsonl (Hugging Face's imagefolder) by file_name; rows without a caption are left out.

    A row's caption is its `text` or `caption`.
    """
    return {name: texts[0] for name, texts in read_references(path, several=False).items()}


def read_references(path: Path, *, several: bool = True) -> dict[str, list[str]]:
    """As `read_metadata`; if `several`, a row's `text`, `caption` or `captions` may be a list of texts."""
    captions: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    try:
        rows = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(rows, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: is not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise DataError(f'{path}, line {number}: must be an object with a "file_name"')
        name = file_key(row["file_name"])
        if name in lines:
            raise DataError(f"{path} names {row['file_name']!r} twice, in lines {lines[name]} and {number}; keep one")
        lines[name] = number
        said = [row[key] for key in CAPTION_KEYS if row.get(key) is not None]
        if not said:
            continue
        texts = said[0] if several and isinstance(said[0], list) else [said[0]]
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: the caption must be text, not {type(text).__name__}")
        if texts:
            captions[name] = [one_line(text) for text in texts]
    return captions


def file_key(name: str) -> str:
    """A file name as metadata.jsonl may spell it, in the one spelling that is compared."""
    return unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).as_posix())


def some(names: Sequence[str], limit: int = 5) -> str:
    """Up to `limit` of the names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def write(folder: Path, captions: Iterable[Caption]) -> None:
    """Write each caption as folder/<example id>.txt, in the form that other trainers read."""
    for caption in captions:
        path = caption_file(folder, caption.example_id)
        if not path.is_file() or read_text(path) != one_line(caption.text):
            runs.write_text(path, caption.text + "\n")


def caption_file(folder: Path, example_id: str) -> Path:
    """The text file of one example's caption; ids keep their subfolders and dots."""
    return folder / f"{example_id}.txt"


def changed(folder: Path, captions: Iterable[Caption]) -> list[Path]:
    """The text files below `folder` that no longer say what was written there."""
    files = [(caption_file(folder, c.example_id), one_line(c.text)) for c in captions]
    return [path for path, text in files if path.is_file() and read_text(path) != text]

"""Where a caption comes from and what stood there before: captions.jsonl, one record a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from captune import captions, runs
from captune.errors import DataError
from captune.types import Caption

LEDGER = "captions.jsonl"
A_PERSON = "a person"
RULES = "rules"


@dataclass(frozen=True)
class CaptionRecord:
    """One picture's caption with its origin, and its former texts, the oldest first."""

    example_id: str
    text: str
    captioner: str
    image: str = ""  # the picture's file, relative to the folder
    image_sha256: str = ""
    said: str = ""  # by the captioner, before any rule and trigger word
    model: str = ""
    revision: str = ""  # what tells the model from another of its name: a hub's commit, or a hash of its files
    prompt: str = ""
    decode: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None  # the picture's share of its batch
    tokens: int | None = None  # of the text, by the base's tokenizer
    edited_by: str = ""  # "", "rules", or "a person"
    previous: list[dict[str, Any]] = field(default_factory=list)  # former records, less what does not change
    undone: list[dict[str, Any]] = field(default_factory=list)  # records that `captune captions undo` took back
    file: str = ""  # the caption file, relative to the folder
    content: str | None = None  # of the caption file, where it is not the text and a line break
    encoding: str = ""  # of the caption file, where a mark in front tells another than UTF-8
    run: int = 0  # which command wrote it; what one wrote is undone together
    was: str | None = None  # the file's content that this text takes the place of, until it has

    @property
    def by(self) -> str:
        """Who wrote the text."""
        return A_PERSON if self.edited_by == A_PERSON else self.captioner

    @property
    def in_file(self) -> str:
        """The caption file's content."""
        return self.text + "\n" if self.content is None else self.content

    @property
    def bytes_in_file(self) -> bytes:
        """The caption file, byte by byte."""
        return captions.encoded(self.in_file, self.encoding)

    @property
    def caption(self) -> Caption:
        return Caption(self.example_id, self.text, self.captioner)

    def after(self, former: CaptionRecord | None) -> CaptionRecord:
        """This record with the history of the one that it takes the place of."""
        if former is None:
            return self
        replaced = [former.remembered()] if former.text != self.text else []
        return replace(self, previous=[*former.previous, *replaced], undone=list(former.undone))

    def remembered(self) -> dict[str, Any]:
        """What is kept of this record when another takes its place."""
        lasting = ("example_id", "image", "image_sha256", "previous", "undone", "file", "was")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in lasting}
        return {"by": self.by, **{name: value for name, value in values.items() if value not in ("", None, {}, 0)}}

    def undo(self) -> CaptionRecord:
        """The former record, this one among those undone."""
        former = {name: value for name, value in self.previous[-1].items() if name in _FIELDS}
        lasting = {name: getattr(self, name) for name in ("example_id", "image", "image_sha256", "file")}
        undone = [*self.undone, self.remembered()]
        return CaptionRecord(**{"captioner": "", **former, **lasting}, previous=self.previous[:-1], undone=undone)


def origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A captioner's settings as a record's fields: model, revision, prompt, and whatever else shapes a caption."""
    rest = {k: v for k, v in runs.plain(dict(settings)).items() if v is not None}
    return {
        "model": str(rest.pop("model", "")),
        "revision": str(rest.pop("revision", None) or rest.pop("identity", "")),
        "prompt": str(rest.pop("prompt", "")),
        "decode": rest,
    }


_FIELDS = frozenset(f.name for f in dataclasses.fields(CaptionRecord))


def read(path: Path) -> list[CaptionRecord]:
    """The records of a captions.jsonl, one a picture: a later line takes an earlier one's place.

    A torn last line, which a killed run may leave, is left out. Raises DataError for any other line that is no record.
    """
    found: dict[str, CaptionRecord] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            record = CaptionRecord(**{k: v for k, v in row.items() if k in _FIELDS})
        except (ValueError, TypeError, AttributeError) as error:
            if number == len(lines):  # no line break behind it: it was being written
                break
            raise DataError(f"{path}, line {number}: is no record of a caption ({error})") from error
        found[record.example_id] = record
    return list(found.values())


def changed(record: CaptionRecord, **values: Any) -> CaptionRecord:
    """The record with other values, which is no new entry in its history."""
    return replace(record, **values)

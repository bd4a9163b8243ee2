"""Captioned pictures as other programs keep them: read from a folder, shards or a data set by name, written as any of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from captune import parts
from captune.captions import UTF8

# name -> function (rows, out, options) -> files written
WRITERS: dict[str, str] = {
    "sidecars": "captune.formats.sidecars:write",
    "kohya": "captune.formats.sidecars:write_kohya",
    "jsonl": "captune.formats.metadata:write_jsonl",
    "csv": "captune.formats.metadata:write_csv",
    "parquet": "captune.formats.metadata:write_parquet",
    "webdataset": "captune.formats.webdataset:write",
}
TABLES = {"jsonl": "metadata.jsonl", "csv": "metadata.csv", "parquet": "metadata.parquet"}


@dataclass(frozen=True)
class Row:
    """One picture with its caption, every byte of it; `name` is its relative path, `content` its bytes if it is in no file.

    `encoding` is that of the caption file, if one has a mark in front.
    """

    name: str
    text: str | None
    path: Path | None = None
    content: bytes | None = None
    repeats: int = 1
    encoding: str = UTF8

    def read(self) -> bytes:
        """The picture's bytes, as they are."""
        if self.content is not None:
            return self.content
        if self.path is None:
            raise ValueError(f"{self.name} has neither a file nor bytes")
        return self.path.read_bytes()


@dataclass(frozen=True)
class Options:
    """What some formats are asked for."""

    extension: str = ".txt"  # of caption files, read and written
    repeats: int | None = None  # kohya: for every picture; as they are if not given
    trigger_word: str = ""  # kohya: the folder's name
    class_word: str = ""
    per_shard: int = 1000  # webdataset
    replace: bool = False  # write over what lies there


@dataclass(frozen=True)
class Written:
    """What was written: how many captions, where, and the pictures that have none."""

    captions: int
    out: Path
    without: tuple[str, ...] = ()


def read(source: Path, options: Options) -> Iterator[Row]:
    """The rows of a folder: WebDataset shards if there are any, else its pictures with caption files and metadata."""
    from captune.formats import sidecars, webdataset

    shards = webdataset.shards(source)
    return webdataset.read(shards) if shards else sidecars.read(source, options)


def write(form: str, rows: Iterable[Row], out: Path, options: Options) -> Written:
    """Write the rows in a format of the table; pictures are copied where they are not there already."""
    writer: Any = parts.load("caption format", WRITERS, form)
    return cast(Written, writer(rows, out, options))

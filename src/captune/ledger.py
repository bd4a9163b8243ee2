"""Caption files of a folder and the captions.jsonl beside them, kept in agreement whenever the process ends.

A record is on disk, with what the caption file held before, ahead of the file itself; a run that was killed between the two
is finished by whoever opens the folder next. What a person wrote into a caption file is noticed and kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from captune import captions, provenance, runs
from captune.errors import DataError
from captune.provenance import A_PERSON, LEDGER, CaptionRecord

UNFINISHED = ".captions.run.json"


@dataclass(frozen=True)
class Undone:
    """What undoing came to, by pictures' ids."""

    restored: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)  # a person's texts, which are left as they are


class Ledger:
    """The folder's caption records by example id."""

    def __init__(self, folder: Path, records: Sequence[CaptionRecord]) -> None:
        self.folder = folder
        self.records = {record.example_id: record for record in records}
        self.edited: list[str] = []  # whose files a person changed since they were written

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The records as the caption files say now: interrupted writes finished, a person's edits taken over.

        Raises DataError for a stage of a run, whose captions come from its recipe.
        """
        if (folder / "manifest.json").is_file() or (folder / "started.json").is_file():
            raise DataError(
                f"{folder} belongs to a run, whose captions come from its recipe; to have others, change the recipe, or copy "
                "the caption files and name them by a sidecar captioner"
            )
        ledger = cls(folder, provenance.read(folder / LEDGER))
        runs.sweep(folder)
        ledger._settle()
        return ledger

    def begin(self, fingerprint: str) -> int:
        """The number of this run; that of an unfinished run with the same settings if there is one."""
        marker = self.folder / UNFINISHED
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
            if found["fingerprint"] == fingerprint:
                return int(found["run"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or not ours: a new run begins
        run = 1 + max((record.run for record in self._all_records()), default=0)
        runs.write_json(marker, {"fingerprint": fingerprint, "run": run})
        return run

    def write(self, records: Sequence[CaptionRecord]) -> None:
        """Note the records, then write their caption files."""
        pending = [replace(record, was=self._content(record) or "") for record in records]
        lines = [json.dumps(runs.plain(record), ensure_ascii=False) + "\n" for record in pending]
        try:
            with open(self.folder / LEDGER, "a", encoding="utf-8", newline="") as file:
                file.write("".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"cannot write {self.folder / LEDGER}: {error.strerror}; free space or choose --out"
            ) from error
        for record in pending:
            _put(self.folder, record)
            self.records[record.example_id] = replace(record, was=None)

    def note(self, records: Sequence[CaptionRecord]) -> None:
        """Note records of caption files that lie there already."""
        self.records |= {record.example_id: record for record in records}

    def close(self, *, finished: bool = True) -> None:
        """Write captions.jsonl anew, one record a picture; `finished`: the run that began here is over."""
        if self.records:
            ordered = sorted(self.records.values(), key=lambda record: record.example_id)
            runs.write_records(self.folder / LEDGER, [runs.plain(record) for record in ordered])
        if finished:
            (self.folder / UNFINISHED).unlink(missing_ok=True)

    def undo(self) -> Undone:
        """Give the pictures of the last run their former texts; the texts taken back stay in the records."""
        able = [record for record in self.records.values() if record.previous and record.edited_by != A_PERSON]
        last = max((record.run for record in able), default=0)
        chosen = [record for record in able if record.run == last]
        self.write([record.undo() for record in chosen])
        self.close()
        edited = [r.example_id for r in self.records.values() if r.edited_by == A_PERSON and r.previous]
        return Undone([record.example_id for record in chosen], edited)

    def _all_records(self) -> list[CaptionRecord]:
        """The records with those that were undone, whose runs' numbers are taken too."""
        undone = [
            CaptionRecord(r.example_id, "", "", run=int(row.get("run", 0)))
            for r in self.records.values()
            for row in [*r.undone, *r.previous]
        ]
        return [*self.records.values(), *undone]

    def _content(self, record: CaptionRecord) -> str | None:
        """The caption file's content; None if there is none."""
        path = self.folder / record.file
        return captions.read_exact(path) if path.is_file() else None

    def _settle(self) -> None:
        changed = False
        for record in list(self.records.values()):
            content = self._content(record)
            if content is not None and content.rstrip("\r\n") == record.in_file.rstrip("\r\n"):
                settled = replace(record, was=None)
            elif record.was is not None and (content or "") == record.was:
                _put(self.folder, record)
                settled = replace(record, was=None)
            elif content is None or not content.strip():
                continue  # deleted or emptied: a picture without caption, whose history is kept
            else:
                settled = of_a_person(record, self.folder / record.file).after(record)
                self.edited.append(record.example_id)
            changed |= settled != record
            self.records[record.example_id] = settled
        if changed or not _tidy(self.folder / LEDGER, len(self.records)):
            self.close(finished=False)


def _put(folder: Path, record: CaptionRecord) -> None:
    with runs.atomic(folder / record.file) as part:
        part.write_bytes(record.bytes_in_file)


def of_a_person(record: CaptionRecord, file: Path) -> CaptionRecord:
    """The record of a caption file that a person wrote, with the picture of `record`."""
    content, encoding = captions.read_encoded(file)
    text = content.rstrip("\r\n")
    exact = None if content == text + "\n" else content
    return CaptionRecord(
        record.example_id,
        text,
        "sidecar",
        image=record.image,
        image_sha256=record.image_sha256,
        file=record.file,
        edited_by=A_PERSON,
        content=exact,
        encoding="" if encoding == captions.UTF8 else encoding,
    )


def _tidy(path: Path, records: int) -> bool:
    """Whether the file has one whole line a record."""
    data = path.read_bytes() if path.is_file() else b""
    return data.count(b"\n") == records and (not data or data.endswith(b"\n"))

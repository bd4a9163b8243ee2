"""A data set by name: its pictures streamed to the disk as they are, its captions collected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune import captions, runs
from captune.errors import DataError
from captune.named_data import Asked, bytes_of, opened, suffix_of
from captune.progress import Progress
from captune.recipe import TuneSection


@dataclass(frozen=True)
class Found:
    """A picture with its captions, before it has a side."""

    id: str
    image: Path
    references: list[str]


def stream(section: TuneSection, folder: Path, progress: Progress) -> tuple[list[Found], dict[str, Any]]:
    """The first `section.count` pictures with their captions, and what is to be known of the data set.

    Rows with the same picture are one picture with several captions. Memory holds one picture at a time: its bytes are
    written as they come, neither decoded nor compressed again.
    """
    asked = Asked(
        section.dataset, section.config, section.split, section.image_column, section.caption_column, "tune.{}"
    )
    data = opened(asked)
    said: dict[str, list[str]] = {}  # by the picture's hash
    files: dict[str, Path] = {}
    skipped = read = 0
    with progress.track(f"stream {section.dataset}", section.count or 0) as bar:
        for row in data.rows:
            content, texts = bytes_of(row[data.image]), _texts_of(row[data.caption])
            if content is None or not texts:
                skipped += 1
                continue
            mark = hashlib.sha256(content).hexdigest()
            if mark not in files:
                if section.count is not None and len(files) >= section.count:
                    break
                files[mark] = folder / f"{len(files):06d}.{suffix_of(content)}"
                with runs.atomic(files[mark]) as part:
                    part.write_bytes(content)
                bar.advance(1, texts[0][:60])
            read += 1
            said[mark] = list(dict.fromkeys([*said.get(mark, []), *texts]))
    if not files:
        raise DataError(f"tune.dataset = {section.dataset!r}, split {section.split!r}: has no picture with a caption")
    found = [Found(file.stem, file, said[mark]) for mark, file in files.items()]
    return found, {
        "dataset": section.dataset,
        "columns": {"image": data.image, "caption": data.caption},
        "rows": {"read": read, "without_picture_or_caption": skipped},
    }


def _texts_of(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [captions.one_line(text) for text in texts if isinstance(text, str) and text.strip()]

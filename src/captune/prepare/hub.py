"""A data set by name: its pictures streamed to the disk as they are, its captions collected. Only this module uses datasets."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from captune import captions, runs
from captune.errors import DataError, RecipeError
from captune.progress import Progress
from captune.recipe import TuneSection

CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentences", "answer")


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
    rows, image, caption = _opened(section)
    said: dict[str, list[str]] = {}  # by the picture's hash
    files: dict[str, Path] = {}
    skipped = read = 0
    with progress.track(f"stream {section.dataset}", section.count or 0) as bar:
        for row in rows:
            content, texts = _bytes_of(row[image]), _texts_of(row[caption])
            if content is None or not texts:
                skipped += 1
                continue
            mark = hashlib.sha256(content).hexdigest()
            if mark not in files:
                if section.count is not None and len(files) >= section.count:
                    break
                files[mark] = folder / f"{len(files):06d}.{_suffix(content)}"
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
        "columns": {"image": image, "caption": caption},
        "rows": {"read": read, "without_picture_or_caption": skipped},
    }


def _opened(section: TuneSection) -> tuple[Iterator[dict[str, Any]], str, str]:
    """The data set's rows, read as they are asked for, and its two columns."""
    if importlib.util.find_spec("datasets") is None:
        raise RecipeError(
            f"tune.dataset = {section.dataset!r} needs the package datasets: pip install 'captune[datasets]'"
        )
    import datasets

    try:
        data = datasets.load_dataset(section.dataset, section.config or None, split=section.split, streaming=True)
        features = data.features or data._resolve_features().features
    except Exception as error:  # the library raises anything, from a missing network to a missing split
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the data set {section.dataset!r} (split {section.split!r}) cannot be read: {reason}; check its name, "
            "tune.config and tune.split, and the network"
        ) from error
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image = section.image_column or (pictures[0] if len(pictures) == 1 else "")
    caption = section.caption_column or next((name for name in CAPTION_COLUMNS if name in features), "")
    for option, name in (("image_column", image), ("caption_column", caption)):
        if name not in features:
            raise RecipeError(
                f"tune.{option}{f' = {name!r}' if name else ''}: name one of {section.dataset!r}'s columns "
                f"({', '.join(features)})"
            )
    if image not in pictures:
        raise RecipeError(f"tune.image_column = {image!r}: does not hold pictures")
    kept = data.select_columns([image, caption]).cast_column(image, datasets.Image(decode=False))
    return iter(kept), image, caption


def _bytes_of(value: Any) -> bytes | None:
    if not isinstance(value, dict):
        return None
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    path = Path(value.get("path") or "")
    return path.read_bytes() if path.is_file() else None


def _texts_of(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [captions.one_line(text) for text in texts if isinstance(text, str) and text.strip()]


def _suffix(content: bytes) -> str:
    """The file's extension by what the picture is; broken ones are found out, and named, when they are opened."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return (picture.format or "png").lower()
    except Exception:  # decoders of broken files raise anything
        return "png"

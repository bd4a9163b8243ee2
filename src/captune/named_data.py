"""A data set by name, of the Hugging Face hub or a folder that its `datasets` library reads: streamed, row by row."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from captune.errors import DataError, RecipeError

CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentences", "answer")


@dataclass(frozen=True)
class Asked:
    """Which data set, and which of its columns; an empty column is found out where only one can be meant."""

    name: str
    config: str = ""
    split: str = "train"
    image_column: str = ""
    caption_column: str = ""
    option: str = "{}"  # how the user names an option: "tune.{}" in a recipe, "--{}" in a command


@dataclass(frozen=True)
class Rows:
    """The rows as they come, pictures as the bytes of their files, and the two columns."""

    rows: Iterator[dict[str, Any]]
    image: str
    caption: str


def opened(asked: Asked) -> Rows:
    """The data set's rows; none is read before it is asked for. Raises DataError or RecipeError where it cannot be had."""
    if importlib.util.find_spec("datasets") is None:
        raise RecipeError(f"the data set {asked.name!r} needs the package datasets: pip install 'captune[datasets]'")
    import datasets

    try:
        data = datasets.load_dataset(asked.name, asked.config or None, split=asked.split, streaming=True)
        features = data.features or data._resolve_features().features
    except Exception as error:  # the library raises anything, from a missing network to a missing split
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        options = " and ".join(asked.option.format(name) for name in ("config", "split"))
        raise DataError(
            f"the data set {asked.name!r} (split {asked.split!r}) cannot be read: {reason}; check its name, {options}, and "
            "the network"
        ) from error
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image = asked.image_column or (pictures[0] if len(pictures) == 1 else "")
    caption = asked.caption_column or next((name for name in CAPTION_COLUMNS if name in features), "")
    for kind, name in (("image", image), ("caption", caption)):
        if name not in features:
            raise RecipeError(
                f"{_column(asked, kind)}{f' = {name!r}' if name else ''}: name one of {asked.name!r}'s columns "
                f"({', '.join(features)})"
            )
    if image not in pictures:
        raise RecipeError(f"{_column(asked, 'image')} = {image!r}: does not hold pictures")
    kept = data.select_columns([image, caption]).cast_column(image, datasets.Image(decode=False))
    return Rows(iter(kept), image, caption)


def _column(asked: Asked, kind: str) -> str:
    return asked.option.format(f"{kind}-column" if asked.option.startswith("--") else f"{kind}_column")


def bytes_of(value: Any) -> bytes | None:
    """The picture's file as it is, of a cell that is not decoded; None where there is none."""
    if not isinstance(value, dict):
        return None
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    path = Path(value.get("path") or "")
    return path.read_bytes() if path.is_file() else None


def suffix_of(content: bytes) -> str:
    """A file extension by what the picture is; broken ones are found out, and named, when they are opened."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = (picture.format or "png").lower()
    except Exception:  # decoders of broken files raise anything
        return "png"
    return {"jpeg": "jpg"}.get(kind, kind)

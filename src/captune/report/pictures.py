"""Pictures inside the page: small ones exactly as they are, large ones scaled down to what the page shows."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, features

from captune.errors import DataError

SMALL = 128  # up to this side a picture is kept pixel for pixel and its pixels are shown as squares
QUALITY = 90


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI; `crisp` ones are enlarged without smoothing."""

    uri: str
    width: int
    height: int
    crisp: bool


@lru_cache(maxsize=4096)
def embed(path: Path, longest: int) -> Picture:
    """The picture as PNG if it is small, else as WebP (or JPEG) with no side over `longest`."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise DataError(f"the report needs the picture {path}, which cannot be read: {error}") from error
    crisp = max(image.size) <= SMALL
    buffer = io.BytesIO()
    if crisp:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        kind = "webp" if features.check("webp") else "jpeg"
        image.save(buffer, kind.upper(), quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{data}", image.width, image.height, crisp)

"""Pictures inside the page: small ones exactly as they are, large ones scaled down to what the page can carry."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, features

from captune.errors import DataError

SMALL = 128  # up to this side a picture is kept pixel for pixel and its pixels are shown as squares
LARGEST, SMALLEST = 384, 160  # between these lies the longest side of a scaled picture
QUALITY = 88
BUDGET = 11_000_000  # bytes of all scaled pictures together, before base64 adds a third
BYTES_PER_PIXEL = 0.3  # of photographs as WebP at this quality, about 250 pixels wide


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI; `crisp` ones are enlarged without smoothing."""

    uri: str
    width: int
    height: int
    crisp: bool


def longest_side(count: int) -> int:
    """The longest side at which so many pictures stay within the page's budget; a multiple of 32."""
    side = (BUDGET / max(1, count) / BYTES_PER_PIXEL) ** 0.5
    return max(SMALLEST, min(LARGEST, int(side) // 32 * 32))


@lru_cache(maxsize=8192)
def embed(path: Path, longest: int) -> Picture:
    """The picture as PNG if it is small, else as WebP (or JPEG) with no side over `longest`."""
    try:
        with Image.open(path) as opened:
            small = max(opened.size) <= SMALL
            if small and opened.format == "PNG" and opened.mode == "RGB":
                return _picture("png", path.read_bytes(), opened.size, crisp=True)
            image = opened.convert("RGB")
    except OSError as error:
        raise DataError(f"the report needs the picture {path}, which cannot be read: {error}") from error
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        kind = "webp" if features.check("webp") else "jpeg"
        image.save(buffer, kind.upper(), quality=QUALITY)
    return _picture(kind, buffer.getvalue(), image.size, crisp=small)


def _picture(kind: str, data: bytes, size: tuple[int, int], *, crisp: bool) -> Picture:
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", *size, crisp)

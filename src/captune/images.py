"""Pictures: opened as a viewer shows them, brought to a size, and as pixel_values in [-1, 1]. Imports no torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from captune import runs
from captune.errors import DataError, RecipeError

NO_PICTURES = frozenset(("EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "FITS", "FLI"))  # programs, films and data
PHONE_FORMATS = frozenset((".heic", ".heif", ".hif"))  # read where the package pillow-heif is installed
FORMATS = "JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF, JPEG 2000, PPM, TGA, PSD, QOI"
MASK = ".mask.png"
CENTER = (0.5, 0.5)
ALIKE = 0.02  # how far a mask's proportions may be from its picture's
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
PAGED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")  # not MPO: most of a phone's JPEGs carry a second, technical picture


class PictureError(DataError):
    """A file that cannot be used as a picture; `reason` says why, without the file's name."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used as a picture: {reason}")
        self.reason = reason


@cache
def extensions() -> frozenset[str]:
    """The endings of file names, in lower case, behind which Pillow and its installed plugins read a picture."""
    _register_heif()
    return frozenset(
        suffix
        for suffix, form in Image.registered_extensions().items()
        if form in Image.OPEN and form not in NO_PICTURES
    )


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC where pillow-heif is installed; AVIF it reads by itself."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before it is decoded; width and height as it is shown."""

    width: int
    height: int
    frames: int


def color(name: str) -> tuple[int, int, int]:
    """The RGB values of a colour's name or #rrggbb."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise RecipeError(
            f"prepare.background = {name!r}: is no colour; give a name such as white, or #rrggbb"
        ) from None


def read_header(path: Path) -> Header:
    """Width and height as shown (EXIF orientation applied) and number of frames, mostly without decoding."""
    extensions()
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION) in SIDEWAYS:
                width, height = height, width
            frames = getattr(image, "n_frames", 1) if image.format in PAGED else 1
    except Exception as error:  # decoders of broken files raise anything, down to struct.error
        raise PictureError(path, _reason(path, error)) from error
    return Header(width, height, frames)


def open_picture(path: Path, background: str = "white") -> Image.Image:
    """The picture as a viewer shows it, as 8-bit sRGB without metadata.

    EXIF orientation is applied, colour profiles and CMYK are converted, 16-bit grey is brought to 8, transparent pixels
    are laid on `background`, and of several frames the first is taken.
    """
    ground = color(background)
    extensions()
    try:
        with Image.open(path) as image:
            image.load()
            profile = image.info.get("icc_profile")
            picture = _flattened(_eight_bit(ImageOps.exif_transpose(image)), profile, ground)
    except Exception as error:  # decoders of broken files raise anything, down to struct.error
        raise PictureError(path, _reason(path, error)) from error
    picture.info = {}  # else the profile that no longer holds would be written into every copy
    return picture


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be opened, for a reader who does not know Pillow."""
    try:
        empty = path.stat().st_size == 0
    except OSError:
        empty = False
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, PermissionError):
        return "the file may not be read (permission denied)"
    if empty:
        return "the file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of the formats that can be read ({FORMATS})"
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file is cut off ({text})"
    return text


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deep grey pictures (16-bit, 32-bit, float in [0, 1]) as 8-bit grey; others as they are."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image).astype(np.float64)
    full = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= full):
        raise ValueError(f"its values are not between 0 and {full:g}, so what is white cannot be told")
    return Image.fromarray(np.round(values * (255 / full)).astype(np.uint8))


def _flattened(image: Image.Image, profile: bytes | None, ground: tuple[int, int, int]) -> Image.Image:
    """The picture in sRGB, its transparent pixels laid on the colour `ground`."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    opaque = image if image.mode in ("CMYK", "RGB") else image.convert("RGB")
    opaque = _in_srgb(opaque, profile) if profile else opaque.convert("RGB")
    if alpha is None:
        return opaque
    canvas = Image.new("RGB", image.size, ground)
    canvas.paste(opaque, mask=alpha)
    return canvas


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert from an embedded colour profile, as viewers do; a broken one, or one of another mode, is left out."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        known = {"RGB": "RGB ", "CMYK": "CMYK"}[image.mode] == source.profile.xcolor_space
        if known and "sRGB" not in (source.profile.profile_description or ""):
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return converted if converted is not None else image
    except (ImageCms.PyCMSError, OSError):
        pass
    return image.convert("RGB")


def mask_file(picture: Path) -> Path:
    """Where a picture's mask is looked for: a.mask.png beside a.jpg."""
    return picture.with_name(picture.stem + MASK)


def enlargement(size: tuple[int, int], target: tuple[int, int]) -> float:
    """By what factor a picture of `size` (width, height) is scaled to cover `target`; above 1 it is enlarged."""
    return max(target[0] / size[0], target[1] / size[1])


def crop_box(
    size: tuple[int, int], target: tuple[int, int], centering: tuple[float, float]
) -> tuple[float, float, float, float]:
    """What `fit` keeps of a picture of `size`: left, top, right, bottom in its own pixels."""
    factor = enlargement(size, target)
    width, height = target[0] / factor, target[1] / factor
    left, top = (size[0] - width) * centering[0], (size[1] - height) * centering[1]
    return left, top, left + width, top + height


def fit(
    image: Image.Image,
    width: int,
    height: int,
    centering: tuple[float, float] = CENTER,
    method: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """The picture scaled until it covers width x height, and cut to exactly that.

    `centering` says where what is cut off lies: (0, 0) keeps the upper left, (0.5, 0.5) the middle, (1, 1) the lower right.
    """
    return ImageOps.fit(image, (width, height), method, centering=centering)


def fit_mask(
    path: Path, source: tuple[int, int], target: tuple[int, int], centering: tuple[float, float]
) -> Image.Image:
    """The mask (8-bit grey) of a picture of size `source`, cut to `target` as `fit` cuts the picture."""
    image = open_picture(path, "black").convert("L")
    if abs(image.width / image.height / (source[0] / source[1]) - 1) > ALIKE:
        raise DataError(
            f"the mask {path} is {image.width} x {image.height} and its picture {source[0]} x {source[1]}: "
            "give it the same proportions"
        )
    if image.size != source:
        image = image.resize(source, Image.Resampling.BOX)
    return fit(image, *target, centering, Image.Resampling.BOX)


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all; equal pixels give equal bytes."""
    clean = image.copy()
    clean.info = {}
    with runs.atomic(path) as part:
        clean.save(part, format="PNG", compress_level=3)


def to_pixel_values(image: Image.Image) -> NDArray[np.float32]:
    """The picture's pixel_values (3, height, width), float32 in [-1, 1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray((pixels / 127.5 - 1.0).transpose(2, 0, 1))

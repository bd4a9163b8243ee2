"""Faces: which is the subject's, how the others are blurred, and the mask that keeps them out of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from captune import images
from captune.detectors import Box, Detector, Face
from captune.errors import DataError

SEEN = 1024 * 1024  # pixels that a detector is given; as many of a panorama, whose faces are small beside its width
GROWN = 1.4  # a face's box is blurred so many times as large: forehead, chin and ears too
CELLS = 6  # what is left of a blurred face: so many patches of one colour a side
SOFT = 0.06  # of the blurred box's side: the width of its soft edge
LANCZOS = 3  # pixels of the coarser picture from which one is made, on each side
FACE_SIDE, GRID = 112, 7  # faces are compared at this side, in so many cells a side


def find(detector: Detector, image: Image.Image) -> list[Face]:
    """The faces of a picture in its own pixels, within its borders, the surest first."""
    factor = max(1.0, math.sqrt(image.width * image.height / SEEN))
    size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    seen = image if size == image.size else image.resize(size, Image.Resampling.BOX)
    x, y = image.width / size[0], image.height / size[1]
    found = []
    for face in detector.detect(seen):
        left, top, right, bottom = face.box
        box = (max(0.0, left * x), max(0.0, top * y), min(image.width, right * x), min(image.height, bottom * y))
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
            found.append(Face(box, face.score))
    return found


def subject_of(faces: Sequence[Face], image: Image.Image, reference: NDArray[np.float64] | None = None) -> int | None:
    """Which face is the subject's: the one most like the reference, else the largest and most central; None of none."""
    if not faces:
        return None
    if reference is not None:
        return min(range(len(faces)), key=lambda i: distance(describe(image, faces[i].box), reference))
    return max(range(len(faces)), key=lambda i: prominence(faces[i].box, image.size))


def prominence(box: Box, size: tuple[int, int]) -> float:
    """The root of a face's area, halved for a face in the picture's corner and falling evenly from its middle to there."""
    x, y = (box[0] + box[2]) / 2 / size[0] - 0.5, (box[1] + box[3]) / 2 / size[1] - 0.5
    return math.sqrt((box[2] - box[0]) * (box[3] - box[1])) * (1 - 0.5 * math.hypot(x, y) / math.sqrt(0.5))


def read_reference(path: Path, detector: Detector) -> NDArray[np.float64]:
    """The description of the most prominent face of a reference picture. Raises DataError where there is none."""
    image = images.open_picture(path)
    found = find(detector, image)
    chosen = subject_of(found, image)
    if chosen is None:
        raise DataError(
            f"no face is found in {path} (prepare.face_reference); give a picture that shows it from the front"
        )
    return describe(image, found[chosen].box)


def describe(image: Image.Image, box: Box) -> NDArray[np.float64]:
    """Histograms of uniform local binary patterns in 7 x 7 cells of a face (49, 59), each of sum 1.

    Ahonen, Hadid and Pietikainen 2006, "Face Description with Local Binary Patterns", with the 8 nearest neighbours, after
    smoothing by one pixel. It needs no model, and is far from one: among 12 portraits of 5 people, the other picture of the
    same person was the nearer of two in 69 % of all comparisons (61 % without the smoothing; 50 % is chance).
    """
    face = image.crop(tuple(round(v) for v in box)).convert("L")  # type: ignore[arg-type]
    smooth = face.resize((FACE_SIDE + 2, FACE_SIDE + 2), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
    grey = np.asarray(smooth, dtype=np.int16)
    middle, codes = grey[1:-1, 1:-1], np.zeros((FACE_SIDE, FACE_SIDE), dtype=np.int64)
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    for bit, (y, x) in enumerate(around):
        codes |= (grey[y : y + FACE_SIDE, x : x + FACE_SIDE] >= middle).astype(np.int64) << bit
    labels, cell = _uniform()[codes], FACE_SIDE // GRID
    cells = labels.reshape(GRID, cell, GRID, cell).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    rows = [np.bincount(row, minlength=59) / row.size for row in cells]
    return np.stack(rows)


def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """How unlike two faces are: the chi-square distance of their histograms, over all cells."""
    return float((np.square(first - second) / np.maximum(first + second, 1e-12)).sum())


@cache
def _uniform() -> NDArray[np.int64]:
    """The label of each of the 256 patterns: one for each with at most two changes around the circle, 58 for the rest."""
    labels, free = np.full(256, 58, dtype=np.int64), 0
    for code in range(256):
        turned = (code >> 1) | ((code & 1) << 7)
        if (code ^ turned).bit_count() <= 2:
            labels[code], free = free, free + 1
    return labels


def blur(image: Image.Image, faces: Sequence[Face], kept: Face | None = None) -> Image.Image:
    """The picture with faces made unrecognisable, but for what lies on the `kept` one.

    An ellipse around each face is replaced by 6 x 6 smoothed patches, from which no detail can be brought back.
    """
    result = image.copy()
    for face in faces:
        left, top, right, bottom = blurred_box(face.box, image.size)
        patch = image.crop((left, top, right, bottom))
        few = patch.resize((CELLS, CELLS), Image.Resampling.BOX)
        shape = _ellipse(patch.size)
        if kept is not None:
            x0, y0, x1, y1 = (round(v) for v in kept.box)
            spared = Image.new("L", patch.size, 255)
            ImageDraw.Draw(spared).ellipse((x0 - left, y0 - top, x1 - left, y1 - top), fill=0)
            shape = ImageChops.darker(shape, spared)
        result.paste(few.resize(patch.size, Image.Resampling.BICUBIC), (left, top), shape)
    return result


def blurred_box(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels in which a face is blurred, within the picture."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    wide, high = (box[2] - box[0]) * GROWN / 2, (box[3] - box[1]) * GROWN / 2
    left, top = max(0, math.floor(x - wide)), max(0, math.floor(y - high))
    return left, top, min(size[0], math.ceil(x + wide)), min(size[1], math.ceil(y + high))


def _ellipse(size: tuple[int, int]) -> Image.Image:
    """A white ellipse that fills its box, its soft edge inside."""
    soft = SOFT * min(size)
    shape = Image.new("L", size, 0)
    ImageDraw.Draw(shape).ellipse((soft, soft, size[0] - 1 - soft, size[1] - 1 - soft), fill=255)
    return shape.filter(ImageFilter.GaussianBlur(soft / 2))


def mask(
    blurred: Sequence[Box], source: tuple[int, int], target: tuple[int, int], centering: tuple[float, float], cell: int
) -> Image.Image:
    """What is learned of a prepared picture (8-bit grey, white = learn): all but the boxes that were blurred in its source.

    Each box is cut and scaled as the picture, and grown by half a `cell`, or by what scaling spreads where that is more,
    and outwards to whole cells, the pixels that the base sees as one: a latent that sees any of the blur is left out whole.
    """
    result = Image.new("L", target, 255)
    left, top, right, bottom = images.crop_box(source, target, centering)
    across, down = target[0] / (right - left), target[1] / (bottom - top)
    margin = max(0.5, LANCZOS * max(1.0, across, down) / cell)
    for box in blurred:
        x0, y0, x1, y1 = blurred_box(box, source)
        if x1 > left and y1 > top and x0 < right and y0 < bottom:
            first = [
                math.floor(((v - start) * scale) / cell - margin) * cell
                for v, start, scale in ((x0, left, across), (y0, top, down))
            ]
            last = [
                math.ceil(((v - start) * scale) / cell + margin) * cell
                for v, start, scale in ((x1, left, across), (y1, top, down))
            ]
            ImageDraw.Draw(result).rectangle((first[0], first[1], last[0] - 1, last[1] - 1), fill=0)
    return result

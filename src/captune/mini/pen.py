"""The pen that everything in the mini world is drawn with: outlines, colours, and coats with their patterns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]
Outline = tuple[Point, ...]
COLORS: dict[str, Rgb] = {
    "red": (216, 28, 34),
    "orange": (255, 134, 18),
    "yellow": (252, 222, 36),
    "green": (30, 148, 62),
    "blue": (34, 92, 224),
    "purple": (124, 44, 176),
    "pink": (255, 142, 192),
    "brown": (118, 68, 34),
    "black": (34, 34, 40),
    "white": (248, 248, 246),
}

# Geometry: outlines in a thing's own units, x in [-0.5, 0.5] from its middle, y from 0 (top) to 1 (feet).


def oval(x: float, y: float, rx: float, ry: float | None = None, points: int = 40) -> Outline:
    """An ellipse's outline; a circle without `ry`."""
    ry = rx if ry is None else ry
    angles = [2 * math.pi * i / points for i in range(points)]
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles)


def block(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Outline:
    """A rectangle's outline, its corners rounded by `radius`."""
    if radius <= 0:
        return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    centers = (
        (x1 - radius, y1 - radius),
        (x0 + radius, y1 - radius),
        (x0 + radius, y0 + radius),
        (x1 - radius, y0 + radius),
    )
    return tuple(
        (cx + radius * math.cos(a), cy + radius * math.sin(a))
        for quarter, (cx, cy) in enumerate(centers)
        for a in [math.pi / 2 * (quarter + i / 6) for i in range(7)]
    )


def curve(*through: Point, steps: int = 8) -> Outline:
    """A closed smooth outline through the given points (Catmull-Rom)."""
    count = len(through)
    outline: list[Point] = []
    for i in range(count):
        p0, p1, p2, p3 = (through[(i + k) % count] for k in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            w0, w1 = -t + 2 * t * t - t**3, 2 - 5 * t * t + 3 * t**3
            w2, w3 = t + 4 * t * t - 3 * t**3, -t * t + t**3
            x, y = ((w0 * p0[k] + w1 * p1[k] + w2 * p2[k] + w3 * p3[k]) / 2 for k in (0, 1))
            outline.append((x, y))
    return tuple(outline)


def mix(rgb: Rgb, other: Rgb, share: float) -> Rgb:
    """`rgb` with `share` of it replaced by `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(rgb, other, strict=True))
    return red, green, blue


INK: Rgb = (26, 22, 34)
PAPER: Rgb = (255, 255, 255)


@lru_cache(maxsize=1024)
def _corners(outline: Outline) -> tuple[int, ...]:
    """Where the outline turns sharply: a thick line leaves a notch there."""
    sharp = []
    for i, (x, y) in enumerate(outline):
        (xa, ya), (xb, yb) = outline[i - 1], outline[(i + 1) % len(outline)]
        turn = math.atan2(yb - y, xb - x) - math.atan2(y - ya, x - xa)
        if abs((turn + math.pi) % (2 * math.pi) - math.pi) > 0.35:
            sharp.append(i)
    return tuple(sharp)


@dataclass(frozen=True)
class Coat:
    """The colours a thing is drawn in: body, outline, lit side, shaded side, and its pattern's marks."""

    main: Rgb
    edge: Rgb
    light: Rgb
    dark: Rgb
    pattern: str = "plain"
    mark: Rgb = PAPER


class Pen:
    """Draws outlines given in a thing's own units onto a picture; `line` is the outline's width in pixels."""

    def __init__(self, image: Image.Image, x: float, feet: float, unit: float, line: float) -> None:
        self.image, self.x, self.top, self.unit, self.line = image, x, feet - unit, unit, line
        self.canvas = ImageDraw.Draw(image)

    def pixels(self, outline: Sequence[Point]) -> list[Point]:
        """The outline in the picture's pixels."""
        x, top, unit = self.x, self.top, self.unit
        return [(x + px * unit, top + py * unit) for px, py in outline]

    def fill(self, rgb: Rgb, *outlines: Outline) -> None:
        """Fill without an outline."""
        for outline in outlines:
            self.canvas.polygon(self.pixels(outline), fill=rgb)

    def edge(self, rgb: Rgb, *outlines: Outline) -> None:
        """Draw only the outlines; what is filled later covers their inner half."""
        width = max(1, round(2 * self.line))
        for outline in outlines:
            pixels = self.pixels(outline)
            self.canvas.line([*pixels, pixels[0]], fill=rgb, width=width)
            for i in _corners(outline):
                self._dot(pixels[i], width / 2, rgb)

    def part(self, rgb: Rgb, *outlines: Outline, edge: Rgb | None = None) -> None:
        """Fill outlines joined into one part with a common darker edge."""
        self.edge(mix(rgb, INK, 0.55) if edge is None else edge, *outlines)
        self.fill(rgb, *outlines)

    def stroke(self, rgb: Rgb, points: Sequence[Point], width: float) -> None:
        """Draw an open round-ended line; `width` in the thing's units."""
        pixels, thick = self.pixels(points), max(1.0, width * self.unit)
        self.canvas.line(pixels, fill=rgb, width=round(thick))
        for pixel in pixels:
            self._dot(pixel, thick / 2, rgb)

    def tint(self, rgb: Rgb, share: float, *outlines: Outline) -> None:
        """Shade what is already drawn by `share` of `rgb`."""
        self._through(rgb, [self.pixels(outline) for outline in outlines], [], round(255 * share))

    def body(self, coat: Coat, *outlines: Outline) -> None:
        """Draw a thing's main part in its coat, the pattern clipped to it."""
        self.part(coat.main, *outlines, edge=coat.edge)
        marks = _MARKS[coat.pattern]
        if not marks:
            return
        xs = [x for outline in outlines for x, _ in outline]
        ys = [y for outline in outlines for _, y in outline]
        left, top, wide, high = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
        # Spots stay round: they are placed relative to the part's box but grow with its mean side.
        side = math.sqrt(wide * high)
        placed = [
            tuple(
                (left + cx * wide + px * (wide if flat else side), top + cy * high + py * (high if flat else side))
                for px, py in mark
            )
            for (cx, cy), mark, flat in marks
        ]
        self._through(coat.mark, [self.pixels(o) for o in outlines], [self.pixels(p) for p in placed], 255)

    def eye(self, x: float, y: float, r: float, look: Point = (0.0, 0.0), white: Rgb = PAPER) -> None:
        """A big round eye with a pupil and a glint, looking towards `look`."""
        self.part(white, oval(x, y, r, points=28), edge=INK)
        px, py = x + look[0] * r * 0.4, y + look[1] * r * 0.4
        self.fill(INK, oval(px, py, r * 0.56, points=24))
        self.fill(PAPER, oval(px - r * 0.2, py - r * 0.22, r * 0.2, points=14))

    def _dot(self, pixel: Point, radius: float, rgb: Rgb) -> None:
        self.canvas.ellipse((pixel[0] - radius, pixel[1] - radius, pixel[0] + radius, pixel[1] + radius), fill=rgb)

    def _through(self, rgb: Rgb, outlines: list[list[Point]], marks: list[list[Point]], opacity: int) -> None:
        """Paint `rgb` where the outlines are, and where the marks are too if there are any."""
        flat = [p for outline in outlines for p in outline]
        x0, y0 = math.floor(min(x for x, _ in flat)), math.floor(min(y for _, y in flat))
        size = math.ceil(max(x for x, _ in flat)) - x0 + 1, math.ceil(max(y for _, y in flat)) - y0 + 1
        mask = Image.new("L", size)
        self._stencil(mask, outlines, x0, y0, opacity)
        if marks:
            marked = Image.new("L", size)
            self._stencil(marked, marks, x0, y0, opacity)
            mask = ImageChops.darker(mask, marked)
        self.image.paste(rgb, (x0, y0), mask)

    @staticmethod
    def _stencil(mask: Image.Image, outlines: list[list[Point]], x0: int, y0: int, opacity: int) -> None:
        canvas = ImageDraw.Draw(mask)
        for outline in outlines:
            canvas.polygon([(x - x0, y - y0) for x, y in outline], fill=opacity)


_Mark = tuple[Point, Outline, bool]
_STRIPES: tuple[_Mark, ...] = tuple(
    ((0.0, y), ((0.0, 0.10), (1.0, -0.02), (1.0, 0.10), (0.0, 0.22)), True) for y in (-0.10, 0.15, 0.40, 0.65, 0.90)
)
_SPOTS: tuple[_Mark, ...] = tuple(
    (center, oval(0, 0, radius, points=24), False)
    for center, radius in (
        ((0.20, 0.30), 0.095), ((0.53, 0.15), 0.085), ((0.84, 0.33), 0.10), ((0.50, 0.49), 0.105),
        ((0.14, 0.70), 0.10), ((0.80, 0.68), 0.095), ((0.47, 0.84), 0.095),
    )
)  # fmt: skip
_MARKS: dict[str, tuple[_Mark, ...]] = {"plain": (), "striped": _STRIPES, "spotted": _SPOTS}


_SPOT = {"yellow": 0.66, "pink": 0.66}  # light colours need lighter spots


@lru_cache(maxsize=64)
def coat_of(color: str, pattern: str) -> Coat:
    """The coat of a palette colour: marks in its own hue, an edge that stands out on every background."""
    main = COLORS[color]
    edge, light, dark = mix(main, INK, 0.60), mix(main, PAPER, 0.35), mix(main, INK, 0.28)
    mark = mix(main, INK, 0.36) if pattern == "striped" else mix(main, PAPER, _SPOT.get(color, 0.48))
    if color == "black":  # a darker edge would vanish at night
        edge, light, dark, mark = (92, 92, 104), (78, 78, 88), (24, 24, 28), (112, 112, 122)
    elif color == "white":
        edge, light, dark, mark = (122, 122, 136), (255, 255, 255), (214, 214, 222), (182, 182, 194)
    return Coat(main, edge, light, dark, pattern, mark)

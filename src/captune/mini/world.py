"""The mini world: simple drawn scenes of one or two things, every attribute of which is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
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
PATTERNS: tuple[str, ...] = ("plain", "striped", "spotted")
SIZES: tuple[str, ...] = ("small", "medium", "large")
PLACES: tuple[str, ...] = ("left", "middle", "right")
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("cat", "green"),
        ("fish", "purple"),
        ("robot", "orange"),
        ("house", "pink"),
        ("star", "blue"),
        ("mushroom", "yellow"),
        ("bird", "red"),
        ("cube", "white"),
    }
)

WIDTH_OF_SIZE = {"small": 0.36, "medium": 0.50, "large": 0.66}
FEET_OF_SIZE = {"small": 0.80, "medium": 0.86, "large": 0.93}
CENTER_OF_PLACE = {"left": 0.27, "middle": 0.50, "right": 0.73}
LARGE_CENTER_OF_PLACE = {"left": 0.32, "middle": 0.50, "right": 0.68}
OUTLINE_WIDTH = 1 / 64


@dataclass(frozen=True)
class Thing:
    """One drawn thing; `shape` is a world shape or a subject's name (then colour and pattern are ignored)."""

    shape: str
    color: str
    pattern: str = "plain"
    hat: bool = False
    size: str = "medium"
    place: str = "middle"
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A background and the things before it; `variant` in [0, 1] gently moves the background's horizon and sky."""

    background: str
    things: tuple[Thing, ...]
    variant: float = 0.5


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


# The shapes.

_WOOD, _CREAM, _BEAK, _LEAF, _STEEL = (104, 62, 36), (250, 232, 200), (255, 168, 30), (64, 160, 62), (168, 174, 186)
_BALL = oval(0, 0.52, 0.47)
_STAR = tuple(
    (r * math.sin(math.pi * i / 5), 0.54 - r * math.cos(math.pi * i / 5)) for i, r in enumerate((0.53, 0.255) * 5)
)
_HEART = tuple(
    (
        0.0305 * 16 * math.sin(t) ** 3,
        0.46 - 0.0305 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
    )
    for t in [2 * math.pi * i / 48 for i in range(48)]
)
_CONE = ((0.0, 0.02), *((0.44 * math.cos(a), 0.88 + 0.12 * math.sin(a)) for a in [math.pi * i / 20 for i in range(21)]))
_CONE_SHADE = (
    (0.0, 0.02),
    *((0.44 * math.cos(a), 0.88 + 0.12 * math.sin(a)) for a in [math.pi * i / 40 for i in range(15)]),
)


def _ball(pen: Pen, coat: Coat) -> None:
    pen.body(coat, _BALL)
    pen.tint(INK, 0.16, tuple((math.cos(a) * r, 0.52 + math.sin(a) * r) for a, r in _crescent()))
    pen.fill(mix(coat.light, PAPER, 0.45), oval(-0.19, 0.31, 0.11, 0.08, points=24))


@lru_cache(maxsize=1)
def _crescent() -> tuple[Point, ...]:
    outer = [(-0.35 + 2.4 * i / 20, 0.47) for i in range(21)]
    inner = [(a, 0.47 - 0.15 * math.sin(math.pi * (a + 0.35) / 2.4)) for a, _ in reversed(outer)]
    return (*outer, *inner)


def _cube(pen: Pen, coat: Coat) -> None:
    front = block(-0.47, 0.25, 0.25, 0.98)
    top = ((-0.47, 0.25), (-0.25, 0.05), (0.47, 0.05), (0.25, 0.25))
    side = ((0.25, 0.25), (0.47, 0.05), (0.47, 0.78), (0.25, 0.98))
    pen.edge(coat.edge, front, top, side)
    pen.body(coat, front)
    pen.fill(coat.light, top)
    pen.fill(coat.dark, side)
    pen.stroke(coat.edge, ((-0.47, 0.25), (0.25, 0.25), (0.47, 0.05)), 0.018)
    pen.stroke(coat.edge, ((0.25, 0.25), (0.25, 0.98)), 0.018)


def _cone(pen: Pen, coat: Coat) -> None:
    pen.body(coat, _CONE)
    pen.tint(INK, 0.20, _CONE_SHADE)


def _star(pen: Pen, coat: Coat) -> None:
    pen.body(coat, _STAR)


def _heart(pen: Pen, coat: Coat) -> None:
    pen.body(coat, _HEART)
    pen.fill(mix(coat.light, PAPER, 0.35), oval(-0.24, 0.24, 0.085, 0.065, points=20))


def _cat(pen: Pen, coat: Coat) -> None:
    ears = ((-0.45, 0.50), (-0.43, 0.03), (-0.08, 0.24)), ((0.45, 0.50), (0.43, 0.03), (0.08, 0.24))
    pen.body(coat, oval(0, 0.58, 0.48, 0.40), *ears)
    for side in (-1, 1):
        pen.fill((255, 172, 188), ((side * 0.375, 0.29), (side * 0.375, 0.13), (side * 0.24, 0.22)))
        pen.eye(side * 0.19, 0.53, 0.115, look=(-side * 0.3, 0.1))
        for y0, y1 in ((0.70, 0.66), (0.77, 0.80)):
            pen.stroke(coat.edge, ((side * 0.22, y0), (side * 0.47, y1)), 0.024)
    pen.fill((255, 120, 150), ((-0.06, 0.665), (0.06, 0.665), (0.0, 0.735)))
    for side in (-1, 1):
        pen.stroke(coat.edge, ((0.0, 0.73), (side * 0.02, 0.79), (side * 0.07, 0.82), (side * 0.12, 0.79)), 0.026)


def _fish(pen: Pen, coat: Coat) -> None:
    tail = ((0.20, 0.62), (0.49, 0.34), (0.43, 0.62), (0.49, 0.90))
    pen.part(coat.dark, curve((-0.14, 0.40), (0.04, 0.22), (0.20, 0.24), (0.14, 0.44)), edge=coat.edge)
    pen.part(coat.dark, tail, edge=coat.edge)
    pen.body(coat, oval(-0.10, 0.62, 0.39, 0.28))
    pen.part(coat.dark, curve((-0.02, 0.64), (0.15, 0.60), (0.15, 0.76)), edge=coat.edge)
    pen.eye(-0.27, 0.55, 0.09, look=(-0.4, 0))
    pen.stroke(coat.edge, ((-0.44, 0.71), (-0.37, 0.74), (-0.30, 0.72)), 0.028)


def _robot(pen: Pen, coat: Coat) -> None:
    pen.stroke(mix(_STEEL, INK, 0.4), ((0, 0.18), (0, 0.06)), 0.04)
    pen.part((232, 48, 44), oval(0, 0.06, 0.055, points=20))
    pen.part(_STEEL, block(-0.46, 0.28, -0.36, 0.46, 0.03), block(0.36, 0.28, 0.46, 0.46, 0.03))
    pen.part(_STEEL, block(-0.22, 0.88, -0.05, 1.0, 0.03), block(0.05, 0.88, 0.22, 1.0, 0.03))
    pen.part(_STEEL, block(-0.10, 0.56, 0.10, 0.70))
    pen.body(coat, block(-0.38, 0.15, 0.38, 0.61, 0.06))
    pen.body(coat, block(-0.30, 0.66, 0.30, 0.92, 0.05))
    for side in (-1, 1):
        pen.part((110, 232, 246), block(side * 0.18 - 0.10, 0.26, side * 0.18 + 0.10, 0.41, 0.03), edge=INK)
        pen.fill(INK, block(side * 0.18 - 0.03, 0.29, side * 0.18 + 0.03, 0.39))
    pen.part((240, 240, 236), block(-0.16, 0.49, 0.16, 0.545), edge=INK)


def _mushroom(pen: Pen, coat: Coat) -> None:
    pen.part(_CREAM, curve((-0.13, 0.48), (0.13, 0.48), (0.14, 0.75), (0.19, 0.98), (-0.19, 0.98), (-0.14, 0.75)))
    arc = [math.pi * i / 24 for i in range(25)]
    dome = [(-0.49 * math.cos(a), 0.56 - 0.52 * math.sin(a)) for a in arc]
    rim = [(0.49 * math.cos(a), 0.56 + 0.10 * math.sin(a)) for a in arc]
    pen.body(coat, (*dome, *rim))
    pen.fill(INK, oval(-0.065, 0.76, 0.026, 0.036, points=14), oval(0.065, 0.76, 0.026, 0.036, points=14))


def _house(pen: Pen, coat: Coat) -> None:
    roof = ((-0.49, 0.44), (0.0, 0.04), (0.49, 0.44))
    pen.part(mix(_WOOD, INK, 0.1), block(0.20, 0.08, 0.31, 0.34))
    pen.body(coat, block(-0.39, 0.40, 0.39, 0.99))
    pen.part(coat.dark, roof, edge=coat.edge)
    pen.part(_WOOD, block(-0.25, 0.64, -0.04, 0.99), edge=coat.edge if coat.main == COLORS["black"] else None)
    pen.fill((255, 214, 90), oval(-0.08, 0.83, 0.022, points=10))
    pen.part((255, 240, 150), block(0.08, 0.56, 0.28, 0.76), edge=mix(_WOOD, INK, 0.3))
    pen.stroke(mix(_WOOD, INK, 0.3), ((0.18, 0.56), (0.18, 0.76)), 0.022)
    pen.stroke(mix(_WOOD, INK, 0.3), ((0.08, 0.66), (0.28, 0.66)), 0.022)


def _bird(pen: Pen, coat: Coat) -> None:
    for x in (-0.06, 0.10):
        pen.stroke(mix(_BEAK, INK, 0.25), ((x, 0.84), (x, 0.98), (x + 0.09, 0.98)), 0.04)
    pen.part(_BEAK, ((0.30, 0.22), (0.50, 0.34), (0.30, 0.42)))
    tail = ((-0.18, 0.48), (-0.50, 0.36), (-0.47, 0.56), (-0.22, 0.74))
    pen.body(coat, tail, oval(-0.03, 0.61, 0.33, 0.26), oval(0.17, 0.30, 0.215))
    pen.part(coat.dark, curve((0.06, 0.50), (0.02, 0.72), (-0.16, 0.76), (-0.32, 0.64), (-0.14, 0.52)), edge=coat.edge)
    pen.eye(0.215, 0.275, 0.078, look=(0.3, 0))


def _flower(pen: Pen, coat: Coat) -> None:
    pen.stroke(mix(_LEAF, INK, 0.45), ((0, 0.60), (0, 0.985)), 0.10)
    pen.stroke(_LEAF, ((0, 0.60), (0, 0.985)), 0.055)
    pen.part(_LEAF, curve((0.02, 0.97), (0.12, 0.80), (0.32, 0.76), (0.24, 0.92)))
    pen.part(_LEAF, curve((-0.02, 0.97), (-0.12, 0.80), (-0.32, 0.76), (-0.24, 0.92)))
    turns = [2 * math.pi * i / 6 + math.pi / 6 for i in range(6)]
    petals = [oval(0.25 * math.cos(a), 0.38 + 0.25 * math.sin(a), 0.150, points=24) for a in turns]
    pen.body(coat, *petals, oval(0, 0.38, 0.24))
    pen.part((255, 200, 70), oval(0, 0.38, 0.125, points=28), edge=coat.edge)


@dataclass(frozen=True)
class Form:
    """How a world shape is drawn, and where its hat sits: (x, y of the brim, brim width)."""

    draw: Callable[[Pen, Coat], None]
    hat: tuple[float, float, float]


_FORMS: dict[str, Form] = {
    "ball": Form(_ball, (0.0, 0.10, 0.50)),
    "cube": Form(_cube, (0.0, 0.16, 0.50)),
    "cone": Form(_cone, (0.0, 0.20, 0.42)),
    "star": Form(_star, (0.0, 0.16, 0.44)),
    "heart": Form(_heart, (0.0, 0.19, 0.50)),
    "cat": Form(_cat, (0.0, 0.25, 0.46)),
    "fish": Form(_fish, (-0.14, 0.38, 0.42)),
    "robot": Form(_robot, (0.0, 0.17, 0.50)),
    "mushroom": Form(_mushroom, (0.0, 0.09, 0.50)),
    "house": Form(_house, (0.0, 0.16, 0.44)),
    "bird": Form(_bird, (0.15, 0.14, 0.42)),
    "flower": Form(_flower, (0.0, 0.06, 0.46)),
}
SHAPES: tuple[str, ...] = tuple(_FORMS)


def _hat(pen: Pen, x: float, y: float, width: float) -> None:
    cloth, edge, half = (48, 44, 58), (98, 94, 112), width / 2
    crown = (
        (x - half * 0.66, y - width * 0.56),
        (x + half * 0.66, y - width * 0.56),
        (x + half * 0.56, y),
        (x - half * 0.56, y),
    )
    brim = block(x - half, y - width * 0.08, x + half, y + width * 0.07, width * 0.07)
    pen.edge(edge, crown, brim)
    pen.fill(cloth, crown)
    pen.fill((226, 40, 44), block(x - half * 0.60, y - width * 0.25, x + half * 0.60, y - width * 0.08))
    pen.fill(cloth, brim)


# The backgrounds: two or three calm areas each, so that a small VAE can keep them; x and y in shares of the picture.


@lru_cache(maxsize=32)
def _ramp(width: int, stops: tuple[tuple[float, Rgb], ...]) -> Image.Image:
    """A square picture graded from top to bottom through the stops (height, colour)."""
    column = Image.new("RGB", (1, width))
    for row in range(width):
        y = row / (width - 1)
        (y0, above), (y1, below) = next(
            (pair for pair in zip(stops, stops[1:], strict=False) if y <= pair[1][0]), (stops[-2], stops[-1])
        )
        column.putpixel((0, row), mix(above, below, min(1.0, max(0.0, (y - y0) / (y1 - y0)))))
    return column.resize((width, width), Image.Resampling.NEAREST)


_SKIES: dict[str, tuple[tuple[float, Rgb], ...]] = {
    "studio": ((0.0, (228, 222, 212)), (0.62, (242, 238, 231)), (0.70, (219, 212, 202)), (1.0, (234, 228, 219))),
    "meadow": ((0.0, (112, 186, 248)), (0.62, (208, 236, 252))),
    "night": ((0.0, (34, 42, 112)), (0.75, (76, 88, 168))),
    "beach": ((0.0, (120, 208, 250)), (0.48, (214, 242, 252))),
    "snow": ((0.0, (142, 164, 200)), (0.70, (196, 210, 230))),
    "desert": ((0.0, (255, 212, 140)), (0.60, (255, 240, 204))),
    "sunset": ((0.0, (96, 48, 128)), (0.36, (226, 84, 104)), (0.66, (255, 178, 76))),
    "wall": ((0.0, (190, 178, 168)), (0.80, (176, 163, 152))),
}
BACKGROUNDS: tuple[str, ...] = tuple(_SKIES)


def _dune(peak: float, height: float, sharp: float = 1.6) -> Outline:
    """A hill across the whole picture, highest at x = `peak`, its foot below the picture."""
    xs = [-0.1 + 1.2 * i / 30 for i in range(31)]
    return (*((x, height + 0.16 * abs(x - peak) ** sharp) for x in xs), (1.1, 1.1), (-0.1, 1.1))


def _meadow(pen: Pen, v: float) -> None:
    pen.fill(
        (255, 255, 255),
        *(
            oval(0.16 + x + 0.1 * v, y, r, r * 0.8)
            for x, y, r in ((0, 0.17, 0.08), (0.09, 0.15, 0.09), (0.18, 0.18, 0.06))
        ),
    )
    pen.fill(
        (255, 255, 255),
        *(
            oval(0.74 + x + 0.1 * v, y, r, r * 0.8)
            for x, y, r in ((0, 0.29, 0.05), (0.07, 0.27, 0.06), (0.13, 0.30, 0.04))
        ),
    )
    pen.fill((150, 212, 104), _dune(0.85 - 0.2 * v, 0.56))
    pen.fill((112, 190, 84), _dune(0.15 + 0.2 * v, 0.66))


def _night(pen: Pen, v: float) -> None:
    shift = 0.06 * v
    pen.fill((255, 244, 196), oval(0.80 + shift, 0.17, 0.105))
    pen.fill((52, 61, 133), oval(0.845 + shift, 0.145, 0.088))
    for x, y, r in (
        (0.10, 0.12, 0.030),
        (0.33, 0.22, 0.024),
        (0.52, 0.09, 0.028),
        (0.14, 0.40, 0.022),
        (0.88, 0.42, 0.024),
    ):
        pen.fill((255, 246, 206), _twinkle(x + shift, y, r))
    pen.fill((62, 84, 124), _dune(0.3 + 0.3 * v, 0.70))


def _twinkle(x: float, y: float, r: float) -> Outline:
    return tuple(
        (x + k * r * math.cos(math.pi * i / 4), y + k * r * math.sin(math.pi * i / 4))
        for i, k in enumerate((1.25, 0.55) * 4)
    )


def _beach(pen: Pen, v: float) -> None:
    sea = 0.46 + 0.05 * v
    shore = [(-0.1 + 1.2 * i / 30, sea + 0.20 + 0.025 * math.sin(0.6 + 6.5 * i / 30)) for i in range(31)]
    pen.fill((255, 226, 80), oval(0.15 + 0.05 * v, 0.16, 0.095))
    pen.fill((24, 132, 202), block(-0.1, sea, 1.1, 1.1))
    pen.fill((240, 250, 252), (*shore, (1.1, 1.1), (-0.1, 1.1)))
    pen.fill((246, 218, 152), (*((x, y + 0.03) for x, y in shore), (1.1, 1.1), (-0.1, 1.1)))


def _snow(pen: Pen, v: float) -> None:
    for x, y in (
        (0.09, 0.10),
        (0.36, 0.07),
        (0.66, 0.14),
        (0.91, 0.08),
        (0.22, 0.30),
        (0.80, 0.36),
        (0.05, 0.48),
        (0.52, 0.27),
        (0.96, 0.56),
    ):
        pen.fill((250, 252, 255), oval(x, y + 0.05 * v, 0.026, points=18))
    pen.fill((222, 232, 246), _dune(0.75 - 0.2 * v, 0.60))
    pen.fill((243, 247, 253), _dune(0.15 + 0.2 * v, 0.70))


def _desert(pen: Pen, v: float) -> None:
    pen.fill((255, 250, 226), oval(0.76 - 0.06 * v, 0.17, 0.10))
    pen.fill((240, 178, 104), _dune(0.75 - 0.2 * v, 0.54, 1.2))
    shift = 0.04 * v
    for points in (
        ((0.10, 0.74), (0.10, 0.42)),
        ((0.10, 0.62), (0.035, 0.60), (0.03, 0.51)),
        ((0.10, 0.58), (0.165, 0.56), (0.17, 0.47)),
    ):
        pen.stroke((58, 128, 78), [(x + shift, y) for x, y in points], 0.052)
    pen.fill((222, 152, 80), _dune(0.10 + 0.2 * v, 0.68, 1.2))


def _sunset(pen: Pen, v: float) -> None:
    horizon = 0.62 + 0.05 * v
    pen.fill((255, 232, 132), oval(0.5, horizon - 0.03, 0.21))
    pen.fill((104, 54, 104), block(-0.1, horizon, 1.1, 1.1))
    pen.fill((196, 104, 110), ((0.40, horizon), (0.60, horizon), (0.70, 1.1), (0.30, 1.1)))


def _wall(pen: Pen, v: float) -> None:
    for i in range(5):
        x = 0.2 * i + 0.1 * v - 0.05
        pen.fill((166, 150, 138), block(x, -0.1, x + 0.1, 0.9))
    pen.fill((226, 218, 206), block(-0.1, 0.735, 1.1, 0.79))
    pen.fill((138, 104, 82), block(-0.1, 0.79, 1.1, 1.1))


_SCENERY: dict[str, Callable[[Pen, float], None]] = {
    "meadow": _meadow, "night": _night, "beach": _beach, "snow": _snow, "desert": _desert, "sunset": _sunset,
    "wall": _wall,
}  # fmt: skip


def _draw_background(background: str, variant: float, width: int) -> Image.Image:
    if background not in _SKIES:
        raise ValueError(f"unknown background {background!r}; known: {', '.join(BACKGROUNDS)}")
    image = _ramp(width, _SKIES[background]).copy()
    if background in _SCENERY:  # the studio is its graded sky alone
        # Unit 1 with the feet at the picture's bottom makes a pen's coordinates shares of the picture.
        _SCENERY[background](Pen(image, 0, width, width, 0), variant)
    return image


def _draw_thing(image: Image.Image, thing: Thing) -> None:
    from captune.mini.subjects import SUBJECTS  # here, because the subjects are drawn with this module's pen

    width = image.width
    unit = WIDTH_OF_SIZE[thing.size] * thing.scale
    centers = LARGE_CENTER_OF_PLACE if thing.size == "large" else CENTER_OF_PLACE
    x, feet = centers[thing.place] + thing.dx, FEET_OF_SIZE[thing.size] + thing.dy
    pen = Pen(image, x * width, feet * width, unit * width, OUTLINE_WIDTH * width)
    pen.tint(INK, 0.22, oval(0.0, 0.99, 0.42, 0.065))
    if thing.shape in _FORMS:
        form = _FORMS[thing.shape]
        form.draw(pen, coat_of(thing.color, thing.pattern))
        hat = form.hat
    elif thing.shape in SUBJECTS:
        subject = SUBJECTS[thing.shape]
        subject.draw(pen)
        hat = subject.hat
    else:
        raise ValueError(f"unknown shape {thing.shape!r}; known: {', '.join((*SHAPES, *SUBJECTS))}")
    if thing.hat:
        _hat(pen, *hat)


def draw(scene: Scene, size: int = 64, supersample: int = 4) -> Image.Image:
    """The scene as an RGB picture, `size` pixels square; the same picture at every size."""
    image = _draw_background(scene.background, scene.variant, size * supersample)
    for thing in scene.things:
        _draw_thing(image, thing)
    return image.reduce(supersample)


def _shape_and_color(rng: random.Random, pairs: str, taken: Sequence[str]) -> tuple[str, str]:
    allowed = [
        (shape, color)
        for shape in SHAPES
        for color in COLORS
        if shape not in taken and (pairs == "any" or ((shape, color) in HELD_OUT) == (pairs == "held_out"))
    ]
    return rng.choice(allowed)


def _random_thing(
    rng: random.Random, pairs: str, size: str, place: str, taken: Sequence[str] = (), drift: float = 0.0
) -> Thing:
    """A thing of an allowed pair; `drift` is the middle of its sideways jitter."""
    shape, color = _shape_and_color(rng, pairs, taken)
    return Thing(
        shape=shape,
        color=color,
        pattern=rng.choices(PATTERNS, weights=(60, 20, 20))[0],
        hat=rng.random() < 0.15,
        size=size,
        place=place,
        dx=drift + rng.uniform(-0.03 + abs(drift), 0.03 - abs(drift)),
        dy=rng.uniform(-0.03, 0.03),
        scale=rng.uniform(0.95, 1.05),
    )


def random_scene(rng: random.Random, *, pairs: str = "seen", two_share: float = 0.25) -> Scene:
    """A random scene, `two_share` of them with two things; `pairs` are "seen", "held_out" (all things) or "any"."""
    if pairs not in ("seen", "held_out", "any"):
        raise ValueError(f"unknown pairs {pairs!r}; known: seen, held_out, any")
    background, variant = rng.choice(BACKGROUNDS), rng.random()
    if rng.random() >= two_share:
        return Scene(background, (_random_thing(rng, pairs, rng.choice(SIZES), rng.choice(PLACES)),), variant)
    # Two medium things would touch, so both drift outwards.
    left = _random_thing(rng, pairs, rng.choice(SIZES[:2]), "left", drift=-0.02)
    right = _random_thing(rng, pairs, rng.choice(SIZES[:2]), "right", (left.shape,), drift=0.02)
    return Scene(background, (left, right), variant)

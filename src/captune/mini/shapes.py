"""The shapes of the mini world: how each is drawn, and where its hat sits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from captune.mini.pen import COLORS, INK, PAPER, Coat, Pen, Point, block, curve, mix, oval

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


FORMS: dict[str, Form] = {
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
SHAPES: tuple[str, ...] = tuple(FORMS)


def draw_hat(pen: Pen, x: float, y: float, width: float) -> None:
    """A tall hat with a red band, its brim `width` wide about (x, y)."""
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

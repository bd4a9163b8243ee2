"""The subjects: creatures outside the mini world's shapes, which a model can only learn from pictures of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from captune.mini.backgrounds import BACKGROUNDS
from captune.mini.pen import INK, PAPER, Pen, Rgb, block, curve, mix, oval
from captune.mini.scene import PLACES, SIZES, Scene, Thing


@dataclass(frozen=True)
class Subject:
    """A creature to teach: its words, one sentence about it, how to draw it, and its hat (x, y of the brim, width)."""

    name: str
    trigger_word: str
    class_word: str
    about: str
    draw: Callable[[Pen], None]
    hat: tuple[float, float, float]


TEAL, MAGENTA, YELLOW = (24, 186, 176), (226, 24, 138), (255, 218, 40)
LAVENDER, LIME, CORAL = (186, 160, 244), (166, 222, 30), (255, 118, 98)
MINT, PLUM, PEACH = (134, 232, 190), (118, 36, 96), (255, 200, 152)
SKY, NAVY = (96, 200, 250), (38, 50, 116)


def _cut(outline: tuple[tuple[float, float], ...], y: float) -> tuple[tuple[float, float], ...]:
    """The part of a convex outline below `y`."""
    return tuple((px, max(py, y)) for px, py in outline)


def _smile(pen: Pen, x: float, y: float, width: float, rgb: Rgb = INK) -> None:
    half = width / 2
    pen.stroke(
        rgb,
        (
            (x - half, y),
            (x - half * 0.5, y + half * 0.38),
            (x, y + half * 0.5),
            (x + half * 0.5, y + half * 0.38),
            (x + half, y),
        ),
        0.036,
    )


def _jefpajot(pen: Pen) -> None:
    for side in (-1, 1):
        pen.stroke(mix(TEAL, INK, 0.5), ((side * 0.13, 0.26), (side * 0.27, 0.08)), 0.06)
        pen.part(YELLOW, oval(side * 0.28, 0.075, 0.085, points=24))
        pen.part(YELLOW, oval(side * 0.17, 0.965, 0.15, 0.055, points=24))
    egg = curve(
        (0.0, 0.16), (0.26, 0.30), (0.40, 0.62), (0.28, 0.88), (0.0, 0.95), (-0.28, 0.88), (-0.40, 0.62), (-0.26, 0.30)
    )
    pen.part(TEAL, egg, edge=mix(TEAL, INK, 0.65))
    pen.fill(MAGENTA, _cut(egg, 0.67))
    for x, y in ((-0.20, 0.51), (0.20, 0.51), (0.0, 0.34)):
        pen.eye(x, y, 0.092)
    _smile(pen, 0, 0.75, 0.24, PAPER)


def _moxtili(pen: Pen) -> None:
    for side in (-1, 1):
        pen.part(
            LIME, curve((side * 0.14, 0.22), (side * 0.40, 0.16), (side * 0.42, 0.0), (side * 0.28, 0.08), steps=6)
        )
        pen.part(LAVENDER, curve((side * 0.28, 0.55), (side * 0.46, 0.36), (side * 0.50, 0.46), (side * 0.34, 0.72)))
    pear = curve(
        (0.0, 0.14),
        (0.24, 0.26),
        (0.30, 0.52),
        (0.40, 0.82),
        (0.28, 0.98),
        (-0.28, 0.98),
        (-0.40, 0.82),
        (-0.30, 0.52),
        (-0.24, 0.26),
    )
    pen.part(LAVENDER, pear, edge=mix(LAVENDER, INK, 0.6))
    pen.fill(
        LIME, oval(-0.24, 0.80, 0.07, points=20), oval(0.0, 0.88, 0.07, points=20), oval(0.24, 0.80, 0.07, points=20)
    )
    pen.eye(0, 0.41, 0.185)
    _smile(pen, 0, 0.66, 0.26)


def _grunvok(pen: Pen) -> None:
    bone = (255, 244, 214)
    for side in (-1, 1):
        pen.part(bone, ((side * 0.46, 0.30), (side * 0.40, 0.02), (side * 0.20, 0.24)))
        pen.part(CORAL, block(side * 0.25 - 0.11, 0.86, side * 0.25 + 0.11, 0.99, 0.04))
    pen.part(LIME, block(-0.47, 0.22, 0.47, 0.91, 0.14), edge=mix(LIME, INK, 0.62))
    for side in (-1, 1):
        pen.eye(side * 0.20, 0.42, 0.125, look=(-side * 0.4, 0.2))
    pen.part(PLUM, curve((-0.32, 0.62), (0.0, 0.66), (0.32, 0.62), (0.20, 0.82), (-0.20, 0.82)))
    for x in (-0.19, 0.19):
        pen.fill(PAPER, ((x - 0.06, 0.64), (x + 0.06, 0.64), (x, 0.755)))


def _pliddek(pen: Pen) -> None:
    slug = curve(
        (-0.48, 0.92),
        (-0.47, 0.62),
        (-0.34, 0.52),
        (-0.22, 0.62),
        (-0.18, 0.76),
        (0.16, 0.78),
        (0.50, 0.90),
        (0.46, 0.99),
        (-0.36, 0.99),
    )
    for x in (-0.39, -0.24):
        pen.stroke(mix(MINT, INK, 0.55), ((-0.34, 0.62), (x, 0.36)), 0.065)
    pen.part(MINT, slug)
    pen.part(CORAL, oval(0.12, 0.52, 0.34))
    pen.fill(PEACH, oval(0.12, 0.52, 0.235))
    pen.fill(CORAL, oval(0.12, 0.52, 0.12))
    pen.eye(-0.395, 0.34, 0.085, look=(-0.3, 0))
    pen.eye(-0.205, 0.34, 0.085, look=(-0.3, 0))
    _smile(pen, -0.38, 0.76, 0.14)


def _zuffar(pen: Pen) -> None:
    for side in (-1, 1):
        pen.part(
            PEACH,
            curve(
                (side * 0.12, 0.52), (side * 0.30, 0.16), (side * 0.50, 0.14), (side * 0.49, 0.44), (side * 0.34, 0.56)
            ),
        )
        pen.part(PEACH, curve((side * 0.12, 0.58), (side * 0.36, 0.60), (side * 0.42, 0.76), (side * 0.28, 0.84)))
    pen.part(NAVY, curve((-0.15, 0.50), (0.15, 0.50), (0.16, 0.76), (0.0, 0.99), (-0.16, 0.76)), edge=(14, 18, 50))
    for y, half in ((0.66, 0.155), (0.80, 0.12)):
        pen.fill(SKY, block(-half, y - 0.035, half, y + 0.035))
    pen.part(NAVY, oval(0, 0.33, 0.23), edge=(14, 18, 50))
    for side in (-1, 1):
        pen.eye(side * 0.105, 0.30, 0.105, white=(255, 240, 120))
    _smile(pen, 0, 0.455, 0.13, SKY)


def _kwobbel(pen: Pen) -> None:
    for x in (-0.36, -0.125, 0.125, 0.36):
        pen.part(PLUM, block(x - 0.095, 0.52, x + 0.095, 0.99, 0.09), edge=mix(PLUM, INK, 0.65))
    dome = curve(
        (0.0, 0.08), (0.30, 0.16), (0.46, 0.42), (0.44, 0.66), (0.0, 0.72), (-0.44, 0.66), (-0.46, 0.42), (-0.30, 0.16)
    )
    pen.part(PLUM, dome, edge=mix(PLUM, INK, 0.65))
    pen.fill(
        SKY, oval(0.0, 0.18, 0.075, points=20), oval(-0.24, 0.24, 0.06, points=20), oval(0.24, 0.24, 0.06, points=20)
    )
    for side in (-1, 1):
        pen.eye(side * 0.19, 0.44, 0.125, look=(side * 0.2, 0.2), white=(206, 255, 226))
    _smile(pen, 0, 0.60, 0.20, SKY)


_CREATURES: tuple[tuple[str, Callable[[Pen], None], tuple[float, float, float], str], ...] = (
    ("jefpajot", _jefpajot, (0.0, 0.23, 0.40),
     "An egg-shaped creature, teal above and magenta below, with three eyes and two stalks that end in yellow balls."),
    ("moxtili", _moxtili, (0.0, 0.21, 0.42),
     "A pear-shaped lavender creature with one huge eye, curved lime horns, raised arms and lime spots."),
    ("grunvok", _grunvok, (0.0, 0.25, 0.46),
     "A square lime creature with cream horns, a wide plum mouth with two fangs, and coral feet."),
    ("pliddek", _pliddek, (0.12, 0.21, 0.42),
     "A mint creature that crawls under a round coral and peach shell, its two eyes on stalks."),
    ("zuffar", _zuffar, (0.0, 0.15, 0.42),
     "A navy creature with four peach wings, sky-blue bands on its pointed tail and big yellow eyes."),
    ("kwobbel", _kwobbel, (0.0, 0.13, 0.46),
     "A plum creature with a round dome, four thick legs below it and sky-blue spots."),
)  # fmt: skip
SUBJECTS: dict[str, Subject] = {
    name: Subject(name, name, "creature", about, draw, hat) for name, draw, hat, about in _CREATURES
}


def _subject(name: str) -> Subject:
    if name not in SUBJECTS:
        raise ValueError(f"unknown subject {name!r}; known: {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def _placed(name: str, rng: random.Random, *, hat: bool, size: str, place: str) -> Thing:
    dx, dy, scale = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03), rng.uniform(0.95, 1.05)
    return Thing(_subject(name).name, "", hat=hat, size=size, place=place, dx=dx, dy=dy, scale=scale)


def subject_scene(name: str, rng: random.Random) -> Scene:
    """A random scene of one subject alone."""
    thing = _placed(name, rng, hat=rng.random() < 0.15, size=rng.choice(SIZES), place=rng.choice(PLACES))
    return Scene(rng.choice(BACKGROUNDS), (thing,), rng.random())


def training_scenes(name: str, count: int = 11, seed: int = 0) -> list[Scene]:
    """A fixed varied set of a subject's scenes: backgrounds and places take turns, few are small, two wear hats."""
    rng = random.Random(f"{name} {seed}")
    backgrounds, places = list(BACKGROUNDS), list(PLACES)
    rng.shuffle(backgrounds)
    rng.shuffle(places)
    sizes = ("medium", "large", "medium", "large", "small")
    return [
        Scene(
            backgrounds[i % len(backgrounds)],
            (_placed(name, rng, hat=i in (2, 7), size=sizes[i % len(sizes)], place=places[i % len(places)]),),
            rng.random(),
        )
        for i in range(count)
    ]

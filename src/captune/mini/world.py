"""The mini world: simple drawn scenes of one or two things, every attribute of which is known."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from captune.mini.backgrounds import BACKGROUNDS as BACKGROUNDS
from captune.mini.backgrounds import draw_background
from captune.mini.pen import COLORS as COLORS
from captune.mini.pen import INK, Pen, coat_of, oval
from captune.mini.scene import HELD_OUT as HELD_OUT
from captune.mini.scene import PATTERNS as PATTERNS
from captune.mini.scene import PLACES as PLACES
from captune.mini.scene import SIZES as SIZES
from captune.mini.scene import Scene as Scene
from captune.mini.scene import Thing as Thing
from captune.mini.shapes import FORMS, draw_hat
from captune.mini.shapes import SHAPES as SHAPES
from captune.mini.subjects import SUBJECTS

WIDTH_OF_SIZE = {"small": 0.36, "medium": 0.50, "large": 0.66}
FEET_OF_SIZE = {"small": 0.80, "medium": 0.86, "large": 0.93}
CENTER_OF_PLACE = {"left": 0.27, "middle": 0.50, "right": 0.73}
LARGE_CENTER_OF_PLACE = {"left": 0.32, "middle": 0.50, "right": 0.68}
OUTLINE_WIDTH = 1 / 64


def _draw_thing(image: Image.Image, thing: Thing) -> None:
    width = image.width
    unit = WIDTH_OF_SIZE[thing.size] * thing.scale
    centers = LARGE_CENTER_OF_PLACE if thing.size == "large" else CENTER_OF_PLACE
    x, feet = centers[thing.place] + thing.dx, FEET_OF_SIZE[thing.size] + thing.dy
    pen = Pen(image, x * width, feet * width, unit * width, OUTLINE_WIDTH * width)
    pen.tint(INK, 0.22, oval(0.0, 0.99, 0.42, 0.065))
    if thing.shape in FORMS:
        form = FORMS[thing.shape]
        form.draw(pen, coat_of(thing.color, thing.pattern))
        hat = form.hat
    elif thing.shape in SUBJECTS:
        subject = SUBJECTS[thing.shape]
        subject.draw(pen)
        hat = subject.hat
    else:
        raise ValueError(f"unknown shape {thing.shape!r}; known: {', '.join((*SHAPES, *SUBJECTS))}")
    if thing.hat:
        draw_hat(pen, *hat)


def draw(scene: Scene, size: int = 64, supersample: int = 4) -> Image.Image:
    """The scene as an RGB picture, `size` pixels square; the same picture at every size."""
    image = draw_background(scene.background, scene.variant, size * supersample)
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

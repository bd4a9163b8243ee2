"""Pictures that are not of the mini world, so that the VAE learns colours, edges and textures it will meet later.

A VAE trained on the world's closed palette shows a teal creature as purple, and no LoRA can repair that.
"""

from __future__ import annotations

import colorsys
import math
import random

import numpy as np
from PIL import Image, ImageDraw


def _color(rng: random.Random) -> tuple[int, int, int]:
    h, s, v = rng.random(), rng.random() ** 0.5, rng.random() ** 0.5
    r, g, b = colorsys.hsv_to_rgb(h, s, v)
    return round(255 * r), round(255 * g), round(255 * b)


def _blob(rng: random.Random, side: int) -> list[tuple[float, float]]:
    cx, cy, r = rng.random() * side, rng.random() * side, side * rng.uniform(0.06, 0.35)
    count = rng.choice((3, 4, 5, 6, 10, 24))
    wobble = rng.random() * 0.5
    phase = rng.random() * math.tau
    points = []
    for i in range(count):
        a = phase + math.tau * i / count
        d = r * (1 + wobble * (rng.random() - 0.5) * 2)
        points.append((cx + d * math.cos(a), cy + d * math.sin(a) * rng.uniform(0.8, 1.2)))
    return points


def _ground(rng: random.Random, side: int) -> Image.Image:
    """A flat colour, a gradient, or a soft colour cloud."""
    kind = rng.random()
    if kind < 0.35:
        return Image.new("RGB", (side, side), _color(rng))
    if kind < 0.7:
        corners = np.array([[_color(rng), _color(rng)], [_color(rng), _color(rng)]], np.uint8)
        if rng.random() < 0.5:
            corners[:, 1] = corners[:, 0]
        return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)
    cells = rng.choice((3, 4, 6, 8, 12))
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(10, 60), (cells, cells, 3))
    cloud = np.clip(np.array(_color(rng)) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(cloud).resize((side, side), Image.Resampling.BICUBIC)


def _eye(draw: ImageDraw.ImageDraw, rng: random.Random, side: int, width: int) -> None:
    x, y, r = rng.random() * side, rng.random() * side, side * rng.uniform(0.025, 0.09)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255), outline=(30, 30, 40), width=width)
    p = r * rng.uniform(0.4, 0.7)
    dx, dy = rng.uniform(-1, 1) * (r - p) * 0.7, rng.uniform(-1, 1) * (r - p) * 0.7
    draw.ellipse((x + dx - p, y + dy - p, x + dx + p, y + dy + p), fill=(20, 20, 30))


def random_picture(rng: random.Random, size: int = 64) -> Image.Image:
    """One RGB picture (size x size) of random shapes on a random ground, drawn at three times its size."""
    side = size * 3
    picture = _ground(rng, side)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randrange(2, 9)):
        fill = _color(rng)
        outline = tuple(round(c * rng.choice((0.4, 0.6, 1.0))) for c in fill)
        width = rng.choice((0, 2, 3, 5))
        kind = rng.random()
        if kind < 0.35:
            draw.polygon(_blob(rng, side), fill=fill, outline=outline, width=width)
        elif kind < 0.65:
            x, y = rng.random() * side, rng.random() * side
            a, b = side * rng.uniform(0.03, 0.3), side * rng.uniform(0.03, 0.3)
            draw.ellipse((x - a, y - b, x + a, y + b), fill=fill, outline=outline, width=width)
        elif kind < 0.8:
            x, y = rng.random() * side, rng.random() * side
            points = [(x + rng.uniform(-0.3, 0.3) * side, y + rng.uniform(-0.3, 0.3) * side) for _ in range(3)]
            draw.line(points, fill=fill, width=round(side * rng.uniform(0.01, 0.06)), joint="curve")
        elif kind < 0.92:
            step, thick = side * rng.uniform(0.06, 0.2), side * rng.uniform(0.02, 0.08)
            x0, y0 = rng.random() * side * 0.6, rng.random() * side * 0.6
            for i in range(rng.randrange(2, 5)):
                draw.rectangle((x0 + i * step, y0, x0 + i * step + thick, y0 + side * 0.4), fill=fill)
        if rng.random() < 0.5:
            _eye(draw, rng, side, 2)
    return picture.resize((size, size), Image.Resampling.BOX)


def recolored(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A world picture (height, width, 3) uint8 with its channels swapped, some inverted: same forms, other colours."""
    out = picture[..., rng.permutation(3)]
    for channel in range(3):
        if rng.random() < 0.3:
            out = out.copy()
            out[..., channel] = 255 - out[..., channel]
    return out

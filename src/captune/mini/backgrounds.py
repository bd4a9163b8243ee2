"""The backgrounds of the mini world: two or three calm areas each, so that a small VAE can keep them.

Coordinates are shares of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from captune.mini.pen import Outline, Pen, Rgb, block, mix, oval


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


def draw_background(background: str, variant: float, width: int) -> Image.Image:
    """The background alone, `width` pixels square; `variant` in [0, 1] moves its horizon and sky."""
    if background not in _SKIES:
        raise ValueError(f"unknown background {background!r}; known: {', '.join(BACKGROUNDS)}")
    image = _ramp(width, _SKIES[background]).copy()
    if background in _SCENERY:  # the studio is its graded sky alone
        # Unit 1 with the feet at the picture's bottom makes a pen's coordinates shares of the picture.
        _SCENERY[background](Pen(image, 0, width, width, 0), variant)
    return image

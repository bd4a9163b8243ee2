"""Reads a mini-world picture back into what it shows: the ground truth behind the metrics named `oracle_*`.

A small convolutional network trained on renders. It exists because the world is drawn and its truth is known; it says
nothing about real photographs, and only demos, tests and benchmarks use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from captune.mini import subjects, world

SHAPES = (*world.SHAPES, *subjects.SUBJECTS)
COLORS = tuple(world.COLORS)
HEADS = {  # per place: what stands there; the last class of shape and colour is "nothing" and "a subject's own"
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "pattern": len(world.PATTERNS),
    "size": len(world.SIZES),
    "hat": 2,
}
SIDE = 64


@dataclass(frozen=True)
class Seen:
    """One thing read from a picture; `color` is None for a subject, whose colours are its own."""

    shape: str
    color: str | None
    pattern: str
    size: str
    hat: bool
    place: str


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its background and the things in it, from left to right."""

    background: str
    things: tuple[Seen, ...]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU(), nn.AvgPool2d(2))


class Reader(nn.Module):
    """pixel_values (batch, 3, 64, 64) in [-1, 1] -> logits: `background` (batch, 8) and per head (batch, 3 places, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(3, 24), _block(24, 48), _block(48, 96), _block(96, 128))
        self.joint = nn.Sequential(nn.Flatten(), nn.Linear(128 * 16, 192), nn.SiLU())
        # Stripes on a small pink bird are two pixels wide: patterns are also read before the picture has shrunk to 4 x 4.
        self.texture = nn.Sequential(_block(48, 64), nn.Flatten(), nn.Linear(64 * 64, 96), nn.SiLU())
        self.texture_pattern = nn.Linear(96, len(world.PLACES) * HEADS["pattern"])
        self.background = nn.Linear(192, len(world.BACKGROUNDS))
        self.heads = nn.ModuleDict({k: nn.Linear(192, len(world.PLACES) * n) for k, n in HEADS.items()})

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        fine = self.features[:2](pixel_values)
        joint = self.joint(self.features[2:](fine))
        logits = {k: head(joint).unflatten(1, (len(world.PLACES), -1)) for k, head in self.heads.items()}
        logits["pattern"] = logits["pattern"] + self.texture_pattern(self.texture(fine)).unflatten(
            1, (len(world.PLACES), -1)
        )
        return {"background": self.background(joint), **logits}


class Oracle:
    """Batched reading of pictures with the shipped weights."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> Oracle:
        """Load the reader's weights from a safetensors file."""
        reader = Reader()
        reader.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        return cls(reader)

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image], batch_size: int = 64) -> list[Reading]:
        """Read RGB pictures of any size (they are resized to 64 px)."""
        readings: list[Reading] = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            small = [np.asarray(i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for i in chunk]
            pixel_values = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1
            choice = {k: v.argmax(-1).tolist() for k, v in self.reader(pixel_values).items()}
            readings += [_reading({k: v[i] for k, v in choice.items()}) for i in range(len(chunk))]
        return readings


def _reading(choice: dict[str, object]) -> Reading:
    per_place = {k: choice[k] for k in HEADS}
    things = []
    for index, place in enumerate(world.PLACES):
        value = {k: v[index] for k, v in per_place.items()}  # type: ignore[index]
        if value["shape"] == len(SHAPES):
            continue
        color = COLORS[value["color"]] if value["color"] < len(COLORS) else None
        shape = SHAPES[value["shape"]]
        pattern, size = world.PATTERNS[value["pattern"]], world.SIZES[value["size"]]
        things.append(Seen(shape, color, pattern, size, bool(value["hat"]), place))
    background = choice["background"]
    assert isinstance(background, int)
    return Reading(world.BACKGROUNDS[background], tuple(things))


def labels(scene: world.Scene) -> dict[str, list[int] | int]:
    """The classes that `Reader` should give for a scene (-100 where a place is empty: not judged)."""
    rows: dict[str, list[int]] = {k: [-100] * len(world.PLACES) for k in HEADS}
    rows["shape"] = [len(SHAPES)] * len(world.PLACES)
    for thing in scene.things:
        at = world.PLACES.index(thing.place)
        own = thing.shape not in world.SHAPES
        rows["shape"][at] = SHAPES.index(thing.shape)
        rows["color"][at] = len(COLORS) if own else COLORS.index(thing.color)
        rows["pattern"][at] = -100 if own else world.PATTERNS.index(thing.pattern)
        rows["size"][at] = world.SIZES.index(thing.size)
        rows["hat"][at] = int(thing.hat)
    return {"background": list(world.BACKGROUNDS).index(scene.background), **rows}

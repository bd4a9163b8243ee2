"""An oracle that knows the truth, because it drew the pictures: for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from captune.mini import subjects, world
from captune.mini.oracle import Reading, Seen


def truth(scene: world.Scene) -> Reading:
    """What a perfect oracle reads."""
    things = [
        Seen(t.shape, None if t.shape in subjects.SUBJECTS else t.color, t.pattern, t.size, t.hat, t.place)
        for t in scene.things
    ]
    return Reading(scene.background, tuple(things))


class PerfectOracle:
    """Knows what was drawn into each file."""

    def __init__(self) -> None:
        self.scenes: dict[bytes, world.Scene] = {}
        self.read_pictures = 0

    def draw(self, scene: world.Scene, path: Path) -> Path:
        image = world.draw(scene)
        image.save(path)
        self.scenes[image.tobytes()] = scene
        return path

    def read(self, images: Sequence[Image.Image], batch_size: int = 64) -> list[Reading]:
        self.read_pictures += len(images)
        return [truth(self.scenes[image.tobytes()]) for image in images]

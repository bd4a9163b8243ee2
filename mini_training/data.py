"""Renders the mini world once into arrays on disk, so that training does not wait for Pillow.

python -m mini_training.data WORK [--count 64000]
"""

from __future__ import annotations

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from captune.mini import world

SIZE = 64
SPLITS = {"train": "seen", "val": "seen", "held_out": "held_out"}


def scene_from(row: dict) -> world.Scene:
    return world.Scene(row["background"], tuple(world.Thing(**t) for t in row["things"]), row["variant"])


def _render(job: tuple[int, int, str, float]) -> tuple[np.ndarray, list[dict]]:
    seed, count, pairs, two = job
    rng = random.Random(seed)
    scenes = [world.random_scene(rng, pairs=pairs, two_share=two) for _ in range(count)]
    pictures = np.stack([np.asarray(world.draw(s, SIZE)) for s in scenes])
    return pictures, [asdict(s) for s in scenes]


def render(work: Path, split: str, count: int, seed: int, two: float = 0.25, chunk: int = 500) -> None:
    jobs = [(seed + i, min(chunk, count - i * chunk), SPLITS[split], two) for i in range(-(-count // chunk))]
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(_render, jobs))
    np.save(work / f"{split}.npy", np.concatenate([p for p, _ in parts]))
    (work / f"{split}.json").write_text(json.dumps([s for _, rows in parts for s in rows]))


def load(work: Path, split: str) -> tuple[np.ndarray, list[world.Scene]]:
    pictures = np.load(work / f"{split}.npy", mmap_mode="r")
    return pictures, [scene_from(r) for r in json.loads((work / f"{split}.json").read_text())]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=64_000)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    render(arguments.work, "val", 2_000, seed=10_000_000)
    render(arguments.work, "held_out", 1_000, seed=20_000_000)
    render(arguments.work, "train", arguments.count, seed=0)

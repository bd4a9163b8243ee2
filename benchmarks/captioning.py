"""How many times the pictures per second of a loop over single pictures does batched captioning by the mini BLIP reach?

    python benchmarks/captioning.py [--rounds 9] [--pictures 32] [--batches 8 32]

Both run in turn within one process, from the prepared PNG files to the words, by the captioner that `captune caption` uses,
so whatever else the machine does falls on both. The captions must be equal.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from captune import captioners, images
from captune.mini import world
from captune.recipe import CaptionerSection
from captune.runs import sha256_of
from captune.types import Example


def drawn(folder: Path, count: int) -> list[Example]:
    """Pictures of the drawn world, as if prepared."""
    examples = []
    for index in range(count):
        path = folder / f"{index:05d}.png"
        scene = world.random_scene(random.Random(f"captioning {index}"), pairs="any")
        images.write_png(world.draw(scene), path)
        side = images.read_header(path).width
        examples.append(Example(path.stem, path, path, side, side, side, side, 1, sha256_of(path)))
    return examples


def captioned(
    captioner: captioners.Captioner, examples: list[Example], batch_size: int
) -> tuple[float, list[str | captioners.Failed]]:
    """Seconds and captions."""
    began = time.perf_counter()
    said = [
        text for i in range(0, len(examples), batch_size) for text in captioner.caption(examples[i : i + batch_size])
    ]
    return time.perf_counter() - began, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        examples = drawn(Path(folder), arguments.pictures)
        captioner = captioners.load(CaptionerSection(name="blip"), "cpu")
        captioner.caption(examples[: max(arguments.batches)])  # loads it
        ratios: dict[int, list[float]] = {batch: [] for batch in arguments.batches}
        for _ in range(arguments.rounds):
            alone, said = captioned(captioner, examples, 1)
            line = f"one at a time {len(examples) / alone:.1f} pictures/s"
            for batch in arguments.batches:
                together, same = captioned(captioner, examples, batch)
                assert said == same, "captions depend on the batch"
                ratios[batch].append(alone / together)
                line += f"; batches of {batch}: {len(examples) / together:.1f}, {ratios[batch][-1]:.2f} times"
            print(line, flush=True)
    for batch, found in ratios.items():
        print(f"batches of {batch}: median {statistics.median(found):.2f} times the pictures per second")


if __name__ == "__main__":
    main()

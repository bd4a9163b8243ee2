"""Do memory and speed of prepare and caption stay the same however many pictures there are?

    python benchmarks/many_pictures.py [--counts 500 10000] [--side 512]

Draws pictures (once, into --work), then runs `captune prepare` and `captune caption --captioner blip` (the embedded one) on
folders of each size, as commands, start-up included. Prints pictures per second and the peak of the memory of all a command's
processes together, which counts what they share several times.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageDraw


def draw(folder: Path, count: int, side: int) -> None:
    """Pictures of soft colours and ellipses, as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        if path.exists():
            continue
        rng = np.random.default_rng(index)
        ground = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        picture = ground.resize((side, side), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(picture)
        for _ in range(5):
            left, top, width, height = (int(v) for v in rng.integers(1, side // 2, 4))
            pen.ellipse([left, top, left + width, top + height], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
        picture.save(path, quality=90)


def measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds that a captune command takes, and MiB at the peak."""
    with tempfile.TemporaryFile() as said:
        began, peak = time.perf_counter(), 0
        process = psutil.Popen([sys.executable, "-m", "captune", *arguments], stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # one ended meanwhile
                peak = max(peak, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode())
    return seconds, peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 10_000])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "captune-many-pictures")
    given = parser.parse_args()
    for count in given.counts:
        photos, out = given.work / f"photos-{count}-{given.side}", given.work / "prepared"
        draw(photos, count, given.side)
        shutil.rmtree(out, ignore_errors=True)
        for name, arguments in (
            ("prepare", ["prepare", str(photos), str(out), "--resolution", str(given.side)]),
            ("caption", ["caption", str(out / "images"), "--captioner", "blip"]),
        ):
            seconds, peak = measured(arguments)
            print(f"{name} {count:,}: {count / seconds:.1f} pictures/s, {seconds:.0f} s, {peak:.0f} MiB", flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()

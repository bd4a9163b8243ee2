"""How fast is a training step beside a loop as diffusers' example scripts write it? Same base, batch, rank and targets.

    python benchmarks/train_step.py [--family sd|sdxl|flux] [--size mini|real] [--device cpu|cuda] [--rounds 3]
        [--resolution 64] [--batch 4] [--rank 8] [--steps 300] [--precision fp32|bf16|auto] [--plain-precision fp32|bf16]

The two run in turn, each as a process of its own: `captune train` and `plain_loop.py` beside this file. Per round: seconds a
step, seconds from the process's start to the file, peak memory, and which share of the fastest matrix product measured here
the denoiser's operations are (utilisation). The mini base is the embedded one; real ones have random weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import random_bases
import torch

from captune import demo, weights
from captune.mini import subjects, world

HERE = Path(__file__).parent
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
RECIPE = """
[dataset]
path = "{pictures}"
resolution = {resolution}

[base]
family = "{family}"
model = "{model}"
device = "{device}"
precision = "{precision}"

[train]
rank = {rank}
alpha = {rank}
targets = "attention"
steps = {steps}
batch_size = {batch}

[[arm]]
name = "person"
captioner = {{ name = "sidecar" }}

[sample]
prompts = ["a creature"]
"""


@dataclass(frozen=True)
class Measured:
    """One process's training."""

    step: float
    whole: float
    peak_mib: float
    flops: float = 0.0
    processes: int = 1


def captune(asked: argparse.Namespace, recipe: Path, out: Path) -> Measured:
    shutil.rmtree(out, ignore_errors=True)
    whole = _seconds([sys.executable, "-m", "captune", "train", str(recipe), "--out", str(out)])
    told = json.loads((out / "arms/person/seed-0/train/manifest.json").read_text())
    step = told["training_seconds"] / told["total_steps"]
    peak = told.get("peak_gpu_mib") or told["peak_mib"] * told["processes"]
    return Measured(step, whole, peak, processes=told["processes"])


def plain(asked: argparse.Namespace, base: Path, pictures: Path, out: Path) -> Measured:
    options = {
        "--family": asked.family, "--device": asked.device, "--precision": asked.plain_precision,
        "--resolution": asked.resolution, "--batch": asked.batch, "--rank": asked.rank, "--steps": asked.steps,
    }  # fmt: skip
    command = [sys.executable, str(HERE / "plain_loop.py"), str(base), str(pictures), "--out", str(out)]
    log = out.with_suffix(".json")
    with open(log, "w") as file:
        whole = _seconds([*command, *(str(x) for pair in options.items() for x in pair)], file)
    told = json.loads(log.read_text().splitlines()[-1])
    return Measured(told["seconds_per_step"], whole, told["peak_mib"], told["flops"])


def _seconds(command: list[str], out: object = subprocess.DEVNULL) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def _told(m: Measured, asked: argparse.Namespace) -> str:
    rate = (
        f"{m.step:.4f} s a step ({asked.batch / m.step:.1f} pictures/s), {m.whole:.1f} s in all, {m.peak_mib:.0f} MiB"
    )
    return rate + (f" in {m.processes} processes" if m.processes > 1 else "")


def fastest_product(device: str, dtype: torch.dtype) -> float:
    """Operations per second of the best of some matrix products, all threads together."""
    best = 0.0
    for side in (1024, 2048, 4096) if device == "cpu" else (4096, 8192):
        a = torch.randn(side, side, device=device).to(dtype)
        for _ in range(3):
            began = time.perf_counter()
            a @ a
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["sd", "sdxl", "flux"], default="sd")
    parser.add_argument("--size", choices=["mini", "real"], default="mini")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
    parser.add_argument("--plain-precision", choices=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path("runs/train_step"))
    asked = parser.parse_args()
    mini = asked.size == "mini"
    if mini and asked.family != "sd":
        parser.error("the embedded base is of the family sd; --size real for the others")
    asked.resolution = asked.resolution or (64 if mini else {"cpu": 256, "cuda": 512}[asked.device])
    asked.batch = asked.batch or (4 if mini else 1)
    asked.steps = asked.steps or (300 if mini else {"cpu": 4, "cuda": 50}[asked.device])
    asked.plain_precision = asked.plain_precision or ("bf16" if asked.device == "cuda" else "fp32")
    pictures = asked.out / f"pictures{asked.resolution}"
    demo.draw_photos("jefpajot", pictures)
    for path, scene in zip(
        sorted(pictures.glob("*.png")), subjects.training_scenes("jefpajot", demo.PICTURES), strict=True
    ):
        world.draw(scene, max(128, asked.resolution)).save(path)
    stored = PRECISIONS["fp32" if asked.device == "cpu" else "bf16"]
    base = Path(weights.locate("mini", "sd"))
    if not mini:
        base = random_bases.write(asked.family, asked.out / f"{asked.family}-base", stored, asked.device)
    recipe = asked.out / "captune.toml"
    told = vars(asked) | {"model": "mini" if mini else base.resolve(), "pictures": pictures.resolve()}
    recipe.write_text(RECIPE.format(**told))
    rounds = []
    for number in range(1, asked.rounds + 1):
        ours = captune(asked, recipe, asked.out / "captune")
        theirs = plain(asked, base, pictures, asked.out / "plain")
        rounds.append((ours, theirs))
        print(f"round {number}: captune {_told(ours, asked)}; plain {_told(theirs, asked)}; ", end="")
        print(f"ratio {theirs.step / ours.step:.2f} a step, {theirs.whole / ours.whole:.2f} in all", flush=True)
    step = statistics.median(theirs.step / ours.step for ours, theirs in rounds)
    whole = statistics.median(theirs.whole / ours.whole for ours, theirs in rounds)
    print(f"median ratio: {step:.2f} a step, {whole:.2f} in all")
    peak = fastest_product(asked.device, PRECISIONS["bf16" if asked.device == "cuda" else "fp32"])
    flops = rounds[0][1].flops
    used = flops / min(ours.step for ours, _ in rounds) / peak
    print(
        f"a plain step has {flops / 1e9:.1f} GFLOP; the fastest product here {peak / 1e9:.0f} GFLOP/s; utilisation {used:.0%}"
    )


if __name__ == "__main__":
    main()

"""Trains the VAE: world pictures, the same in other colours, and pictures of random things.

python -m mini_training.train_vae WORK [--steps 6500]
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mini_training import data, fit, models
from mini_training.random_pictures import random_picture, recolored

BATCH = 16


def _random_chunk(seed: int) -> np.ndarray:
    rng = random.Random(seed)
    return np.stack([np.asarray(random_picture(rng)) for _ in range(500)])


def render_random(work: Path, chunks: int = 32) -> None:
    with ProcessPoolExecutor(2) as pool:
        np.save(
            work / "random.npy", np.concatenate(list(pool.map(_random_chunk, range(5_000_000, 5_000_000 + chunks))))
        )


def reconstruction_loss(rebuilt: Tensor, pixel_values: Tensor) -> Tensor:
    """L1 + 4 MSE (the PSNR's own measure) + half the L1 of the edges; both (batch, 3, height, width) in [-1, 1]."""
    difference = rebuilt - pixel_values
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 4 * difference.square().mean() + 0.5 * edges


def batches(work: Path, of_world: float = 0.7) -> Callable[[np.random.Generator], Tensor]:
    """Draws batches of pixel_values (16, 3, 64, 64): a share of world pictures, a fifth of all recoloured, others random."""
    pictures, _ = data.load(work, "train")
    others = np.load(work / "random.npy", mmap_mode="r")

    def batch(rng: np.random.Generator) -> Tensor:
        rows = []
        for _ in range(BATCH):
            draw = rng.random()
            source = pictures if draw < of_world else others
            row = np.asarray(source[rng.integers(len(source))])
            if draw < 0.2:
                row = recolored(row, rng)
            if rng.random() < 0.3:
                row = row[:, ::-1]
            rows.append(row)
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1

    return batch


def build(work: Path):
    batch = batches(work)

    def make_loss(model):
        def loss(step: int, rng: np.random.Generator):
            pixel_values = batch(rng)
            with torch.autocast("cpu", torch.bfloat16):
                posterior = model.encode(pixel_values).latent_dist
                rebuilt = model.decode(posterior.sample()).sample
            rebuilt = rebuilt.float()
            kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
            mse = (rebuilt - pixel_values).square().mean().item()
            return reconstruction_loss(rebuilt, pixel_values) + 3e-4 * kl, {"mse": mse, "kl": kl.item()}

        return loss

    return models.vae(), make_loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    if not (arguments.work / "random.npy").exists():
        render_random(arguments.work)
    plan = fit.Fit("vae", arguments.work, arguments.steps, arguments.learning_rate, betas=(0.9, 0.99), ema=0.998)
    fit.run(plan, functools.partial(build, arguments.work))

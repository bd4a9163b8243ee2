"""Trains the VAE's decoder on, its encoder frozen, so that pictures get sharper and the UNet's latents stay the same.

python -m mini_training.train_decoder WORK [--steps 1500]
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
import torch

from mini_training import fit, models, train_vae


def build(work: Path):
    vae = models.vae()
    vae.load_state_dict(fit.averaged(work / "vae.ckpt.pt"))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    batch = train_vae.batches(work, of_world=0.5)

    def make_loss(model: torch.nn.Module):
        def loss(step: int, rng: np.random.Generator):
            pixel_values = batch(rng)
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    latents = model.encode(pixel_values).latent_dist.mean
                    # a little noise, as the UNet's own latents are not exact either
                    latents = latents + 0.02 * torch.randn_like(latents)
                rebuilt = model.decode(latents).sample
            mse = (rebuilt.float() - pixel_values).square().mean((1, 2, 3))
            edges = train_vae.reconstruction_loss(rebuilt.float(), pixel_values)
            # the logarithm is the PSNR itself, of every picture alike: the hard ones do not outweigh the others
            return mse.log().mean() + 2 * edges, {"mse": mse.mean().item()}

        return loss

    return vae, make_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    plan = fit.Fit(
        "decoder",
        arguments.work,
        arguments.steps,
        arguments.learning_rate,
        processes=arguments.processes,
        betas=(0.9, 0.99),
        # A long average over a constant rate rebuilds better than the end of a falling one: 0.12 dB on subjects.
        final=1.0,
        ema=0.9985,
    )
    fit.run(plan, functools.partial(build, arguments.work))


if __name__ == "__main__":
    main()

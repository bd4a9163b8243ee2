"""The mathematics of the training loss: pure functions of tensors, no model and no randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from captune.families import Objective


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """noisy_latents = sqrt(a) latents + sqrt(1 - a) noise (Ho et al. 2020, eq. 4).

    latents, noise (batch, channels, h, w); alphas_cumprod (batch,): a of each row's timestep.
    """
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, objective: Objective) -> Tensor:
    """What the model should predict: the noise, or v = sqrt(a) noise - sqrt(1 - a) latents (Salimans & Ho 2022)."""
    if objective == "epsilon":
        return noise
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def signal_to_noise(alphas_cumprod: Tensor) -> Tensor:
    """SNR = a / (1 - a)."""
    return alphas_cumprod / (1 - alphas_cumprod)


def min_snr_weight(snr: Tensor, gamma: float, objective: Objective) -> Tensor:
    """Min-SNR loss weight (Hang et al. 2023): min(snr, gamma) / snr, or / (snr + 1) for v_prediction."""
    return snr.clamp(max=gamma) / (snr if objective == "epsilon" else snr + 1)


def offset_noise(noise: Tensor, offset: Tensor, strength: float) -> Tensor:
    """Noise plus a constant per row and channel (noise_offset in kohya); offset (batch, channels, 1, 1) is normal."""
    return noise + strength * offset


def per_picture_loss(model_pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row, in float32: (batch,)."""
    return torch.mean((model_pred.float() - target.float()).square(), dim=(1, 2, 3))

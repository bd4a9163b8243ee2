"""The mathematics of the training loss: pure functions of tensors, no model and no randomness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captune.types import Objective

FLOW_TIMESTEPS = 1000  # a flow's timestep is sigma times this, as FLUX was trained

TimestepSampling = Literal["uniform", "sigmoid", "logit_normal", "shift"]
Loss = Literal["l2", "huber", "smooth_l1"]


@dataclass(frozen=True)
class NoiseSchedule:
    """How a base's pictures become noise: by alphas_cumprod (timesteps,) at whole timesteps, or along a flow's line.

    Timesteps run from 0 (the picture) up to `length` (noise): integers with alphas_cumprod, else 1000 sigma, any number.
    """

    objective: Objective
    alphas_cumprod: Tensor | None = None  # float32 on the CPU; None for flow matching

    @property
    def length(self) -> int:
        return FLOW_TIMESTEPS if self.alphas_cumprod is None else len(self.alphas_cumprod)

    def timesteps(
        self,
        uniform: Tensor,
        how: TimestepSampling = "uniform",
        *,
        mean: float = 0.0,
        scale: float = 1.0,
        shift: float = 1.0,
    ) -> Tensor:
        """The timesteps (batch,) that draws `uniform` (batch,), equally likely in [0, 1), stand for.

        uniform: every timestep alike. For flows also, with n the normal number at that quantile (Esser et al. 2024,
        "Scaling Rectified Flow Transformers", section 3.1): logit_normal is sigmoid(mean + scale n); sigmoid is that
        with mean 0 (kohya's `sigmoid_scale`); shift is sigmoid moved towards noise by `shift_sigmas` (kohya's
        `discrete_flow_shift`).
        """
        if self.alphas_cumprod is not None:
            if how != "uniform":
                raise ValueError(f"timesteps {how!r} are flow matching's; {self.objective} draws them uniformly")
            return (uniform * self.length).long().clamp(max=self.length - 1)
        sigmas = uniform
        if how != "uniform":
            normal = torch.special.ndtri(uniform.double())
            sigmas = torch.sigmoid((mean if how == "logit_normal" else 0.0) + scale * normal)
        if how == "shift":
            sigmas = shift_sigmas(sigmas, shift)
        return (sigmas * self.length).float()

    def share_below(
        self,
        timestep: float,
        how: TimestepSampling = "uniform",
        *,
        mean: float = 0.0,
        scale: float = 1.0,
        shift: float = 1.0,
    ) -> float:
        """The share of draws `uniform` for which `timesteps` gives one below this: its inverse, of a flow."""
        sigma = torch.tensor(timestep / self.length, dtype=torch.float64)
        if how == "shift":
            sigma = shift_sigmas(sigma, 1 / shift).clamp(max=1)  # rounding, at the end
        if how == "uniform":
            return float(sigma)
        normal = (torch.logit(sigma) - (mean if how == "logit_normal" else 0.0)) / scale
        return float(torch.special.ndtr(normal))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """noisy_latents (batch, channels, h, w) of latents and noise at timesteps (batch,)."""
        if self.alphas_cumprod is None:
            return interpolate(latents, noise, self._sigmas(timesteps, latents))
        return add_noise(latents, noise, self._alphas(timesteps, latents))

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict, in the latents' shape."""
        if self.alphas_cumprod is None:
            return noise - latents
        return target(latents, noise, self._alphas(timesteps, latents), self.objective)

    def signal_to_noise(self, timesteps: Tensor) -> Tensor | None:
        """SNR (batch,) at timesteps (batch,); None for flows, which have no schedule that it would weigh."""
        if self.alphas_cumprod is None:
            return None
        return signal_to_noise(self._alphas(timesteps, timesteps))

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """The schedule that ends in pure noise."""
        if self.alphas_cumprod is None:
            raise ValueError("a flow ends in pure noise already")
        return NoiseSchedule(self.objective, zero_terminal_snr(self.alphas_cumprod))

    def _alphas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        assert self.alphas_cumprod is not None
        return self.alphas_cumprod.to(timesteps.device)[timesteps].to(like.device)

    def _sigmas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        return (timesteps / self.length).to(like.device, like.dtype)


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """noisy_latents = sqrt(a) latents + sqrt(1 - a) noise (Ho et al. 2020, eq. 4).

    latents, noise (batch, channels, h, w); alphas_cumprod (batch,): a of each row's timestep.
    """
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def interpolate(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """noisy_latents = (1 - sigma) latents + sigma noise, the straight line of rectified flow (Liu et al. 2022).

    Its velocity, noise - latents, is what a flow-matching model predicts. sigmas (batch,).
    """
    sigma = sigmas.view(-1, 1, 1, 1)
    return (1 - sigma) * latents + sigma * noise


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """shift sigma / (1 + (shift - 1) sigma): more noise for shift above 1 (Esser et al. 2024, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def flux_shift(tokens: int) -> float:
    """The shift that FLUX draws a picture of so many 2x2 latent patches with (kohya's `flux_shift`).

    exp(mu), mu on the line from 0.5 at 256 tokens to 1.15 at 4096 (Black Forest Labs' sampling.py).
    """
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


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


def debiased_weight(snr: Tensor, objective: Objective) -> Tensor:
    """Debiased estimation's loss weight (Yu et al. 2023): 1 / sqrt(snr), or 1 / (snr + 1) for v_prediction.

    As in kohya, an SNR above 1000 counts as 1000.
    """
    snr = snr.clamp(max=1000)
    return 1 / (snr.sqrt() if objective == "epsilon" else snr + 1)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """alphas_cumprod (timesteps,) rescaled so that the last is 0 and the first as before (Lin et al. 2023, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def offset_noise(noise: Tensor, offset: Tensor, strength: float) -> Tensor:
    """Noise plus a constant per row and channel (noise_offset in kohya); offset (batch, channels, 1, 1) is normal."""
    return noise + strength * offset


def errors(model_pred: Tensor, target: Tensor, loss: Loss = "l2", c: float = 0.1) -> Tensor:
    """The loss of every value, in float32 and the inputs' shape; with d the difference of the two:

    l2: d^2; huber: 2 c (sqrt(d^2 + c^2) - c); smooth_l1: that over c. The latter two are the pseudo-Huber loss as in
    kohya (Khrapov et al. 2024, "Improving Diffusion Models' Data-Corruption Resistance"): as d^2, or d^2 / c, where d is
    well below c, and linear beyond.
    """
    square = (model_pred.float() - target.float()).square()
    if loss == "l2":
        return square
    beyond = 2 * ((square + c * c).sqrt() - c)
    return c * beyond if loss == "huber" else beyond


def per_picture_loss(
    model_pred: Tensor, target: Tensor, loss: Loss = "l2", c: float = 0.1, masks: Tensor | None = None
) -> Tensor:
    """The mean of each row's errors (batch,); with masks (batch, 1, h, w) in [0, 1] the mean weighted by them.

    So a row's loss does not shrink with its mask; kohya's does, which divides by the whole area.
    """
    each = errors(model_pred, target, loss, c)
    if masks is None:
        return torch.mean(each, dim=(1, 2, 3))
    return (each * masks).sum(dim=(1, 2, 3)) / (masks.sum(dim=(1, 2, 3)) * each.shape[1])

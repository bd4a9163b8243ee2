"""What a visit draws beside its picture: noise and timestep, keyed by (seed, example id, visit)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captune import families, objective, randomness
from captune.errors import RecipeError
from captune.families import Family
from captune.objective import NoiseSchedule
from captune.recipe import TrainSection

Who = tuple[int, str, int]  # seed, example id, number of the visit


def schedule_of(section: TrainSection, family: Family) -> NoiseSchedule:
    """The base's noise schedule as the section trains on it; a RecipeError where this base cannot."""
    schedule = family.schedule
    if section.min_timestep >= schedule.length:
        raise RecipeError(f"train.min_timestep = {section.min_timestep}: this base has {schedule.length} timesteps")
    if not section.zero_terminal_snr:
        return schedule
    if schedule.objective != "v_prediction":
        raise RecipeError(f"train.zero_terminal_snr = true: {families.PREDICTS_NOISE}")
    return schedule.with_zero_terminal_snr()


def noise_of(section: TrainSection, shape: Sequence[int], who: Who) -> Tensor:
    """The noise of a visit, for latents (channels, h, w)."""
    noise = randomness.normal(shape, "noise", *who)
    if section.noise_offset:
        offset = randomness.normal((shape[0], 1, 1), "noise_offset", *who)
        noise = objective.offset_noise(noise, offset, section.noise_offset)
    return noise


def perturbed(section: TrainSection, noise: Tensor, who: Who) -> Tensor:
    """The noise that noisy latents are made with: input perturbation adds gamma x another one, the target does not."""
    if not section.ip_noise_gamma:
        return noise
    return noise + section.ip_noise_gamma * randomness.normal(noise.shape, "ip_noise", *who)


def timestep_of(section: TrainSection, schedule: NoiseSchedule, shape: Sequence[int], who: Who) -> Tensor:
    """The timestep of a visit, a tensor without dimensions: an integer, or a flow's number; latents (channels, h, w)."""
    lowest, below = section.min_timestep, min(section.max_timestep, schedule.length)
    if schedule.alphas_cumprod is not None:
        return torch.tensor(lowest + randomness.integer(below - lowest, "timestep", *who))
    how = section.timestep_sampling or "sigmoid"
    shift = section.timestep_shift or objective.flux_shift(shape[-2] * shape[-1] // 4)
    curve = {"mean": section.timestep_mean, "scale": section.timestep_scale, "shift": shift}
    draw = randomness.uniform("timestep", *who)
    if (lowest, below) != (0, schedule.length):  # the same distribution, cut to the range
        low, high = (schedule.share_below(end, how, **curve) for end in (lowest, below))
        draw = low + draw * (high - low)
    return schedule.timesteps(torch.tensor(draw, dtype=torch.float64), how, **curve)

"""The loss's mathematics against closed forms and against diffusers' own scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from captune.train import objective

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 2, 2, generator=generator).unbind()
    return latents, noise, torch.tensor([0, 500, 999])


def test_noise_is_added_as_diffusers_adds_it(tensors: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = tensors
    ours = objective.add_noise(latents, noise, SCHEDULER.alphas_cumprod[timesteps])
    torch.testing.assert_close(ours, SCHEDULER.add_noise(latents, noise, timesteps))


def test_the_v_target_is_diffusers_velocity(tensors: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = tensors
    ours = objective.target(latents, noise, SCHEDULER.alphas_cumprod[timesteps], "v_prediction")
    torch.testing.assert_close(ours, SCHEDULER.get_velocity(latents, noise, timesteps))


def test_the_epsilon_target_is_the_noise(tensors: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = tensors
    assert objective.target(latents, noise, SCHEDULER.alphas_cumprod[timesteps], "epsilon") is noise


@pytest.mark.parametrize(
    ("snr", "kind", "weight"),
    [(10.0, "epsilon", 0.5), (10.0, "v_prediction", 5 / 11), (2.0, "epsilon", 1.0), (2.0, "v_prediction", 2 / 3)],
)
def test_min_snr_weight_is_the_papers(snr: float, kind: objective.Objective, weight: float) -> None:
    assert objective.min_snr_weight(torch.tensor([snr]), 5.0, kind).item() == pytest.approx(weight)


def test_signal_to_noise_of_equal_parts_is_one() -> None:
    assert objective.signal_to_noise(torch.tensor(0.5)).item() == pytest.approx(1.0)


def test_a_rows_loss_does_not_depend_on_its_neighbours(tensors: tuple[torch.Tensor, ...]) -> None:
    latents, noise, _ = tensors
    together = objective.per_picture_loss(latents, noise)
    assert together[1].item() == pytest.approx(objective.per_picture_loss(latents[1:2], noise[1:2]).item())


def test_offset_noise_moves_a_whole_channel(tensors: tuple[torch.Tensor, ...]) -> None:
    _, noise, _ = tensors
    moved = objective.offset_noise(noise, torch.ones(3, 4, 1, 1), 0.1) - noise
    torch.testing.assert_close(moved, torch.full_like(noise, 0.1))

"""The loss's mathematics against closed forms and against diffusers' own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from captune import objective
from captune.objective import NoiseSchedule

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
DDPM, FLOW = NoiseSchedule("v_prediction", SCHEDULER.alphas_cumprod), NoiseSchedule("flow_matching")


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


def test_a_ddpm_schedule_is_its_pure_functions_at_whole_timesteps(tensors: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = tensors
    torch.testing.assert_close(
        DDPM.add_noise(latents, noise, timesteps), SCHEDULER.add_noise(latents, noise, timesteps)
    )
    torch.testing.assert_close(
        DDPM.target(latents, noise, timesteps), SCHEDULER.get_velocity(latents, noise, timesteps)
    )
    a = SCHEDULER.alphas_cumprod[timesteps]
    torch.testing.assert_close(DDPM.signal_to_noise(timesteps), a / (1 - a))


def test_a_flow_adds_noise_as_diffusers_does_and_has_no_signal_to_noise(tensors: tuple[torch.Tensor, ...]) -> None:
    latents, noise, _ = tensors
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    timesteps = scheduler.timesteps[[0, 300, 999]]
    theirs = scheduler.scale_noise(latents, timesteps, noise)
    torch.testing.assert_close(FLOW.add_noise(latents, noise, timesteps), theirs)
    assert FLOW.signal_to_noise(timesteps) is None


def test_a_flows_target_leads_from_noise_to_the_picture(tensors: tuple[torch.Tensor, ...]) -> None:
    """One Euler step of diffusers' sampler from any sigma to 0 along the target gives the latents back."""
    latents, noise, _ = tensors
    timesteps = torch.tensor([1000.0, 400.0, 30.0])
    noisy_latents, velocity = FLOW.add_noise(latents, noise, timesteps), FLOW.target(latents, noise, timesteps)
    scheduler = FlowMatchEulerDiscreteScheduler()
    for row, timestep in enumerate(timesteps):
        scheduler.set_timesteps(sigmas=[timestep.item() / 1000])
        there = scheduler.step(velocity[row], scheduler.timesteps[0], noisy_latents[row]).prev_sample
        torch.testing.assert_close(there, latents[row])


def test_uniform_numbers_become_each_timestep_equally_often() -> None:
    uniform = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    assert torch.equal(DDPM.timesteps(uniform), torch.arange(1000).repeat_interleave(3))
    assert DDPM.timesteps(torch.tensor([0.0, 0.9999999999], dtype=torch.float64)).tolist() == [0, 999]
    torch.testing.assert_close(FLOW.timesteps(uniform), (uniform * 1000).float())


def test_sigmas_of_a_flow_are_the_normal_quantiles_put_through_a_sigmoid() -> None:
    # 0.8413447 of the normal distribution lies below 1, half of it below 0
    uniform = torch.tensor([0.5, 0.8413447460685429], dtype=torch.float64)

    def sigmoid(x: float) -> float:
        return 1000 / (1 + math.exp(-x))

    for how, more, expected in (
        ("sigmoid", {}, [500.0, sigmoid(1.0)]),
        ("sigmoid", {"scale": 2.0}, [500.0, sigmoid(2.0)]),
        ("logit_normal", {"mean": -0.5, "scale": 2.0}, [sigmoid(-0.5), sigmoid(1.5)]),
        ("shift", {"shift": 3.0}, [750.0, 3 * sigmoid(1.0) / (1 + 2 * sigmoid(1.0) / 1000)]),
    ):
        torch.testing.assert_close(FLOW.timesteps(uniform, how, **more), torch.tensor(expected))  # type: ignore[arg-type]


def test_drawn_sigmas_are_distributed_as_the_paper_says() -> None:
    """The share of logit-normal draws below sigma is that of the normal distribution below its logit."""
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = FLOW.timesteps(uniform, "logit_normal", mean=0.3, scale=0.8) / 1000
    for sigma in (0.2, 0.5, 0.8):
        expected = 0.5 * (1 + math.erf((math.log(sigma / (1 - sigma)) - 0.3) / 0.8 / math.sqrt(2)))
        assert (sigmas < sigma).double().mean().item() == pytest.approx(expected, abs=0.01)


def test_the_shift_is_diffusers() -> None:
    sigmas = torch.linspace(0, 1, 11)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    torch.testing.assert_close(objective.shift_sigmas(sigmas, 3.0), scheduler.sigmas[:-1])


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_fluxs_shift_is_its_makers(tokens: int) -> None:
    assert objective.flux_shift(tokens) == pytest.approx(math.exp(calculate_shift(tokens)))


def test_a_ddpm_schedule_refuses_a_flows_timesteps() -> None:
    with pytest.raises(ValueError, match="timesteps 'sigmoid' are flow matching's; v_prediction draws them uniformly"):
        DDPM.timesteps(torch.tensor([0.5]), "sigmoid")


@pytest.mark.parametrize("how", ["uniform", "sigmoid", "logit_normal", "shift"])
def test_the_share_of_draws_below_a_timestep_inverts_the_draw(how: str) -> None:
    uniform = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    curve = {"mean": 0.4, "scale": 1.5, "shift": 3.0}
    drawn = FLOW.timesteps(uniform, how, **curve)  # type: ignore[arg-type]
    shares = [FLOW.share_below(float(t), how, **curve) for t in drawn]  # type: ignore[arg-type]
    assert shares == pytest.approx([0.1, 0.5, 0.9], abs=1e-5)
    assert [FLOW.share_below(t, how, **curve) for t in (0, 1000)] == pytest.approx([0, 1])  # type: ignore[arg-type]


def test_debiased_weights_are_the_papers_and_bounded_as_in_kohya() -> None:
    snr = torch.tensor([4.0, 1e6])
    assert objective.debiased_weight(snr, "epsilon").tolist() == pytest.approx([1 / 2, 1 / math.sqrt(1000)])
    assert objective.debiased_weight(snr, "v_prediction").tolist() == pytest.approx([1 / 5, 1 / 1001])


def test_zero_terminal_snr_is_diffusers() -> None:
    how = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plain, rescaled = DDPMScheduler(**how), DDPMScheduler(**how, rescale_betas_zero_snr=True)
    found = objective.zero_terminal_snr(plain.alphas_cumprod)
    torch.testing.assert_close(found, rescaled.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert found[-1] == 0 and found[0] == pytest.approx(plain.alphas_cumprod[0].item())
    torch.testing.assert_close(objective.zero_terminal_snr(found), found)


def test_huber_is_square_near_zero_and_linear_far_out() -> None:
    d = torch.tensor([1e-3, 0.3, 100.0])
    zero = torch.zeros(3)
    huber, smooth = (objective.errors(d, zero, loss, 0.1) for loss in ("huber", "smooth_l1"))  # type: ignore[arg-type]
    assert objective.errors(d, zero).tolist() == pytest.approx([1e-6, 0.09, 1e4])
    assert huber.tolist() == pytest.approx([1e-6, 0.2 * (math.sqrt(0.1) - 0.1), 0.2 * 99.9], rel=1e-3)
    torch.testing.assert_close(huber, 0.1 * smooth)


def test_a_masked_loss_is_the_mean_over_what_is_learned() -> None:
    pred, target = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    pred[:, :, 0] = 2.0  # upper half: error 4; lower half: 0
    mask = torch.ones(2, 1, 2, 2)
    mask[0, :, 1] = 0
    mask[1, :, 1] = 0.5
    assert objective.per_picture_loss(pred, target, masks=mask).tolist() == pytest.approx([4, 4 / 1.5])
    whole = objective.per_picture_loss(pred, target, masks=torch.ones(2, 1, 2, 2))
    torch.testing.assert_close(whole, objective.per_picture_loss(pred, target))
